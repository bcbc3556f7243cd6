"""How the effect of ablating a component varies over timesteps and over images, beside its mean.

A component may help at some timesteps and hurt at others, or matter for a few images only: its pooled
relative loss increase is then near 0. Definitions are ours, in terms of `effects.increase_by_image`.
"""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import effects

TENTH = 0.1  # of the images
COLUMNS = ["over_timesteps", "over_images", "hurt", "top_tenth"]
INTERVALS = {"hurt": ["hurt_low", "hurt_high"]}


def variation(sweep: xr.Dataset, ablation: str) -> pd.DataFrame:
    """Variation of each component's effect under one ablation, in the order of the sweep.

    Args:
      sweep: as `ablation.ablation_sweep` makes it.

    Returns:
      `component` and `COLUMNS`: `over_timesteps`, root mean square over timesteps of the relative loss
      increase (%); `over_images`, the same over images of each one's contribution to the pooled one (%);
      `hurt`, images whose loss rises (%), with `hurt_low` and `hurt_high`, the ends of its 95 % interval
      (`stats.share_interval`); `top_tenth`, share (%) of all contributions, by size, that comes from the
      tenth of the images that are affected most: 10 where all are affected alike, 100 where none of the
      others is, NaN where none is at all. All others are 0 where no prediction changed.

    Raises:
      ConfigError, CheckpointError: see `effects.losses`.

    Example:
      >>> variation(sweep, "zero").sort_values("over_images").tail(3)  # doctest: +SKIP
    """
    clean, loss = effects.losses(sweep, ablation)
    by_image = effects.increase_by_image(clean, loss, effects.nested(sweep)).reshape(len(loss), -1)
    hurt = effects.hurt_share(sweep, clean, loss)
    even = stats.equal_weights(clean.shape[-1])
    return pd.DataFrame(
        {
            "component": sweep["component"].values.astype(str),
            "over_timesteps": effects.rms_relative_increase(clean, loss, even)[:, 0],
            "over_images": np.sqrt((by_image**2).mean(axis=1)),
            "hurt": 100 * hurt.estimate,
            "hurt_low": 100 * hurt.low,
            "hurt_high": 100 * hurt.high,
            "top_tenth": 100 * top_share(by_image, TENTH),
        }
    )


def top_share(
    values: Float[np.ndarray, "component image"], fraction: float
) -> Float[np.ndarray, " component"]:
    """Share of the summed sizes that the largest `fraction` of them holds, a fraction of one counted in part.

    NaN where all are 0.

    Example:
      >>> top_share(np.array([[0.0, 0.0, 0.0, -3.0], [1.0, 1.0, 1.0, 1.0]]), 0.5)
      array([1. , 0.5])
    """
    sizes = -np.sort(-np.abs(values), axis=1)
    weights = np.clip(fraction * sizes.shape[1] - np.arange(sizes.shape[1]), 0, 1)
    total = sizes.sum(axis=1)
    return np.where(total > 0, (sizes @ weights) / np.where(total > 0, total, 1), np.nan)
