"""Calibration of the rules besides the main tests: controls of bottlenecks, the number of named roles, the
margin of roles, named pairs of components, and rank agreement."""

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import binom, spearmanr

from mechdiff.analysis import agreement, margins
from mechdiff.analysis.roles import matching
from mechdiff.circuits import backups
from mechdiff.stats import Units, small_samples
from mechdiff.validation import old_rules
from mechdiff.validation.checks import ALPHA, Check, covers, errs, finds, replacing

NETWORKS, SETS = 12, 20  # of a study; channel sets of each component
IMAGES, TIMESTEPS = 16, 4  # of pairs, as a study runs them


def checks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """All checks, each over `repeats` simulated studies; of the margin of roles a quarter as many."""
    rngs = iter(rng.spawn(5))
    return [
        *_beyond_controls(next(rngs), repeats),
        *_named_roles(next(rngs), repeats),
        *_role_margin(next(rngs), max(min(repeats, 10), repeats // 4)),
        *_pairs(next(rngs), repeats),
        *_agreement(next(rngs), repeats),
    ]


def _beyond_controls(rng: np.random.Generator, repeats: int) -> list[Check]:
    """A component's relative loss increase of 40 % against that of untrained networks, and of channel sets of
    the same network, as `claims.bottlenecks` takes them; trainings deviate by 30 %."""

    def p(control: Float[np.ndarray, " network"]) -> float:
        increase = 40 * (1 + 0.3 * rng.normal(size=NETWORKS))
        return small_samples.over_seeds(increase - control)[2]

    def sets(mean: float) -> Float[np.ndarray, " network"]:
        drawn = mean * (1 + 0.3 * rng.normal(size=(NETWORKS, SETS)))
        return np.quantile(drawn, margins.OF_RANDOM_SETS, axis=1)

    def outcomes(control) -> Bool[np.ndarray, " repeat"]:
        return np.array([p(control()) <= ALPHA for _ in range(repeats)])

    name = "bottleneck beyond"
    as_much = outcomes(lambda: 40 * (1 + 0.3 * rng.normal(size=NETWORKS)))
    half = outcomes(lambda: 20 * (1 + 0.3 * rng.normal(size=NETWORKS)))
    return [
        errs(f"{name} untrained networks: as much there", as_much),
        finds(f"{name} untrained networks: half as much there", half, 0.8),
        errs(f"{name} channel sets: one of them", outcomes(lambda: sets(40.0))),
        finds(f"{name} channel sets: they cost a third", outcomes(lambda: sets(40 / 3)), 0.8),
    ]


def _named_roles(rng: np.random.Generator, repeats: int) -> list[Check]:
    """How many of 16 networks have a named role, against the 5 % that heads without any would give."""
    rates = {"as many as untrained heads give": ALPHA, "in half of them": 0.5}
    answers = {
        name: binom.sf(rng.binomial(16, rate, repeats) - 1, 16, ALPHA) <= ALPHA
        for name, rate in rates.items()
    }
    null, half = answers
    return [
        errs(f"networks with a role: {null}", answers[null]),
        finds(f"networks with a role: {half}", answers[half], 0.8),
    ]


def _role_margin(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Roles are not supported where the interval of the excess correlation ends below the margin; 6 + 6
    networks of 16 heads, permuted within four layers."""
    layers = [f"layer{i // 4}" for i in range(16)]

    def network(profile: np.ndarray, role: np.ndarray, link: float) -> tuple[np.ndarray, np.ndarray]:
        order = np.concatenate([4 * i + rng.permutation(4) for i in range(4)])
        selectivity = link * role + np.sqrt(1 - link**2) * rng.normal(size=role.shape)
        return (profile + 0.3 * rng.normal(size=profile.shape))[order], selectivity[order]

    def excess(first, second) -> float:
        values = []
        for networks in (first, second):
            profiles, selectivity = zip(*networks, strict=True)
            named = [["x"] * 16] * len(networks)
            result = matching.agreement(list(profiles), list(selectivity), named, layers, 50, 0)
            values.append(result.profiles - result.chance_profiles)
        return float(np.mean(values))

    def refused(link: float) -> bool:
        sides = []
        for _ in range(2):
            profile, role = rng.normal(size=(16, 6)), rng.normal(size=(16, 12))
            sides.append([network(profile, role, link) for _ in range(6)])
        first, second = sides
        interval = small_samples.jackknife_interval(excess, first, second, excess(first, second))
        return bool(interval[1] < margins.ROLES)

    # Two networks' selectivities correlate by link^2, and by a quarter of that where heads are shuffled: one
    # of the four in a layer stays where it is, on average.
    edge = [refused(np.sqrt(margins.ROLES / 0.75)) for _ in range(repeats)]
    nothing = [refused(0.0) for _ in range(repeats)]
    return [
        errs("roles not supported: a correlation at the margin", np.array(edge)),
        finds("roles not supported: selectivity by chance", np.array(nothing), 0.5),
    ]


def _pairs(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Pairs named by their interaction, of losses that are skewed over images."""

    def named(joint: float, singles: tuple[float, float], images: int = IMAGES) -> str:
        clean = np.exp(0.5 * rng.normal(size=(TIMESTEPS, images)) - 0.125)

        def loss(cost: float) -> Float[np.ndarray, "1 t image"]:
            scatter = np.exp(0.5 * rng.normal(size=images) - 0.125)
            return (clean * (1 + cost / 100 * scatter))[None]

        first, second = map(loss, singles)
        # What both cost beyond the sum is drawn separately: an interaction scatters as single costs do.
        both = first + second - clean + loss(joint - sum(singles)) - clean
        dims = ("pair", "t", "image")
        variables = {
            "without_a": (dims, first),
            "without_b": (dims, second),
            "without_both": (dims, both),
            "interaction": (dims, both - first - second + clean),
            "clean_loss": (dims[1:], clean),
        }
        return str(backups.interaction_table(xr.Dataset(variables)).named.values[0])

    laws = {
        "edge": (11.0, (6.0, 4.0)),
        "apart": (10.0, (6.0, 4.0)),
        "partial": (20.0, (5.0, 0.0)),
        "common": (6.0, (6.0, 6.0)),
    }
    names = {law: np.array([named(*values) for _ in range(repeats)]) for law, values in laws.items()}
    few = np.array([named(*laws["apart"], images=6) for _ in range(repeats)])
    return [
        errs("pair: an interaction at the margin is named", names["edge"] != ""),
        errs("pair: independent components are named", names["apart"] != ""),
        errs("pair: independent components are named, from 6 images", few != ""),
        finds("pair: a partial backup is named so", names["partial"] == backups.BACKUP, 0.8),
        finds("pair: components of common use are named so", names["common"] == backups.COMMON, 0.8),
    ]


def _agreement(
    rng: np.random.Generator, repeats: int, components: int = 28, resamples: int = 200
) -> list[Check]:
    """Rank correlation of 28 components' effects in two networks, each measured on images of its own; an
    effect scatters over images by half of its size."""

    def effects(link: float) -> tuple[Float[np.ndarray, "2 component"], float]:
        """Of both, and their rank correlation, which lies within 0.02 of 0 if they have no link."""
        while True:
            first, second = rng.normal(size=(2, components))
            logs = np.stack([first, link * first + np.sqrt(1 - link**2) * second])
            truth = float(spearmanr(*logs).statistic)
            if link or abs(truth) < 0.02:
                return 0.05 * np.exp(0.7 * logs), truth

    def study(images: int, link: float) -> tuple[bool, bool, bool]:
        """Whether the interval covers the correlation without noise, whether the old one does, and whether
        it lies above 0."""
        effect, truth = effects(link)
        clean = np.exp(0.3 * rng.normal(size=(2, TIMESTEPS, images)))
        scatter = 1 + 0.5 * rng.normal(size=(2, components, 1, images))
        sides = [(clean[i], clean[i] + effect[i][:, None, None] * scatter[i]) for i in (0, 1)]
        units = [Units(np.arange(images), images, False)] * 2
        interval = agreement.ranked(sides, units, resamples)
        low, high = old_rules.resampled_ranks(sides, units, resamples)
        return bool(interval.low <= truth <= interval.high), low <= truth <= high, bool(interval.low > 0)

    name, few, more = "rank agreement", 8, IMAGES
    strong = {images: np.array([study(images, 0.9) for _ in range(repeats)]) for images in (few, more)}
    null = np.array([study(more, 0.0) for _ in range(repeats)])
    return [
        *(
            replacing(covers(f"{name} of .9, {images} images a side", values[:, 0]), values[:, 1])
            for images, values in strong.items()
        ),
        errs(f"{name}: unrelated networks called related", null[:, 2]),
        finds(f"{name}: of .9, {few} images a side, called related", strong[few][:, 2], 0.8),
    ]
