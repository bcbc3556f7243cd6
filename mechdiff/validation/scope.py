"""How far the rules of verdicts reach: cases that a reader would judge differently than the rule does.

The rules are dated and stay as they are; each line is a limit of what a verdict says, beside a control:
  bottleneck    pools data sets: a component far above the threshold in one and below it in the other
  four phases   means sharp ones: plateaus whose edges are a logistic of one timestep are not steps
  ladder        lets the first of several measures speak, each tested at .05, on three networks a rung
  same starts   networks of two data sets that share their training seed start from the same parameters
  divergence    of matched heads is not that of means alone: where trainings of one data set scatter more, by
                as much as heads of a layer differ, heads match less well across data sets than within them
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

from mechdiff.analysis import bottlenecks, network_divergence, spread
from mechdiff.stats import small_samples
from mechdiff.validation.checks import ALPHA, Check, errs, finds
from mechdiff.validation.rule_calibration import ENTROPY_TIMESTEPS, LAYERS
from mechdiff.validation.simulated import four_phases_margin, held_out_scores, in_any_order

TIMESTEPS, CURVES, SPLITS = 24, 12, 4
MEASURES, RUNG, TOP = 4, 3, 12  # measures of complexity; networks of each lower rung and of the highest
SHARED = 0.4  # correlation of what two networks of one start show


def checks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """All checks, each over `repeats` simulated studies."""
    rngs = iter(rng.spawn(5))
    return [
        *_bottlenecks(next(rngs), repeats),
        *_phases(next(rngs), repeats),
        *_ladder(next(rngs), repeats),
        *_starts(next(rngs), repeats),
        *_scatter(next(rngs), repeats),
    ]


def _bottlenecks(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Twelve networks of either data set, halved by `bottlenecks.split`; trainings deviate by 20 %."""
    data = np.repeat([0, 1], 12)
    first = bottlenecks.split([str(i) for i in data], [*range(12), *range(12)])

    def supported(costs: tuple[float, float]) -> bool:
        increase = np.full((24, 12), 8.0)
        increase[:, 0] = np.array(costs)[data]
        increase *= 1 + 0.2 * rng.normal(size=increase.shape)
        return bool(bottlenecks.crossed(increase[..., None], first).p <= ALPHA)

    return [
        errs(
            "bottleneck: 20 % in one data set, 84 % in the other",
            np.array([supported((20, 84)) for _ in range(repeats)]),
        ),
        finds(
            "bottleneck: 36 % in one data set, 84 % in the other",
            np.array([supported((36, 84)) for _ in range(repeats)]),
            0.8,
        ),
    ]


def _phases(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Six networks; edges between four plateaus of six timesteps are logistic, of a width in timesteps."""
    t = np.arange(TIMESTEPS)[:, None]

    def refused(width: float) -> bool:
        plateaus = rng.normal(size=(4, CURVES))
        edges = [expit((t - (6 * i - 0.5)) / width) for i in (1, 2, 3)]
        rises = np.diff(plateaus, axis=0)
        shape = plateaus[0] + sum(edge * rise for edge, rise in zip(edges, rises, strict=True))
        networks = shape * (1 + 0.3 * rng.normal(size=(6, 1, CURVES)))
        steps, drift = held_out_scores(rng, networks, noise=0.3, halves=SPLITS)
        return small_samples.over_seeds(four_phases_margin(steps, drift))[1][1] < 0

    return [
        errs(
            "four phases not supported: edges of 0.25 timesteps",
            np.array([refused(0.25) for _ in range(repeats)]),
        ),
        errs(
            "four phases not supported: edges of 1 timestep", np.array([refused(1.0) for _ in range(repeats)])
        ),
    ]


def _ladder(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Measures that correlate by 0.5 over networks, with as many networks a rung as the study has."""

    def opens(means: tuple[float, float, float], measures: int) -> bool:
        rungs = []
        for mean, count in zip(means, (RUNG, RUNG, TOP), strict=True):
            shared = rng.normal(size=(1, count))
            rungs.append(mean + np.sqrt(0.5) * (shared + rng.normal(size=(measures, count))))
        answers = [spread.ordered([rung[i] for rung in rungs]) for i in range(measures)]
        return any(rises and p < ALPHA for rises, p in answers)

    return [
        errs(
            "ladder, 3 networks a rung: any of four measures, each rises once",
            np.array([opens((0, 6, 6), MEASURES) for _ in range(repeats)]),
        ),
        finds(
            "ladder, 3 networks a rung: a measure that rises by 2 sd",
            np.array([opens((0, 2, 4), 1) for _ in range(repeats)]),
            0.8,
        ),
        finds(
            "ladder, 3 networks a rung: a measure that rises by 4 sd",
            np.array([opens((0, 4, 8), 1) for _ in range(repeats)]),
            0.8,
        ),
    ]


def _starts(rng: np.random.Generator, repeats: int) -> list[Check]:
    """Twelve starts, two networks each: Student over all as if independent, and over means of starts."""

    def networks(mean: float) -> Float[np.ndarray, "start two"]:
        shared = np.sqrt(SHARED) * rng.normal(size=(12, 1))
        return mean + shared + np.sqrt(1 - SHARED) * rng.normal(size=(12, 2))

    def above(studies: list[np.ndarray]) -> Bool[np.ndarray, " repeat"]:
        return np.array([small_samples.over_seeds(study)[2] <= ALPHA for study in studies])

    no_effect = [networks(0.0) for _ in range(repeats)]
    effect = [networks(1.0) for _ in range(repeats)]
    return [
        errs(
            "same starts: 24 networks as 24 seeds, no effect", above([study.ravel() for study in no_effect])
        ),
        errs("same starts: 12 means of two, no effect", above([study.mean(axis=1) for study in no_effect])),
        finds(
            "same starts: 12 means of two, an effect of 1 sd",
            above([study.mean(axis=1) for study in effect]),
            0.8,
        ),
    ]


def _scatter(rng: np.random.Generator, repeats: int, n: int = 5) -> list[Check]:
    """Entropies of 28 heads, 0.3 nats apart, whose means over trainings do not differ unless said; trainings
    of the first data set deviate by 0.2 nats, as heads of a layer do in the study."""

    def study(deviation: float, shift: float, matched: bool) -> bool:
        base = rng.normal(2, 0.3, (28, ENTROPY_TIMESTEPS))
        moves = rng.normal(size=(2 * n, 28, 1)) + 0.3 * rng.normal(size=(2 * n, 28, ENTROPY_TIMESTEPS))
        heads = base + np.repeat([0.2, deviation], n)[:, None, None] * moves
        heads[:n] += shift
        in_any_order(rng, heads)
        layers = LAYERS
        if not matched:
            heads, layers = heads.reshape(2 * n, 7, 4, -1).mean(axis=2), LAYERS[::4]
        return network_divergence.compare(heads[:n], heads[n:], layers).p <= ALPHA

    def shares(deviation: float, shift: float, matched: bool) -> Bool[np.ndarray, " repeat"]:
        return np.array([study(deviation, shift, matched) for _ in range(repeats)])

    return [
        errs("divergence, equal means: one side scatters 1.25 times as much", shares(0.25, 0, True)),
        errs("divergence, equal means: one side scatters twice as much", shares(0.4, 0, True)),
        errs("divergence of layers' means, equal: one side twice as much", shares(0.4, 0, False)),
        finds("divergence of layers' means: a difference of 0.2 nats", shares(0.2, 0.2, False), 0.8),
    ]
