"""Effects with intervals, saved as variables of a sweep together with its losses, and as a table.

For every ablation: `delta_loss` at each timestep and `pooled_delta_loss`, each with `_low`, `_high` (95 %
interval over images, or people where they are known) and `_p`; `delta_loss_n` counts what intervals are over.
Units and long names are in `storage.descriptions`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from mechdiff import stats
from mechdiff.analysis import effects, paired, precision
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.stats import Interval

# What an interval's numbers are called behind its name.
ENDS = {"estimate": "", "low": "_low", "high": "_high"}
VARIABLES = (
    *(f"{name}{end}" for name in ("delta_loss", "pooled_delta_loss") for end in (*ENDS.values(), "_p")),
    "delta_loss_n",
)
COLUMNS = ["component", "type", "delta_loss", "low", "high", "p", "n"]


def with_effects(sweep: xr.Dataset) -> xr.Dataset:
    """A finished sweep with the effects of all its ablations as `VARIABLES`, computed if they are missing.

    Args:
      sweep: as `ablation.ablation_sweep` makes it, at least 2 images.

    Raises:
      ConfigError, CheckpointError: see `effects.measure`.

    Example:
      >>> with_effects(sweep).pooled_delta_loss.sel(component="mid.attn0.head1")  # doctest: +SKIP
    """
    if has_effects(sweep):
        return sweep
    ablations = [str(name) for name in sweep["ablation"].values]
    measured = [effects.measure(sweep, name) for name in ablations]
    p = [
        np.where(precision.lost(side.pooled, side.precision_error), 1.0, paired.pooled_p(sweep, name))
        for name, side in zip(ablations, measured, strict=True)
    ]
    cells = stacked("delta_loss", ("ablation", "component", "t"), [side.cells for side in measured])
    pooled = stacked("pooled_delta_loss", ("ablation", "component"), [side.pooled for side in measured])
    return sweep.assign(
        cells
        | pooled
        | {
            "delta_loss_p": (("ablation", "component", "t"), np.stack([side.p for side in measured])),
            "pooled_delta_loss_p": (("ablation", "component"), np.stack(p)),
            "delta_loss_n": ((), measured[0].pooled.n),
        }
    )


def has_effects(sweep: xr.Dataset) -> bool:
    """Whether `with_effects` was there, and the images are still those that it saw."""
    if not all(name in sweep for name in VARIABLES):
        return False
    return int(sweep["delta_loss_n"]) == stats.units_of(sweep).count


def without_effects(sweep: xr.Dataset) -> xr.Dataset:
    """The losses alone, as `ablation.ablation_sweep` makes them."""
    return sweep.drop_vars(VARIABLES, errors="ignore")


def stacked(name: str, dims: tuple[str, ...], intervals: Sequence[Interval]) -> dict:
    """Variables `name`, `name_low` and `name_high` of intervals, stacked along the first dimension."""
    return {
        f"{name}{suffix}": (dims, np.stack([getattr(interval, end) for interval in intervals]))
        for end, suffix in ENDS.items()
    }


def effect_table(sweep: xr.Dataset, ablation: str) -> pd.DataFrame:
    """All components of a sweep, the largest loss increase first.

    Args:
      sweep: with or without saved effects.

    Returns:
      `COLUMNS`: component, type, delta_loss (% of the loss, pooled over timesteps), low, high (95 %
      interval), p (sign flips, max-T over components), n (images, or people where they are known).

    Raises:
      ConfigError: an ablation that was not swept.
    """
    if ablation not in sweep["ablation"].values:
        raise ConfigError(unknown("ablation", ablation, sweep["ablation"].values))
    chosen = sweep.sel(ablation=[ablation])  # so that only these are computed, where none are saved
    pooled = with_effects(chosen).sel(ablation=ablation)
    columns = {
        "component": sweep["component"].values.astype(str),
        "type": sweep["component_type"].values.astype(str),
        "delta_loss": pooled["pooled_delta_loss"].values,
        "low": pooled["pooled_delta_loss_low"].values,
        "high": pooled["pooled_delta_loss_high"].values,
        "p": pooled["pooled_delta_loss_p"].values,
        "n": int(pooled["delta_loss_n"]),
    }
    frame = pd.DataFrame(columns)[COLUMNS]
    return frame.sort_values("delta_loss", ascending=False, kind="stable", ignore_index=True)
