"""Confidence sequences: intervals that hold at every sample size at once, for sequential designs."""

import numpy as np
from jaxtyping import Float
from scipy import special

from mechdiff.core.errors import ConfigError

Cells = Float[np.ndarray, " *cells"]


def confidence_sequence(
    n: int | np.ndarray, deviation: Cells, confidence: float = 0.95, planned: int = 100
) -> Float[np.ndarray, " *cells"]:
    """Half-widths of an asymptotic confidence sequence for means (Waudby-Smith et al. 2024, theorem 2.2).

    With probability `confidence` the mean +- this half-width contains the true mean at *all* n from some size
    on, and so at any n at which one stops, for whatever reason. Units are independent, with finite variance;
    the theorem is asymptotic and does not cover the first few dozen.

    Args:
      n: number of units so far.
      deviation: their standard deviation, per cell.
      planned: n at which the sequence is tightest; it holds for every n.

    Returns:
      Half-widths: `deviation` times sqrt(2 (n r + 1) / (n^2 r) ln(sqrt(n r + 1) / alpha)), alpha = 1 -
      confidence and r = (-2 ln alpha + ln(1 - 2 ln alpha)) / planned (their eq. 10).

    Raises:
      ConfigError: a confidence outside (0, 1), or n or planned below 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie between 0 and 1; 0.95 is usual")
    if np.min(n) < 1 or planned < 1:
        raise ConfigError(f"n={n}, planned={planned}: both must be at least 1")
    twice = -2 * np.log1p(-confidence)
    r = (twice + np.log1p(twice)) / planned
    growth = n * r + 1
    return deviation * np.sqrt(2 * growth / (n * n * r) * (np.log(growth) / 2 + twice / 2))


def skewed_sequence(
    influence: Float[np.ndarray, "*cells n"], confidence: float = 0.95, planned: int = 100
) -> tuple[Cells, Cells]:
    """Lower and upper half-widths of a confidence sequence, for few units and skewed distributions.

    `confidence_sequence` holds for many units. Two corrections make it wider, never narrower: its half-width
    in standard errors is taken for a normal quantile and replaced by Student's quantile of the same tail
    probability; and the end on the side of the longer tail is moved out by the first Cornish-Fisher term of a
    studentized mean, g (1 + 2 t^2) / (6 sqrt n), with g the sample's skewness (Johnson 1978; Hall 1992,
    section 2.6). They are approximations, which can't allow for a tail outside of the sample; their coverage
    under several distributions is measured in `validation`.

    Args:
      influence: contribution of each of n >= 3 units to each estimate; mean 0 over units.
      confidence, planned: as in `confidence_sequence`.

    Returns:
      Distances, each at least 0, of the lower and of the upper end from the estimate.
    """
    n = influence.shape[-1]
    centred = influence - influence.mean(axis=-1, keepdims=True)
    deviation = centred.std(axis=-1, ddof=1)
    error = deviation / np.sqrt(n)
    spread = np.where(error > 0, error, 1.0)
    normal = confidence_sequence(n, deviation, confidence, planned) / spread
    student = np.where(error > 0, -special.stdtrit(n - 1, special.ndtr(-normal)), 0.0)
    standard = centred / np.where(deviation > 0, deviation, 1.0)[..., None]
    skewness = n**2 / ((n - 1) * (n - 2)) * (standard**3).mean(axis=-1)
    shift = skewness * (1 + 2 * student**2) / (6 * np.sqrt(n)) * error
    half = student * error
    return half + np.maximum(-shift, 0), half + np.maximum(shift, 0)
