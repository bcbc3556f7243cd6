"""Directions that are added to activations: a' = a + strength * direction (steering)."""

import dataclasses

import numpy as np

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.core.types import AnyArray
from mechdiff.interventions.components import row_rank, select, site_type
from mechdiff.interventions.record import Intervention


def add_direction(
    intervention: Intervention, component: str, direction: AnyArray, strength: float = 1.0
) -> Intervention:
    """The intervention with `strength * direction` added to a component, besides what it does already.

    Args:
      component: name of one component.
      direction: `(channels,)`, the same at every position; or `(height, width, channels)`. For an attention
        head `(depth,)`, added to its output before the output projection.
      strength: in units of `direction`.

    Raises:
      ConfigError: an unknown component, or a direction of another rank or width or that is not finite. The
        width of a head is known, and checked, only where it is used.

    Example:
      >>> from mechdiff.interventions.record import ALWAYS
      >>> identity = Intervention({"mid.res": np.ones(4)}, {"mid.res": np.zeros((1, 1, 1))}, {}, ALWAYS)
      >>> add_direction(identity, "mid.res", np.ones(4), strength=2.0).add["mid.res"].shape
      (1, 1, 4)
    """
    chosen = select(intervention, [component])
    ((site, (start, _)),) = chosen.values()
    try:
        added = strength * np.asarray(direction, np.float32)
    except (TypeError, ValueError):
        added = np.array(np.nan)
    if not np.isfinite(added).all():
        raise ConfigError(f"direction {shorten(direction)} for {component}: expected finite numbers")
    if site_type(site) == "head":
        added = _at_head(component, added, intervention.gate[site].shape[-1], start)
    rank = row_rank(site)
    if added.ndim not in (1, rank):
        raise ConfigError(f"direction of shape {np.shape(direction)} for {component}: need (channels,)")
    width = np.shape(intervention.gate[site])[-1]
    if site_type(site) != "head" and width > 1 and added.shape[-1] != width:
        raise ConfigError(f"direction of {added.shape[-1]} channels for {component}, which has {width}")
    added = added.reshape((1,) * (rank - added.ndim) + added.shape)
    return dataclasses.replace(
        intervention, add=dict(intervention.add) | {site: added + intervention.add.get(site, 0.0)}
    )


def _at_head(component: str, direction: np.ndarray, heads: int, head: int) -> np.ndarray:
    if direction.ndim != 1:
        raise ConfigError(f"direction of shape {direction.shape} for head {component}: need (depth,)")
    placed = np.zeros((1, heads, len(direction)), np.float32)
    placed[0, head] = direction
    return placed
