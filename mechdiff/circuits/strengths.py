"""How strong an interaction of two components is, relative to the cost that it concerns.

A strength is a ratio of two measured costs, the lower of which may be near 0. Its interval is Fieller's
(1954, JRSS B 16:175): all ratios r for which numerator - r denominator may be 0, by Student's quantile and
the jackknife's variances; it has no upper end where the denominator may be 0. Which of a pair is the
costlier, and whether they back each other up, is taken as measured. In simulations of six kinds of pairs with
costs of log-sd .5 and 1 over 4, 8, 16 and 64 images (600 times each), intervals covered .94 to .99.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from mechdiff.stats import Interval, Units
from mechdiff.stats.intervals import Statistic
from mechdiff.stats.jackknife import without_each

Pairs = Float[np.ndarray, " pair"]


def strengths(singles: Float[np.ndarray, "2 pair"], joint: Pairs) -> Pairs:
    """Size of an interaction relative to the cost that it concerns.

    With singles s <= c and the joint cost j (relative loss increases), for a positive interaction it is
    1 - c / (j - s), the fraction of the costlier component's cost that the other one repairs: 1 for a full
    backup, between 0 and 1 for a partial one. For a negative interaction it is (s + c - j) / s: 1 if the two
    have no effect without each other, 2 if they cancel, and more where the lesser costs almost nothing alone.
    NaN if the denominator is not positive.

    Example (half of an error is repaired, which is three quarters of its square):
      >>> strengths(np.array([[25.0], [0.0]]), np.array([100.0]))
      array([0.75])
    """
    lesser, costlier = np.sort(singles, axis=0)
    interaction = joint - lesser - costlier
    cost = np.where(interaction > 0, joint - lesser, lesser)
    return np.where(cost > 0, np.abs(interaction) / np.where(cost > 0, cost, 1), np.nan)


def strength_interval(costs: Statistic, units: Units, confidence: float = 0.95) -> Interval:
    """`strengths` with Fieller's interval over images or people; at least 0, NaN where the strength is.

    Args:
      costs: maps weights of images to relative loss increases without the first, the second and both of each
        pair, `[3, pair, m]`.

    Example (a cost of 3 +- 1 and one of 5 +- 1, of 16 images; 12 +- 1 without both):
      >>> images = np.random.default_rng(0).normal([[[3.0]], [[5.0]], [[12.0]]], 4, (3, 1, 16))
      >>> units = Units(np.arange(16), 16, False)
      >>> interval = strength_interval(lambda weights: images @ weights.T, units)
      >>> bool(interval.low < interval.estimate < interval.high)
      True
    """
    even = costs(units.even())[..., 0]
    estimate = strengths(even[:2], even[2])
    backup = even[2] > even[0] + even[1]
    lesser = np.argmin(even[:2], axis=0)

    def parts(of: Float[np.ndarray, "3 pair m"]) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator of the strength, `[pair, m]` each."""
        interaction = of[2] - of[0] - of[1]
        least = np.take_along_axis(of[:2], lesser[None, :, None], axis=0)[0]
        sign = np.where(backup, 1, -1)[:, None]
        return sign * interaction, np.where(backup[:, None], of[2] - least, least)

    n = units.count
    above, below = (part[:, 0] for part in parts(even[..., None]))
    left_out = np.stack(parts(costs(without_each(units))))
    left_out = left_out - left_out.mean(axis=-1, keepdims=True)
    variance = (n - 1) / n * np.einsum("apm,bpm->abp", left_out, left_out)
    quantile = special.stdtrit(max(units.effective - 1, 1), (1 + confidence) / 2)
    # Ratios r with square r^2 - 2 product r + rest <= 0.
    square, product, rest = (
        first * second - quantile**2 * variance[i, j]
        for first, second, i, j in ((below, below, 1, 1), (above, below, 0, 1), (above, above, 0, 0))
    )
    root = np.sqrt(np.maximum(product**2 - square * rest, 0))
    bounded = square > 0
    divisor = np.where(bounded, square, 1.0)
    # Where the denominator may be 0, all ratios beyond the positive root; of no interaction all of them.
    beyond = np.where(square < 0, (product - root) / np.where(square < 0, square, 1.0), np.inf)
    low = np.where(bounded, (product - root) / divisor, np.where(rest > 0, beyond, 0.0))
    high = np.where(bounded, (product + root) / divisor, np.inf)
    unknown = np.isnan(estimate)
    return Interval(
        estimate=estimate,
        low=np.where(unknown, np.nan, np.maximum(low, 0)),
        high=np.where(unknown, np.nan, high),
        confidence=confidence,
        n=n,
    )
