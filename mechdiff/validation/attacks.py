"""Stress tests of the rules of verdicts, under distributions that the other checks don't use: trainings of
unequal or skewed scatter, curves that drift in other ways than a straight line, heavy tails; images that are
skewed where there is no effect.

The rules are dated and are not changed; where one fails, that is a stated limit. Also here: the power of
rules that have only nulls elsewhere, sequential sweeps and tests over people.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from mechdiff import stats
from mechdiff.analysis import bottlenecks, margins, network_divergence, spread
from mechdiff.analysis.entropy_correlation import within_layers
from mechdiff.stats import small_samples
from mechdiff.sweeps import stopping
from mechdiff.validation.checks import ALPHA, Check, errs, finds, replacing
from mechdiff.validation.image_calibration import COMPONENTS, FLIPS, LAWS, MAX_IMAGES, last_intervals
from mechdiff.validation.rule_calibration import ENTROPY_TIMESTEPS, LAYERS
from mechdiff.validation.simulated import four_phases_margin, held_out_scores, in_any_order

NETWORKS, TIMESTEPS, CURVES = 12, 24, 12  # of a study; components whose curves are cut into phases
LOG_SD = 0.5  # of skewed trainings
Curves = Float[np.ndarray, "t component"]


def checks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """All checks, each over `repeats` simulated studies."""
    rngs = iter(rng.spawn(9))
    return [
        *_divergence(next(rngs), repeats),
        *_bottlenecks(next(rngs), repeats),
        *_phases(next(rngs), repeats),
        *_ladder(next(rngs), repeats),
        *_entropy(next(rngs), repeats),
        *_power(next(rngs), repeats),
        *_skewed_images(next(rngs), repeats),
        *_noise_of_images(next(rngs), repeats),
        *_unequal_numbers(next(rngs), repeats),
    ]


def _divergence(rng: np.random.Generator, repeats: int, n: int = 5) -> list[Check]:
    """Trainings on one side scatter twice as much."""
    same = np.array([_compared(rng, (n, n), 0.0).p <= ALPHA for _ in range(repeats)])
    shifted = [_compared(rng, (n, n), 0.2) for _ in range(repeats)]
    return [
        errs("divergence: no difference, one side scatters twice as much", same),
        errs(
            "divergence varies with the timestep: constant, unequal scatter",
            np.array([x.p_varies <= ALPHA for x in shifted]),
        ),
        finds(
            "divergence: a constant difference, unequal scatter",
            np.array([x.p <= ALPHA for x in shifted]),
            0.8,
        ),
    ]


def _compared(
    rng: np.random.Generator, counts: tuple[int, int], constant: float
) -> network_divergence.NetworkDivergence:
    """A study of so many networks, the second of which scatter twice as much; heads of a training move
    together as well as apart."""
    first, both = counts[0], sum(counts)
    base = rng.normal(2, 0.3, (28, ENTROPY_TIMESTEPS))
    scatter = np.repeat([0.05, 0.1], counts)[:, None, None]
    together = rng.normal(size=(both, 1, 1)) + rng.normal(size=(both, 1, ENTROPY_TIMESTEPS))
    apart = rng.standard_t(3, size=(both, 28, 1)) + 0.3 * rng.normal(size=(both, 28, ENTROPY_TIMESTEPS))
    heads = base + scatter * (together + apart)
    heads[:first] += constant
    in_any_order(rng, heads)
    return network_divergence.compare(heads[:first], heads[first:], LAYERS)


def _unequal_numbers(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Two or four networks that scatter twice as much as twelve others."""
    checks = []
    for few in (2, 4):
        name = f"divergence, 12 and {few} that scatter twice as much"
        same = np.array([_compared(rng, (12, few), 0.0).p <= ALPHA for _ in range(repeats)])
        shifted = np.array([_compared(rng, (12, few), 0.2).p <= ALPHA for _ in range(repeats)])
        checks += [errs(f"{name}: no difference", same), finds(f"{name}: a constant one", shifted, 0.8)]
    return checks


