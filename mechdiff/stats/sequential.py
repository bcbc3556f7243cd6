"""Intervals that hold at every sample size at once, so that one may look at the data and stop."""

import numpy as np
from jaxtyping import Float

from mechdiff.core.errors import ConfigError

Cells = Float[np.ndarray, " *cells"]


def confidence_sequence(
    n: int | np.ndarray, deviation: Cells, confidence: float = 0.95, planned: int = 100
) -> Float[np.ndarray, " *cells"]:
    """Half-widths of an asymptotic confidence sequence for means (Waudby-Smith et al. 2024, theorem 2.2).

    With probability `confidence` the mean +- this half-width holds the true mean at *all* n from some size
    on, and so at whatever n one stops, for whatever reason. Units are independent, of finite variance; the
    first few dozen are not covered by the theorem.

    Args:
      n: units seen.
      deviation: their standard deviation, per cell.
      planned: n at which the sequence is made tightest; it holds for every n.

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
    grown = n * r + 1
    return deviation * np.sqrt(2 * grown / (n * n * r) * (np.log(grown) / 2 + twice / 2))
