"""Intervals of quantiles over images, by order statistics."""

import numpy as np
from jaxtyping import Float
from scipy import special

from mechdiff.stats.clusters import Units
from mechdiff.stats.intervals import Interval
from mechdiff.stats.shares import effective_images


def quantile_interval(
    values: Float[np.ndarray, "*cells t image"],
    units: Units,
    quantiles: tuple[float, ...],
    confidence: float = 0.95,
) -> Interval:
    """Quantiles of a number over images, with intervals that hold for any distribution of it.

    Their ends are two of the numbers that were seen (David & Nagaraja 2003, Order Statistics, section 7.1):
    they cover at least as often as they say. An end is infinite where none is far enough out, as that of a 5
    % quantile below, of fewer than 72 images. Where people are the units, images count as many as would
    scatter as much in how many lie below the quantile (Woodruff 1952, JASA 47:635), see `share_interval`.

    Args:
      values: of different images at each t, or t = 1.
      quantiles: shares in (0, 1).

    Returns:
      Interval `[*cells, quantile]`, whose `n` counts units.

    Example:
      >>> seen = quantile_interval(np.arange(20.0)[None], Units(np.arange(20), 20, False), (0.05, 0.5))
      >>> seen.low.tolist(), seen.high.tolist()
      ([-inf, 5.0], [3.0, 14.0])
    """
    flat = values.reshape(*values.shape[:-2], -1)
    n, ordered = flat.shape[-1], np.sort(flat, axis=-1)
    padded = np.concatenate(
        [np.full_like(ordered[..., :1], -np.inf), ordered, np.full_like(ordered[..., :1], np.inf)], axis=-1
    )
    estimate = np.moveaxis(np.quantile(flat, quantiles, axis=-1), 0, -1)
    ends = np.empty((*estimate.shape, 2))
    rank = np.arange(1, n + 1)
    for i, share in enumerate(quantiles):
        below = np.asarray(values <= estimate[..., i, None, None], np.float64)
        counted = effective_images(below, units, confidence)[..., None] / n  # of one image
        # Chance that fewer than so many images lie below the quantile.
        fewer = special.betaincc(rank * counted, (n - rank) * counted + 1, share)
        tail = (1 - confidence) / 2
        unknown = n * counted[..., 0] < 1  # less than one independent image: any quantile may be anywhere
        low = np.where(unknown, 0, (fewer <= tail).sum(axis=-1))
        high = np.where(unknown, n + 1, (fewer < 1 - tail).sum(axis=-1) + 1)
        for end, at in enumerate((low, high)):
            ends[..., i, end] = np.take_along_axis(padded, at[..., None], axis=-1)[..., 0]
    return Interval(
        estimate=estimate, low=ends[..., 0], high=ends[..., 1], confidence=confidence, n=units.count
    )
