"""Student's interval of any function of weighted units, by leaving out one unit at a time.

A bootstrap of a few units spreads too little and, being a set of quantiles, can't widen to make up for it:
BCa intervals of faithfulness from 8 images covered .90 for .95. The jackknife's variance (Tukey 1958; Efron
& Tibshirani 1993, chapter 11) with Student's quantile does for smooth functions of means.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from mechdiff.stats.clusters import Units
from mechdiff.stats.intervals import Interval, Statistic
from mechdiff.stats.weights import check_units


def jackknife_interval(statistic: Statistic, units: Units, confidence: float = 0.95) -> Interval:
    """Estimate +- t_{n-1} times the jackknife's standard error, n units.

    Args:
      statistic: maps weights of images `[m, image]`, rows summing to 1, to `[*cells, m]`; smooth in them.
      units: that are left out, one at a time.
      confidence: nominal coverage, in (0, 1).

    Returns:
      Interval whose `n` counts units. NaN cells stay NaN.
    """
    estimate = statistic(units.even())[..., 0]
    without = (1.0 - np.eye(check_units(units.count))) / (units.count - 1)
    values = statistic(units.weights(without))
    half = special.stdtrit(units.count - 1, (1 + confidence) / 2) * jackknife_error(values)
    ends = {"low": np.asarray(estimate - half), "high": np.asarray(estimate + half)}
    return Interval(estimate=np.asarray(estimate), **ends, confidence=confidence, n=units.count)


def jackknife_error(values: Float[np.ndarray, "*cells unit"]) -> Float[np.ndarray, "*cells"]:
    """Standard error from the values without each unit in turn."""
    n = values.shape[-1]
    return np.asarray(np.sqrt((n - 1) * values.var(axis=-1)))


def pseudo_values(
    estimate: float | Float[np.ndarray, "*cells"], without: Float[np.ndarray, "*cells unit"]
) -> Float[np.ndarray, "*cells unit"]:
    """Tukey's pseudo-values n f - (n - 1) f without i: their mean is free of the bias of order 1 / n, and
    they are treated as n independent values."""
    n = without.shape[-1]
    return n * np.asarray(estimate)[..., None] - (n - 1) * without
