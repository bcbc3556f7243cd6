"""Numerical error of effects by reduced precision of products, as their sweep measured it."""

import dataclasses

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff.core.errors import CheckpointError
from mechdiff.stats import Interval


def relative_error(sweep: xr.Dataset, ablation: str) -> Float[np.ndarray, " component"]:
    """Error of relative loss increases by reduced precision, in points; 0 where products were in full
    precision.

    Raises:
      CheckpointError: it was not measured to the end.
    """
    if "precision_error" not in sweep:
        return np.zeros(sweep.sizes["component"])
    error = sweep["precision_error"].sel(ablation=ablation).values.astype(np.float64)
    if not np.isfinite(error).all():
        name = sweep.attrs.get("denoiser")
        raise CheckpointError(f"sweep of {name!r}: the error of its precision is missing; run it again")
    return error


def statement(sweep: xr.Dataset, pooled: Interval, error: Float[np.ndarray, " component"]) -> str | None:
    """One line on numerical error beside sampling error, None where products were in full precision.

    Args:
      pooled: relative loss increases of an ablation, with intervals that are wider by `error` at both ends.
      error: of `relative_error`.
    """
    if "precision_error" not in sweep:
        return None
    sampling = np.median((pooled.high - pooled.low) / 2 - error)
    facts = sweep.attrs
    return (
        f"products in {facts['precision']}: precision {error.max():.2g} points, sampling "
        f"{sampling:.2g} (the largest error of a component, measured on {facts['precision_images']} images x "
        f"{facts['precision_timesteps']} timesteps run in float32 too; the median half width of intervals)"
    )


def lost(interval: Interval, error: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Which effects the error of reduced precision may be all of: their p is 1."""
    return (error > 0) & (np.abs(interval.estimate) <= error)


def possible(interval: Interval, error: Float[np.ndarray, "..."] | float = 0.0) -> Interval:
    """An interval of relative loss increases, `widened`, within what is possible: no loss falls below 0.

    Example:
      >>> ends = {"low": np.array([-130.0]), "high": np.array([10.0])}
      >>> seen = Interval(estimate=np.array([-60.0]), **ends, confidence=0.95, n=2)
      >>> possible(seen).low.tolist(), possible(seen).high.tolist()
      ([-100.0], [10.0])
    """
    wide = widened(interval, error)
    return dataclasses.replace(wide, low=np.asarray(np.maximum(wide.low, -100)))


def widened(interval: Interval, error: Float[np.ndarray, "..."] | float) -> Interval:
    """An interval that reaches further by `error` at both ends."""
    return dataclasses.replace(
        interval, low=np.asarray(interval.low - error), high=np.asarray(interval.high + error)
    )
