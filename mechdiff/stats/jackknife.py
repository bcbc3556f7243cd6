"""Student's interval of any function of weighted units, by leaving out one unit at a time.

Bootstrap resamples of few units spread too little, and quantiles of them can't make up for it: BCa intervals
of faithfulness from 8 images covered .90 instead of .95. The jackknife's variance (Tukey 1958; Efron &
Tibshirani 1993, chapter 11) with Student's quantile is wide enough for smooth functions of means.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from mechdiff.stats.clusters import Units
from mechdiff.stats.intervals import Arm, Interval, Statistic
from mechdiff.stats.weights import check_units


def jackknife_interval(statistic: Statistic, units: Units, confidence: float = 0.95) -> Interval:
    """The estimate +- Student's quantile t_{n-1} times the jackknife's standard error, with n the effective
    number of units (`Units.effective`).

    Args:
      statistic: maps weights of images, `[m, image]` or `[m, t, image]`, each set of which sums to 1, to
        `[*cells, m]`; a smooth function of them.
      units: left out one at a time.
      confidence: nominal coverage, in (0, 1).

    Returns:
      Interval whose `n` counts units. NaN cells stay NaN.

    Raises:
      ConfigError: fewer than 2 units.
    """
    n = check_units(units.count)
    estimate = np.asarray(statistic(units.even())[..., 0])
    values = statistic(without_each(units))
    half = special.stdtrit(max(units.effective - 1, 1), (1 + confidence) / 2) * jackknife_error(values)
    return Interval(
        estimate=estimate,
        low=np.asarray(estimate - half),
        high=np.asarray(estimate + half),
        confidence=confidence,
        n=n,
    )


def without_each(units: Units) -> np.ndarray:
    """Weights of images with each unit left out in turn."""
    return units.weights((1.0 - np.eye(units.count)) / (units.count - 1))


def jackknife_error(values: Float[np.ndarray, "*cells unit"]) -> Float[np.ndarray, "*cells"]:
    """Standard error of a statistic, from its values with each unit left out in turn."""
    n = values.shape[-1]
    return np.asarray(np.sqrt((n - 1) * values.var(axis=-1)))


def ratio_influence(
    baseline: Arm, changed: Arm, increase: Float[np.ndarray, "*#cells 1"] | None = None
) -> Float[np.ndarray, "*cells unit"]:
    """What each unit adds to 100 (mean changed / mean baseline - 1), in %: the jackknife's first order.

    100 (x - r b) / mean b of a unit's values x and b, with r the ratio of means (delta method, Efron &
    Tibshirani 1993, section 21.6). The standard error of the relative increase is that of the mean of these,
    which is 0; where all x are b they are exactly 0.

    Args:
      baseline: of positive mean; cells broadcast.
      increase: the relative increase (%) that a null hypothesis states, whose ratio is then taken for r; the
        mean of what is returned is by how much the observed one exceeds it. None: the observed one.

    Example:
      >>> ratio_influence(np.array([1.0, 3.0]), np.array([2.0, 6.0]))
      array([0., 0.])
    """
    base = baseline.mean(axis=-1, keepdims=True)
    added = changed - baseline
    ratio = added.mean(axis=-1, keepdims=True) / base if increase is None else increase / 100
    return 100 * (added - ratio * baseline) / base


def pseudo_values(
    estimate: float | Float[np.ndarray, "*cells"], without: Float[np.ndarray, "*cells unit"]
) -> Float[np.ndarray, "*cells unit"]:
    """Tukey's pseudo-values, n f - (n - 1) f_i with f_i the statistic without unit i.

    Their mean is free of the bias of order 1 / n, and they are treated as n independent values.

    Args:
      estimate: f.
      without: f_i.
    """
    n = without.shape[-1]
    return n * np.asarray(estimate)[..., None] - (n - 1) * without
