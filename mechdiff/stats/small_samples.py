"""Tests and intervals whose unit of replication is the training seed: one network each.

All networks of a data set are measured on the same images. The choice of these moves all seeds together and
can't be seen in their spread. Where a number can be computed again on resampled images, that variance is
added (Satterthwaite): seeds and images are two crossed sources of error. Their interaction counts in both, so
such intervals are slightly too wide.

Where nothing scatters there is no error to judge by: interval and p are NaN, and no verdict rests on them.
Sizes are whole numbers, though, and equal ones may stand for sizes that differ by less than 1. So the
variance of `sizes` (given by their logs) is at least that of rounding, 1 / 12 of a unit^2, which raises that
of up to 12 networks only where all are equal (since 2026-11-30). Of two groups of three networks whose sizes
scatter by 0 to 1 before they are rounded, one was called larger without being so in at most .041 of 4,000
simulations, and where it was larger by 2 units in 1.00 (no scatter) to .53 (by 1).
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from mechdiff.stats.intervals import resampled_variance, satterthwaite
from mechdiff.stats.weights import check_units

MIN_SEEDS = 3  # training seeds that a test needs
ROUNDING = 1 / 12  # variance of what is rounded to a whole number
Ends = tuple[float, float]


def over_seeds(
    values: Float[np.ndarray, " seed"],
    draws: Float[np.ndarray, "seed m"] | None = None,
    images: float = 0,
    above: bool = True,
    null: float = 0.0,
    sizes: bool = False,
) -> tuple[float, Ends, float]:
    """Mean, Student's 95 % interval and one-sided p over training seeds; NaN where fewer than `MIN_SEEDS`, or
    all are equal.

    Args:
      draws: the values in resamples of the images, each resample the same for all seeds.
      images: number of units that were resampled: images, or what people count as (`Units.effective`).
      above: whether p is of `null` against a larger mean.
      sizes: whether values are logs of whole numbers, which were rounded.
    """
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < MIN_SEEDS:
        return mean, (np.nan, np.nan), np.nan
    sources = [_of_mean(values, sizes)]
    if draws is not None:
        sources.append(resampled_variance(draws.mean(axis=0), images))
    return mean, *_student(mean, satterthwaite(*sources), above, null)


def between_groups(
    first: Float[np.ndarray, " seed"],
    second: Float[np.ndarray, " other"],
    draws: Float[np.ndarray, " m"] | None = None,
    images: float = 0,
    pseudo: bool = False,
    sizes: bool = False,
) -> tuple[float, Ends, float]:
    """Difference of means of two groups of networks, with Welch's (1947) 95 % interval and one-sided p of no
    difference against a larger first mean: the groups may scatter differently. NaN where either has fewer
    than `MIN_SEEDS`, or nothing scatters.

    Args:
      draws: the difference in resamples of the images.
      images: number of units that were resampled, in the group with fewer.
      pseudo: whether values are a jackknife's. These depend on each other, and the more skewed they are, the
        more their spread goes with their mean. So the variance is raised by n / (n - 1), and the degrees of
        freedom are those of the smaller group, n - 1. Without this, a side that scatters twice as much was
        called the higher one in .077 of simulations instead of .05.
      sizes: whether values are logs of whole numbers, which were rounded.
    """
    sides = [np.asarray(side, np.float64) for side in (first, second)]
    mean, n = float(sides[0].mean() - sides[1].mean()), min(map(len, sides))
    if n < MIN_SEEDS:
        return mean, (np.nan, np.nan), np.nan
    sources = [_of_mean(side, sizes) for side in sides]
    if pseudo:
        sources = [(sum(variance for variance, _ in sources) * n / (n - 1), n - 1)]
    if draws is not None:
        sources.append(resampled_variance(draws, images))
    return mean, *_student(mean, satterthwaite(*sources), True, 0.0)


def jackknife_interval(
    statistic: Callable[[Sequence, Sequence], float],
    first: Sequence,
    second: Sequence,
    estimate: float,
    draws: Float[np.ndarray, " m"] | None = None,
    images: float = 0,
) -> Ends:
    """95 % interval of a function of the networks of two data sets, by leaving out one network at a time
    (Efron & Tibshirani 1993, chapter 11); NaN where there are fewer than `MIN_SEEDS` of either.

    Args:
      draws, images: the function in resamples of the images, as in `over_seeds`.
    """
    n = min(len(first), len(second))
    if n < MIN_SEEDS:
        return (np.nan, np.nan)
    without_first = [statistic(_without(first, i), second) for i in range(len(first))]
    without_second = [statistic(first, _without(second, i)) for i in range(len(second))]
    sources = [(float(sum((len(x) - 1) * np.var(x) for x in (without_first, without_second))), n - 1)]
    if draws is not None:
        sources.append(resampled_variance(draws, images))
    return _student(estimate, satterthwaite(*sources), True, 0.0)[0]


def _without(items: Sequence, index: int) -> list:
    return [*items[:index], *items[index + 1 :]]


def _of_mean(values: Float[np.ndarray, " seed"], sizes: bool) -> tuple[float, int]:
    """Variance of the mean of values, and its degrees of freedom."""
    n = check_units(len(values))
    # The variance of a logarithm is that of a size over its square.
    least = ROUNDING * np.exp(-2 * values.mean()) if sizes else 0.0
    spread = float(values.var(ddof=1)) if np.ptp(values) else 0.0  # the mean of equal values may be rounded
    return max(spread, float(least)) / n, n - 1


def _student(
    mean: float, error_and_freedom: tuple[float, float], above: bool, null: float
) -> tuple[Ends, float]:
    """Student's 95 % interval and one-sided p of a mean, from its standard error and degrees of freedom; NaN
    where the error is 0, since then nothing says how sure the mean is."""
    error, freedom = error_and_freedom
    if error == 0:
        return (np.nan, np.nan), np.nan
    half = float(stdtrit(freedom, 0.975)) * error
    excess = null - mean if above else mean - null
    return (mean - half, mean + half), float(stdtr(freedom, excess / error))
