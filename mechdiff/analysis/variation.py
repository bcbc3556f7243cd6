"""How the effect of ablating a component varies over timesteps and over images, beside its mean.

A component may help at some timesteps and hurt at others, or matter for a few images only: its pooled
relative loss increase is then near 0. Definitions are ours, in terms of `effects.increase_by_image`.

Intervals allow for sampling noise, which raises `over_timesteps` (`stats.rms_interval`) and `over_images`,
and lowers `top_tenth`. Nominally .95, they covered the number of all 336 images of two shipped networks (zero
and mean ablation, 4 timesteps; 8 to 84 images at each, drawn from these; 40 times; 2026-11-30) in .88 to .92
(`over_images`) and .88 to .94 (`top_tenth`). Few images don't show how far rare ones reach: where one in ten
has nearly all of the effect, .55 and .59 of 8 images, .78 and .79 of 16.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from scipy import special

from mechdiff import stats
from mechdiff.analysis import effects

TENTH = 0.1  # of the images
COLUMNS = ["over_timesteps", "over_images", "hurt", "top_tenth"]
INTERVALS = {name: [f"{name}_low", f"{name}_high"] for name in COLUMNS}
MIN_UNITS = 4  # of which a jackknife says something
MIN_DISTANCE = 1e-6  # distance of a share from 0 and 1 whose logit is taken


def variation(sweep: xr.Dataset, ablation: str) -> pd.DataFrame:
    """Variation of each component's effect under one ablation, in the order of the sweep.

    Args:
      sweep: as `ablation.ablation_sweep` makes it.

    Returns:
      `component`, `COLUMNS`, and the ends of the 95 % interval of each of these over images, or people where
      they are known, with `_low` and `_high` behind its name: `over_timesteps`, root mean square over
      timesteps of the relative loss increase (%); `over_images`, the same over images of each one's
      contribution to the pooled one (%); `hurt`, images whose loss rises (%; `stats.share_interval`);
      `top_tenth`, share (%) of all contributions, by size, that comes from the tenth of the images that are
      affected most: 10 where all are affected alike, 100 where none of the others is, NaN where none is at
      all. All others are 0 where no prediction changed. Contributions are in percent of these images' mean
      loss, whose error is left out.

    Raises:
      ConfigError, CheckpointError: see `effects.losses`.

    Example:
      >>> variation(sweep, "zero").sort_values("over_images").tail(3)  # doctest: +SKIP
    """
    clean, loss = effects.losses(sweep, ablation)
    units = stats.units_of(sweep)
    by_image = effects.increase_by_image(clean, loss, effects.nested(sweep))
    # With all units, then without each in turn: weights of all contributions, which sum to 1.
    left_out = units.weights((1.0 - np.eye(units.count)) / (units.count - 1))
    weights = np.concatenate([units.even(), left_out])
    weights = np.broadcast_to(
        weights[:, None] if weights.ndim == 2 else weights, (len(weights), *by_image.shape[1:])
    )
    weights = weights.reshape(len(weights), -1) / by_image.shape[1]
    flat = by_image.reshape(len(by_image), -1)
    hurt = effects.hurt_share(sweep, clean, loss)
    over_timesteps = stats.rms_interval(
        lambda drawn: effects.relative_loss_increase(clean, loss, drawn), units
    )
    shares = np.array([top_share(values[None], TENTH, weights)[0] for values in flat])
    quantile = special.stdtrit(max(units.effective - 1, 1), 0.975)
    rms = np.sqrt(flat**2 @ weights.T)
    tenth = _with_ends(shares, quantile, (_logit, special.expit), (TENTH, 1))
    columns = {
        "over_timesteps": (over_timesteps.estimate, over_timesteps.low, over_timesteps.high),
        "over_images": _with_ends(rms, quantile, (np.log, np.exp), (0, np.inf)),
        "hurt": (100 * hurt.estimate, 100 * hurt.low, 100 * hurt.high),
        "top_tenth": tuple(100 * end for end in tenth),
    }
    frame: dict[str, np.ndarray] = {"component": sweep["component"].values.astype(str)}
    for name, values in columns.items():
        frame |= dict(zip([name, *INTERVALS[name]], values, strict=True))
    return pd.DataFrame(frame)


def top_share(
    values: Float[np.ndarray, "component image"],
    fraction: float,
    weights: Float[np.ndarray, "m image"] | None = None,
) -> Float[np.ndarray, " component *m"]:
    """Share of the summed sizes that the largest `fraction` of them holds, a fraction of one counted in part.

    NaN where all are 0.

    Args:
      weights: of the images, each of the m rows summing to 1; None: even ones, without the axis m.

    Example:
      >>> top_share(np.array([[0.0, 0.0, 0.0, -3.0], [1.0, 1.0, 1.0, 1.0]]), 0.5)
      array([1. , 0.5])
    """
    if weights is None:
        return top_share(values, fraction, stats.equal_weights(values.shape[1]))[:, 0]
    order = np.argsort(-np.abs(values), axis=1)
    sizes = np.take_along_axis(np.abs(values), order, axis=1)
    drawn = weights[:, order].swapaxes(0, 1)  # of each component's images, the largest first
    counted = np.clip(fraction - (drawn.cumsum(axis=-1) - drawn), 0, drawn)
    total = (drawn @ sizes[..., None])[..., 0]
    largest = (counted @ sizes[..., None])[..., 0]
    return np.where(total > 0, largest / np.where(total > 0, total, 1), np.nan)


def _logit(share: np.ndarray) -> np.ndarray:
    return special.logit(np.clip(share, MIN_DISTANCE, 1 - MIN_DISTANCE))


def _with_ends(
    values: Float[np.ndarray, "component units"],
    quantile: float,
    scale: tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]],
    bounds: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates with the ends of their intervals, from values of all units (first) and without each.

    On a scale without bounds, there and back: `quantile` jackknife standard errors outside of both the
    estimate and the estimate less its bias (Tukey 1958). Where the value is 0 with all units, or not known,
    it has no width. From fewer than `MIN_UNITS` units it is all that the value can be.
    """
    link, inverse = scale
    estimate = values[:, 0]
    positive = estimate > 0  # False for NaN
    scaled = link(np.where(positive[:, None], np.maximum(values, np.finfo(float).tiny), 1.0))
    error = stats.jackknife_error(scaled[:, 1:])
    unbiased = stats.pseudo_values(scaled[:, 0], scaled[:, 1:]).mean(axis=1)
    with np.errstate(over="ignore"):  # an end may be infinite
        low = inverse(np.minimum(scaled[:, 0], unbiased) - quantile * error)
        high = inverse(np.maximum(scaled[:, 0], unbiased) + quantile * error)
    if values.shape[1] <= MIN_UNITS:
        low, high = (np.full_like(estimate, bound) for bound in bounds)
    low = np.maximum(low, bounds[0])
    return estimate, np.where(positive, low, estimate), np.where(positive, high, estimate)
