"""Effective number of components of the networks of a data set, and a test that a measure rises with
complexity.

With d the pooled relative loss increase of a component (%), the effective number of one network, exp of the
entropy of the shares of |d|, falls with any scatter of d between trainings: a data set whose trainings are
less stable would pass for one of simpler circuits. So d is averaged over trainings (by signed cube roots, as
it is skewed and of either sign) *before* the effective number is taken, and the bias of order 1 / n that is
left is removed by the jackknife (Tukey 1958), whose pseudo-values are treated as one value per training.
Heads of a layer have no order, so that theirs becomes the layer's mean, in both data sets alike.

A measure of complexity supports a verdict only if it orders images whose order is known: synthetic faces of
complexity 0, 2 and 4 (`ordered`). Definitions are ours.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mechdiff import stats
from mechdiff.stats import small_samples

Increases = Float[np.ndarray, "network component *m"]


def log_effective_number(increases: Increases) -> Float[np.ndarray, "*m"]:
    """Log of the effective number of components of the mean over networks, a mean of cube roots."""
    mean = np.cbrt(increases).mean(axis=0) ** 3
    return np.log(stats.effective_number(mean.reshape(len(mean), -1))).reshape(mean.shape[1:])


def pseudo_values(increases: Float[np.ndarray, "network component"]) -> Float[np.ndarray, " network"]:
    """`log_effective_number`, its bias of order 1 / n removed: one value per network, NaN for a single one.

    Example:
      >>> pseudo_values(np.ones((3, 8))).round(3) == np.log(8).round(3)
      array([ True,  True,  True])
    """
    count = len(increases)
    if count < 2:
        return np.full(count, np.nan)
    without = np.array([log_effective_number(np.delete(increases, i, axis=0)) for i in range(count)])
    return stats.pseudo_values(log_effective_number(increases), without)


def moved_by_noise(increases: Float[np.ndarray, "network component draws"]) -> float:
    """By how much resamples of images move `log_effective_number` on average, up or down: sampling noise
    makes small effects more alike, whatever the images show.

    Args:
      increases: on all images evenly weighted, then in resamples of them.
    """
    logs = log_effective_number(increases)
    return abs(float(logs[1:].mean() - logs[0]))


def ordered(
    rungs: Sequence[Float[np.ndarray, " _"]], pseudo: bool = False, sizes: bool = False
) -> tuple[bool, float]:
    """Whether a measure rises from each complexity to the next, and its p value.

    Args:
      rungs: for each complexity, from the lowest, a value per network.
      pseudo: whether these are pseudo-values.
      sizes: whether these are logs of whole numbers, see `small_samples`.

    Returns:
      Whether the means rise; and the largest of Welch's one-sided p of neighbors, a test of "somewhere it
      does not rise" (an intersection-union test: no correction is due). NaN where a complexity has fewer
      than 3 networks, nothing scatters, or there are fewer than 2 complexities.
    """
    steps = [
        small_samples.between_groups(high, low, pseudo=pseudo, sizes=sizes)
        for low, high in itertools.pairwise(rungs)
    ]
    if not steps:
        return False, float("nan")
    return all(step[0] > 0 for step in steps), float(np.max([step[2] for step in steps]))
