"""Rules that were found wrong: F1 to F5 by an outside audit of the first studies (November 2026), by its
numbering.

No verdict uses them. The calibration runs them on the same simulated data as the rules that replaced them, so
that its table says what each was and is.
"""

import numpy as np
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis.agreement import Side, rank_correlation
from mechdiff.analysis.effects import pooled_relative_increase
from mechdiff.analysis.network_divergence import NetworkDivergence
from mechdiff.stats import small_samples
from mechdiff.validation.checks import ALPHA


def first_listed(increase: Float[np.ndarray, "network component"]) -> tuple[bool, bool]:
    """F1: whether a bottleneck was `supported`, and whether it was `not supported`.

    Each component was compared with the mean of its type. The verdict read the interval of the component of
    smallest adjusted p: of the first one listed, where none was significant and all were 1.
    """
    excess = increase - increase.mean(axis=1, keepdims=True)
    answers = [small_samples.over_seeds(values) for values in excess.T]
    adjusted = stats.holm(np.array([p for *_, p in answers]))
    best = int(adjusted.argmin())
    low, high = answers[best][1]
    return bool(adjusted[best] <= ALPHA and low > 0), bool(high < 0)


def steps_alone(steps: Float[np.ndarray, "network k"]) -> bool:
    """F2: four phases against other numbers of phases, whatever a smooth drift achieves."""
    margin = steps[:, 3] - np.delete(steps, 3, axis=1).max(axis=1)
    _, (low, _), p = small_samples.over_seeds(margin)
    return bool(p <= ALPHA and low > 0)


def p_and_interval(result: NetworkDivergence) -> bool:
    """F3: a jackknife interval above 0 besides the exact p, which a degenerate statistic hardly gives."""
    return bool(result.p <= ALPHA and result.interval[0] > 0)


def normal_width(
    influence: Float[np.ndarray, "component n"], confidence: float, planned: int
) -> tuple[Float[np.ndarray, " component"], Float[np.ndarray, " component"]]:
    """F4: distances of the ends of a sequential sweep's intervals, without regard to few or skewed units."""
    count = influence.shape[-1]
    half = stats.confidence_sequence(count, influence.std(axis=-1, ddof=1), confidence, planned)
    return half, half


def each_network_alone(
    natural: Float[np.ndarray, "network component"], simple: Float[np.ndarray, "network component"]
) -> bool:
    """Complexity: effective numbers of single networks, which any scatter of trainings lowers."""
    first, second = (
        np.log([stats.effective_number(row[:, None])[0] for row in networks])
        for networks in (natural, simple)
    )
    return bool(small_samples.between_groups(first, second)[2] <= ALPHA)


def all_heads_alike(
    entropy: Float[np.ndarray, "head network"], increase: Float[np.ndarray, "head network"]
) -> bool:
    """Entropy and importance: over all heads, without regard to layers or to untrained networks."""
    _, (_, high), p = small_samples.over_seeds(rank_correlation(entropy, increase), above=False)
    return bool(p <= ALPHA and high < 0)


def resampled_ranks(sides: list[Side], units: list[stats.Units], repeats: int) -> tuple[float, float]:
    """Rank agreement: a percentile interval of resamples, each of which adds noise to the ranks again."""
    drawn = rank_correlation(
        *(
            pooled_relative_increase(*side, of_side.resamples(repeats, seed))
            for seed, (side, of_side) in enumerate(zip(sides, units, strict=True))
        )
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
