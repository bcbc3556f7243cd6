"""Over how many components is damage spread, in networks of one data set? And does a measure rise on the
ladder?

The effective number of components of one network, exp of the entropy of |damage|, falls with any scatter of
damage between trainings: a data set whose trainings are less stable would pass for one of simpler circuits.
So damage is averaged over trainings (by signed cube roots, as damage is skewed and of either sign) *before*
its effective number is taken, and what is left of the scatter, a bias of order 1 / n, is taken off by the
jackknife (Tukey 1958), whose pseudo-values are treated as one value a training. Heads of a layer have no
order, so that theirs becomes the layer's mean: in both data sets alike.

A measure of complexity is worth a verdict only if it orders pictures whose order is known: rungs 0, 2 and 4
of the ladder of synthetic faces (`ordered`). Ours.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis.effects import effective_number
from mechdiff.stats import small_samples

Damages = Float[np.ndarray, "network component *m"]


def log_spread(damage: Damages) -> Float[np.ndarray, "*m"]:
    """Log of the effective number of components of the mean damage over networks, a mean of cube roots."""
    mean = np.cbrt(damage).mean(axis=0) ** 3
    return np.log(effective_number(mean.reshape(len(mean), -1))).reshape(mean.shape[1:])


def pseudo_values(damage: Float[np.ndarray, "network component"]) -> Float[np.ndarray, " network"]:
    """`log_spread`, free of its bias of order 1 / n, as one value a network; NaN for a single one.

    Example:
      >>> pseudo_values(np.ones((3, 8))).round(3) == np.log(8).round(3)
      array([ True,  True,  True])
    """
    count = len(damage)
    if count < 2:
        return np.full(count, np.nan)
    without = np.array([log_spread(np.delete(damage, i, axis=0)) for i in range(count)])
    return stats.pseudo_values(log_spread(damage), without)


def ordered(rungs: Sequence[Float[np.ndarray, " _"]], pseudo: bool = False) -> tuple[bool, float]:
    """Whether a measure rises from each rung to the next, and the p of that.

    Args:
      rungs: a value a network, from the simplest pictures up.
      pseudo: whether these are pseudo-values.

    Returns:
      Whether the means rise; and the largest of Welch's one-sided p of neighbors, a test of "somewhere it
      does not rise" (an intersection-union test: no correction is due). NaN where a rung has fewer than 3
      networks, or there are fewer than 2 rungs.
    """
    steps = [
        small_samples.between_groups(high, low, pseudo=pseudo) for low, high in itertools.pairwise(rungs)
    ]
    if not steps:
        return False, float("nan")
    return all(step[0] > 0 for step in steps), float(np.max([step[2] for step in steps]))
