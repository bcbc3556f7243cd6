"""Calibration of tests of one or two networks, or of starts, that decide no claim but are shown with a p."""

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff import stats
from mechdiff.analysis import entropy_causality, entropy_correlation, network_divergence, paired, phases
from mechdiff.circuits import audits, scorecards
from mechdiff.stats import small_samples
from mechdiff.validation.checks import ALPHA, Check, covers, errs, finds
from mechdiff.validation.rule_calibration import LAYERS
from mechdiff.validation.simulated import in_any_order

FLIPS, TIMESTEPS, IMAGES = 399, 4, 16
HEADS = [f"{layer}.attn0.head{i}" for layer in ("down1", "mid", "up1") for i in range(4)]


def checks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """All checks, each over `repeats` simulated studies; of the order of timesteps, of correlations over
    heads and of starts a quarter as many."""
    rngs = iter(rng.spawn(8))
    fewer = max(min(repeats, 5), repeats // 4)
    return [
        *_changes(next(rngs), repeats),
        *_order(next(rngs), fewer),
        *_correlations(next(rngs), fewer),
        *_slopes(next(rngs), repeats),
        *_circuits(next(rngs), repeats),
        *_audits(next(rngs), repeats),
        *_starts(next(rngs), fewer),
        *_sizes(next(rngs), repeats),
    ]


def _changes(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Between two networks on the same images, whose clean losses are skewed (log-sd 1)."""

    def p(change: float) -> Float[np.ndarray, " repeat"]:
        shared = rng.normal(size=(repeats, 1, IMAGES))
        sides = []
        for cost in (20.0, 20.0 + change):
            logs = 0.9 * shared + 0.44 * rng.normal(size=(repeats, TIMESTEPS, IMAGES))
            clean = np.exp(logs)
            sides.append((clean, clean * (1 + cost / 100 * (1 + 0.3 * rng.normal(size=clean.shape)))))
        return stats.permutation_test(paired.contributions_to_change(*sides, pooled=True).mean(axis=1), FLIPS)

    name = "change between two networks, skewed clean losses"
    return [errs(f"{name}: none", p(0) <= ALPHA), finds(f"{name}: of 20 points", p(20) <= ALPHA, 0.8)]


def _order(rng: np.random.Generator, repeats: int, curves: int = 6) -> list[Check]:
    """Effects that differ between 12 timesteps in no order; and in four steps."""

    def found(shape: Float[np.ndarray, "t component"], number: int) -> bool:
        fit, scored = (shape + 0.3 * rng.normal(size=(2, *shape.shape)) for _ in range(2))
        return bool(phases.order_test(fit, scored, 4, 39, number)[3] <= ALPHA)

    unordered = [found(rng.normal(size=(12, curves)), i) for i in range(repeats)]
    steps = [found(np.repeat(rng.normal(size=(4, curves)), 3, axis=0), i) for i in range(repeats)]
    name = "order of timesteps"
    return [errs(f"{name}: none", np.array(unordered)), finds(f"{name}: four steps", np.array(steps), 0.8)]


def _correlations(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Entropy and effects over 12 heads of one network: without a link, and where layers alone carry both."""

    def tested(link: float, layer: float) -> tuple[float, float]:
        depth = np.repeat(rng.normal(size=3), 4)
        focus = rng.normal(size=12)
        entropy = focus + layer * depth
        size = link * focus + np.sqrt(1 - link**2) * rng.normal(size=12) - layer * depth
        noise = 0.2 * rng.normal(size=(2, 12, IMAGES))
        attention = xr.Dataset(
            {"normalized_entropy": (("head", "t", "image"), (entropy[:, None] + noise[0])[:, None])},
            coords={"head": HEADS},
        )
        result = entropy_correlation.correlation(attention, lambda w: (size[:, None] + noise[1]) @ w.T, 99)
        return result.p, result.p_within

    none = np.array([tested(0.0, 0.0) for _ in range(repeats)]) <= ALPHA
    layers = np.array([tested(0.0, 2.0) for _ in range(repeats)]) <= ALPHA
    linked = np.array([tested(-0.95, 0.5) for _ in range(repeats)]) <= ALPHA
    name = "entropy and effects of 12 heads"
    return [
        errs(f"{name}: no link", none[:, 0]),
        errs(f"{name}, within layers: no link", none[:, 1]),
        errs(f"{name}, within layers: a matter of layers", layers[:, 1]),
        finds(f"{name}: a link of -.95", linked[:, 0], 0.8),
        finds(f"{name}, within layers: a link of -.95", linked[:, 1], 0.8),
    ]


def _slopes(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Whether a head's role follows its entropy; in the null heads of high entropy have it, whatever their
    temperature."""
    targets = ["edges", "detail0", "texture", "color", "layout"]

    def follows(within: float) -> bool:
        base, noise = rng.uniform(0.2, 0.8, (12, 1)), rng.normal(size=(12, 3, 5))
        moves = np.array([-0.15, 0.0, 0.15])
        effect = np.exp(0.3 * noise)
        effect[..., 0] *= np.exp(3 * (base + within * moves))
        data = xr.Dataset(
            {"effect": (("head", "temperature", "target", "t", "image"), effect[..., None, None])},
            coords={"head": HEADS, "temperature": [0.5, 1.0, 2.0], "target": targets},
        )
        slopes = entropy_causality.within_head_slope(data, base + moves)
        return slopes is not None and slopes.follows[0]

    name = "role follows entropy within heads"
    return [
        errs(f"{name}: only between heads", np.array([follows(0.0) for _ in range(repeats)])),
        finds(f"{name}: as between heads", np.array([follows(1.0) for _ in range(repeats)]), 0.8),
    ]


def _circuits(rng: np.random.Generator, repeats: int, members: int = 8, randoms: int = 40) -> list[Check]:
    """Members of a circuit by one-sided max-T over 16 images; a circuit among random ones."""

    def needed(cost: float) -> Bool[np.ndarray, "repeat member"]:
        cost_of_each = np.where(np.arange(members) < members // 2, cost, 0.0)[:, None]
        raised = cost_of_each + rng.normal(size=(repeats, members, IMAGES))
        p = [stats.max_t(rows, FLIPS, i, alternative="greater") for i, rows in enumerate(raised)]
        return np.array(p) <= ALPHA

    none, half = needed(0.0), needed(1.5)
    f = 0.5 + 0.2 * rng.normal(size=(repeats, randoms + 1))
    alike = np.array([scorecards._sufficiency(row[1:], row[:1]) <= ALPHA for row in f])
    better = np.array([scorecards._sufficiency(row[1:], np.array([0.98])) <= ALPHA for row in f])
    return [
        errs("circuit: any member is called needed, none is", none.any(axis=1)),
        errs("circuit: any member is called needed wrongly, half of them are", half[:, 4:].any(axis=1)),
        finds("circuit: a member of 1.5 sd of images is called needed", half[:, 0], 0.8),
        errs("circuit: better than random ones, drawn as they are", alike),
        finds("circuit: better than random ones, by 2.4 of their sd", better, 0.8),
    ]


def _audits(rng: np.random.Generator, repeats: int, components: int = 400) -> list[Check]:
    """Screens of 400 components that miss a quarter of the rest, or hardly any, wherever their audits end."""
    settings = audits.ScreenConfig(k=20, shortlist=20, audit=25)

    def audited(missed: float) -> tuple[bool, bool]:
        """Whether the interval covers the share that is missed; whether it was the first audit."""
        effect = np.where(rng.random(components) < missed, 2.0, 0.5)
        effect[:20] = 1.0
        audit = audits.audit_until(np.arange(components), effect.__getitem__, settings, rng)
        bar = np.sort(effect[: audit.size])[-20]
        share = (effect[audit.size :] > bar).mean() if audit.size < components else 0.0
        low, high = audit.interval
        return bool(low - 1e-9 <= share <= high + 1e-9), audit.looks == 1

    many, none = (np.array([audited(share) for _ in range(repeats)]) for share in (0.25, 0.0))
    return [
        covers("screen's misses, a quarter of the rest", many[:, 0]),
        finds("screen ends at its first audit where it misses nothing", none[:, 1], 0.8),
        errs("screen ends at its first audit where it misses a quarter", many[:, 1]),
    ]


def _starts(rng: np.random.Generator, repeats: int, starts: int = 6) -> list[Check]:
    """Data sets exchanged within six starts, whose networks correlate by half."""

    def p(shift: float) -> float:
        shared = 0.1 * np.sqrt(0.5) * rng.normal(size=(starts, 28, 1))
        own = 0.1 * np.sqrt(0.5) * rng.normal(size=(2, starts, 28, 3))
        heads = rng.normal(2, 0.3, (28, 3)) + shared + own
        heads[0] += shift
        networks = heads.reshape(2 * starts, 28, 3)
        in_any_order(rng, networks)
        result = network_divergence.compare(networks[:starts], networks[starts:], LAYERS, paired=True)
        return result.p_paired

    name = f"divergence, data exchanged within {starts} starts"
    return [
        errs(f"{name}: no difference", np.array([p(0.0) <= ALPHA for _ in range(repeats)])),
        finds(f"{name}: 1 sd of trainings", np.array([p(0.1) <= ALPHA for _ in range(repeats)]), 0.8),
    ]


def _sizes(rng: np.random.Generator, repeats: int, n: int = 3) -> list[Check]:
    """Sizes of circuits, whole numbers, of three networks a group: scatter before rounding 0 to 1."""

    def larger(by: float, scatter: float) -> bool:
        mean = 10 + rng.uniform(-0.5, 0.5)
        sides = [np.log(np.rint(m + scatter * rng.normal(size=n)).astype(float)) for m in (mean + by, mean)]
        return bool(small_samples.between_groups(sides[0], sides[1], sizes=True)[2] <= ALPHA)

    wrong = [
        errs(
            f"sizes of {n} + {n} circuits, scatter {scatter:g}: equal",
            np.array([larger(0.0, scatter) for _ in range(repeats)]),
        )
        for scatter in (0.0, 0.3, 1.0)
    ]
    right = np.array([larger(2.0, 0.3) for _ in range(repeats)])
    return [*wrong, finds(f"sizes of {n} + {n} circuits, scatter 0.3: 2 more", right, 0.8)]
