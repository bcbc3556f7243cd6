"""Intervals and tests over few training seeds, with shared images as a second source of error."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from mechdiff import stats

FEWEST = 3  # training seeds that a test takes


def over_seeds(
    values: Float[np.ndarray, " seed"],
    draws: Float[np.ndarray, "seed m"] | None = None,
    images: int = 0,
    above: bool = True,
    null: float = 0.0,
) -> tuple[float, tuple[float, float], float]:
    """Mean, Student's 95 % interval and one-sided p over training seeds; NaN where fewer than `FEWEST`.

    Every network of a data set sees the same pictures, so that how these were drawn moves all seeds together
    and can't be seen in their spread. With `draws` its variance is added: seeds and images are two crossed
    sources of error. What one seed makes of one image counts in both, so that intervals are rather too wide.

    Args:
      draws: the values in resamples of the images, each resample the same for all seeds.
      images: that were resampled.
    """
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < FEWEST:
        return mean, (np.nan, np.nan), np.nan
    parts = [(float(values.var(ddof=1)) / n, n - 1)]
    if draws is not None:
        parts.append(stats.resampled_variance(draws.mean(axis=0), images))
    error, freedom = stats.satterthwaite(*parts)
    half = float(stdtrit(freedom, 0.975)) * error
    p = float(stdtr(freedom, (null - mean if above else mean - null) / error)) if error else np.nan
    return mean, (mean - half, mean + half), p


def jackknife_interval(
    statistic: Callable[[Sequence, Sequence], float],
    first: Sequence,
    second: Sequence,
    estimate: float,
    draws: Float[np.ndarray, " m"] | None = None,
    images: int = 0,
) -> tuple[float, float]:
    """95 % interval of a function of the networks of two data sets, by leaving out one network at a time
    (Efron & Tibshirani 1993, chapter 11); NaN where there are fewer than `FEWEST` of either.

    Args:
      draws, images: the function in resamples of the images, as in `over_seeds`.
    """
    n = min(len(first), len(second))
    if n < FEWEST:
        return (np.nan, np.nan)
    without = lambda items, index: [*items[:index], *items[index + 1 :]]
    left = [statistic(without(first, i), second) for i in range(len(first))]
    right = [statistic(first, without(second, i)) for i in range(len(second))]
    parts = [(float(sum((len(x) - 1) * np.var(x) for x in (left, right))), n - 1)]
    if draws is not None:
        parts.append(stats.resampled_variance(draws, images))
    error, freedom = stats.satterthwaite(*parts)
    half = float(stdtrit(freedom, 0.975)) * error
    return estimate - half, estimate + half