def _bottlenecks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Relative loss increases that are lognormal over trainings, or large in half of them only."""

    def study(costs: Float[np.ndarray, "network component"]) -> bottlenecks.Bottleneck:
        return bottlenecks.crossed(costs[..., None], np.arange(NETWORKS) % 2 == 0)

    def skewed(mean: Float[np.ndarray, " component"]) -> Float[np.ndarray, "network component"]:
        return mean * np.exp(LOG_SD * rng.normal(size=(NETWORKS, 24)) - LOG_SD**2 / 2)

    def half_of_them() -> Float[np.ndarray, "network component"]:
        costs = skewed(np.full(24, 5.0))
        costs[:, 0] = np.where(rng.random(NETWORKS) < 0.5, 50.0, 0.0) + rng.normal(size=NETWORKS)
        return costs

    threshold = bottlenecks.THRESHOLD
    edge = [study(skewed(np.where(np.arange(24) < 3, threshold, 10.0))) for _ in range(repeats)]
    lone = [study(skewed(np.where(np.arange(24) < 1, threshold, 5.0))) for _ in range(repeats)]
    halves = [study(half_of_them()) for _ in range(repeats)]
    large = [study(skewed(np.where(np.arange(24) < 1, 75.0, 10.0))) for _ in range(repeats)]
    small = [study(skewed(np.full(24, 8.0))) for _ in range(repeats)]

    def share(results: list[bottlenecks.Bottleneck], none: bool = False) -> Bool[np.ndarray, " repeat"]:
        return np.array([(result.p_none if none else result.p) <= ALPHA for result in results])

    return [
        errs("bottleneck: at the threshold, lognormal trainings", share(edge)),
        errs("bottleneck: 50 % in half of the trainings, 0 in the others", share(halves)),
        errs("no bottleneck: one at the threshold, lognormal trainings", share(lone, none=True)),
        errs("no bottleneck: 50 % in half of the trainings", share(halves, none=True)),
        finds("bottleneck: one of 75 %, lognormal trainings", share(large), 0.8),
        finds("no bottleneck: all of 8 %, lognormal trainings", share(small, none=True), 0.8),
    ]


def _phases(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Curves over 24 timesteps of 12 components in 6 networks; noise of images grows with the timestep."""
    t = np.linspace(-1, 1, TIMESTEPS)[:, None]

    def concluded(shape: Curves) -> bool:
        networks = shape * (1 + 0.3 * rng.normal(size=(6, 1, CURVES)))
        steps, drift = held_out_scores(rng, networks, noise=0.1 + 0.1 * (1 + t))
        _, (low, _), p = small_samples.over_seeds(four_phases_margin(steps, drift))
        return bool(p <= ALPHA and low > 0)

    def steps(count: int) -> Curves:
        return np.repeat(rng.normal(size=(count, CURVES)), math.ceil(TIMESTEPS / count), axis=0)[:TIMESTEPS]

    def own_step() -> Curves:
        where = rng.uniform(-0.8, 0.8, CURVES)
        return rng.normal(1, 0.3, CURVES) * (t > where)

    laws: dict[str, Callable[[], Curves]] = {
        "each component steps once, at a place of its own": own_step,
        "each component fades out at a rate of its own": lambda: np.exp(
            -rng.uniform(0.5, 6, CURVES) * (1 + t)
        ),
        "one smooth rise in the middle": lambda: rng.normal(1, 0.3, CURVES) / (1 + np.exp(-8 * t)),
        "random walks": lambda: 0.3 * rng.normal(size=(TIMESTEPS, CURVES)).cumsum(axis=0),
        "three steps": lambda: steps(3),
        "six steps": lambda: steps(6),
    }
    four = np.array([concluded(np.repeat(steps(4)[::6], (3, 9, 4, 8), axis=0)) for _ in range(repeats)])
    return [
        *(
            errs(f"four phases: {name}", np.array([concluded(law()) for _ in range(repeats)]))
            for name, law in laws.items()
        ),
        finds("four phases: four steps of unequal length", four, 0.8),
    ]


def _ladder(rng: np.random.Generator, repeats: int, n: int = 8) -> list[Check]:
    """The gate where rungs scatter unequally, and heavily: a measure that rises once."""

    def opens(*means: float) -> bool:
        scatter = rng.permutation([0.05, 0.1, 0.2])
        rises, p = spread.ordered(
            [mean + sd * rng.standard_t(4, size=n) for mean, sd in zip(means, scatter, strict=True)]
        )
        return rises and p < ALPHA

    once = np.array([opens(0, 0.5, 0.5) for _ in range(repeats)])
    rising = np.array([opens(0, 0.5, 1.0) for _ in range(repeats)])
    return [
        errs("ladder: a measure that rises once, unequal scatter and t(4)", once),
        finds("ladder: a rising measure, unequal scatter and t(4)", rising, 0.8),
    ]


def _entropy(rng: np.random.Generator, repeats: int, n: int = 8) -> list[Check]:
    """Effects of heavy tails, a few heads costing most; layers whose heads' entropies scatter unequally."""
    layers = np.array(LAYERS)

    def of_networks(link: float) -> Float[np.ndarray, " network"]:
        width = np.repeat(rng.lognormal(sigma=0.7, size=(7, n)), 4, axis=0)
        focus = rng.normal(size=(28, n))
        entropy = np.repeat(rng.normal(size=(7, n)), 4, axis=0) + width * focus
        cost = width * np.exp(1.5 * (link * focus + np.sqrt(1 - link**2) * rng.normal(size=(28, n))))
        return within_layers(entropy, cost, layers)

    def supported(link: float) -> bool:
        _, (_, high), p = small_samples.over_seeds(of_networks(link) - of_networks(0.0), above=False)
        return bool(p <= ALPHA and high < 0)

    nothing = np.array([supported(0.0) for _ in range(repeats)])
    linked = np.array([supported(-0.6) for _ in range(repeats)])
    return [
        errs("entropy and importance: heavy tails, unequal layers", nothing),
        finds("entropy and importance: a link under heavy tails", linked, 0.8),
    ]


def _power(rng: np.random.Generator, repeats: int, people: int = 40, images: int = 26) -> list[Check]:
    """Power of sequential sweeps, of tests over people, of many components, and of equivalence."""
    signs = [_signs(rng) for _ in range(repeats)]
    p = []
    for _ in range(repeats):
        shared = 0.2 + np.sqrt(0.1) * rng.normal(size=(people, 1))
        differences = shared + np.sqrt(0.9) * rng.normal(size=(people, images))
        test = stats.permutation_test(differences.sum(axis=1)[None], FLIPS, int(rng.integers(2**31)))
        p.append(test[0])
    grids = rng.normal(size=(repeats, COMPONENTS, 16)) + np.where(np.arange(COMPONENTS) < 10, 1.5, 0)[:, None]
    enough = [(stats.max_t(grid, FLIPS, i)[:10] <= ALPHA).mean() >= 0.5 for i, grid in enumerate(grids)]
    alike = stats.equivalence_test(rng.normal(size=(repeats, 32)), 1.0) <= ALPHA
    return [
        finds("sequential, the sign of 9 in 10 components of 2 % and more", np.array(signs), 0.8),
        finds("sign flips of 40 people: a mean of 0.2 sd of images", np.array(p) <= ALPHA, 0.8),
        finds("max-T, 16 images: half of ten of 1.5 sd beside 46 of 0", np.array(enough), 0.8),
        finds("equivalence test, 32 images: no difference, margin of 1 sd", alike, 0.8),
    ]


def _signs(rng: np.random.Generator) -> bool:
    """Whether a sequential sweep ends with the sign of 9 in 10 components that cost 2 % and more."""
    size = np.where(np.arange(COMPONENTS) < COMPONENTS // 2, 0.02, 0.0)
    size = size * rng.uniform(1, 5, COMPONENTS)
    clean = np.exp(0.4 * rng.normal(size=MAX_IMAGES) + 0.3 * rng.normal(size=(4, MAX_IMAGES)) - 0.125)
    loss = clean * (1 + size[:, None, None] * LAWS["lognormal, log-sd .5"](rng, (COMPONENTS, 1, MAX_IMAGES)))
    low, _ = last_intervals((size, clean, loss), stopping.MIN_IMAGES, stats.skewed_sequence)
    return float((low[size > 0] > 0).mean()) >= 0.9


def _skewed_images(rng: np.random.Generator, repeats: int, images: int = 16, cells: int = 28) -> list[Check]:
    """Sign flips where the mean over images is 0 and single images are skewed about it: lognormal less its
    mean, independent in each cell and at each of four timesteps that a cell is the mean of. The null that
    flips test exactly is symmetry, which this is not."""

    def differences(log_sd: float, *shape: int) -> Float[np.ndarray, "*shape image"]:
        return np.exp(log_sd * rng.normal(size=(*shape, images))) - np.exp(log_sd**2 / 2)

    single = {sd: stats.permutation_test(differences(sd, repeats), FLIPS) <= ALPHA for sd in (0.5, 1.2)}
    grids = [stats.max_t(differences(1.0, cells, 4).mean(1), FLIPS, i).min() <= ALPHA for i in range(repeats)]
    name = f"skewed about a mean of 0, {images} images"
    return [
        *(errs(f"sign flips, {name}: log-sd {sd:g}", wrong) for sd, wrong in single.items()),
        errs(f"max-T over {cells} cells, {name}: log-sd 1", np.array(grids)),
    ]


def _noise_of_images(
    rng: np.random.Generator, repeats: int, images: int = 84, draws: int = 50
) -> list[Check]:
    """The ladder where noise of the images grows threefold from rung to rung, half of it common to networks,
    and effects don't differ; and where effects do, with little noise. Before, without regard to noise."""
    largest, small = np.array([50.0, 30, 20, 10, 5, 5]), np.ones(39)

    def opens(costs: tuple[float, ...], noise: tuple[float, ...]) -> tuple[bool, bool]:
        rungs = []
        for cost, scatter in zip(costs, noise, strict=True):
            size = np.r_[largest, cost * small]
            true = size * np.exp(0.2 * rng.normal(size=(NETWORKS, len(size))))
            common, own = (rng.normal(size=(n, len(size), 1 + draws)) for n in (1, NETWORKS))
            errors = scatter * np.sqrt(0.5 / images) * (common + own)
            errors[..., 1:] += errors[..., :1]  # resamples scatter about what was measured
            rungs.append(true[..., None] + errors)
        rises, p = spread.ordered([spread.pseudo_values(of[..., 0]) for of in rungs], pseudo=True)
        let = rises and p <= ALPHA
        return let and max(map(spread.moved_by_noise, rungs)) < margins.RATIO, let

    nothing, before = np.array([opens((0.2,) * 3, (3.0, 9.0, 27.0)) for _ in range(repeats)]).T
    rising = np.array([opens((0.2, 1.0, 3.0), (1.0, 1.0, 1.0))[0] for _ in range(repeats)])
    name = f"ladder, {images} images"
    return [
        replacing(errs(f"{name}: their noise grows, effects are equal", nothing), before),
        finds(f"{name}: effects spread, noise is 1 %", rising, 0.8),
    ]
