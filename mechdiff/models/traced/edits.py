"""Interventions on a traced function: the edit of each named value, and its arguments."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import AnyArray, Timesteps
from mechdiff.interventions.components import PATTERN, site_type
from mechdiff.interventions.gates import blend
from mechdiff.interventions.record import ALWAYS, Intervention, directions_in_window, in_window
from mechdiff.models.traced.sites import Site, in_order


@dataclasses.dataclass(frozen=True)
class GateEdits:
    """How a gate edits a named value a: a' = gate a + (1 - gate) replacement + add.

    A pattern with a temperature is `tempered` first. Calling it is `interpreter.Plan.edit`.
    """

    sites: tuple[Site, ...]

    @functools.cached_property
    def _by_tag(self) -> dict[str, Site]:
        return {site.tag: site for site in self.sites}

    def __call__(self, tag: str, value: Array, leaves: Mapping[str, Array]) -> Array:
        """The edited value.

        Args:
          leaves: `gate`, `replacement` and, if there are any, `temperature` and `add`, of one turn of all
            scans; see `leaves_of`.
        """
        site = self._by_tag[tag]
        rows_first = jnp.moveaxis(value, site.row_axis, 0)
        if "temperature" in leaves:
            rows_first = tempered(rows_first, leaves["temperature"], site.unit_axis)
        edited = blend(rows_first, leaves["gate"], leaves["replacement"], site.unit_axis)
        if "add" in leaves:
            edited = edited + leaves["add"].astype(edited.dtype)
        return jnp.moveaxis(edited, 0, site.row_axis)

    def split_rows(self, tag: str, leaves: Mapping[str, Array]) -> dict[str, bool]:
        """Which leaves have an axis of rows: `interpreter.Plan.split_rows`."""
        rank = len(self._by_tag[tag].shape)
        ranks = {"gate": 2, "temperature": 2, "replacement": rank, "add": rank}
        return {name: leaf.ndim == ranks[name] for name, leaf in leaves.items()}


def tempered(
    pattern: Float[Array, "batch *rest keys"], temperature: Float[AnyArray, "..."], unit_axis: int
) -> Float[Array, "batch *rest keys"]:
    """A pattern as the softmax of its logits divided by a temperature: p ** (1 / T), normalized over keys.

    softmax(z / T) is proportional to exp(z) ** (1 / T), so that logits need not be known. A weight that is 0
    stays 0, a pattern at temperature 1 stays itself, bit by bit.

    Args:
      temperature: `(units,)`, or `(batch, units)` with one set per row.
      unit_axis: negative axis of the pattern that heads run along, not the last.
    """
    rows = temperature.shape[:-1]
    shape = list(rows or (1,)) + [1] * (pattern.ndim - 1)
    shape[unit_axis] = temperature.shape[-1]
    inverse = 1 / temperature.reshape(shape).astype(pattern.dtype)
    largest = pattern.max(axis=-1, keepdims=True)  # its power is 1: no T makes all weights vanish
    weights = jnp.where(pattern > 0, pattern / jnp.where(largest > 0, largest, 1), 1)
    powers = jnp.where(pattern > 0, weights**inverse, 0)
    total = powers.sum(axis=-1, keepdims=True)
    return jnp.where(inverse == 1, pattern, powers / jnp.where(total > 0, total, 1))


def identity_of(sites: Sequence[Site]) -> Intervention:
    """The intervention that changes nothing: gates 1, replacements 0, no temperatures."""
    gate, replacement = {}, {}
    for name, site in in_order(sites):
        gate[name] = np.ones(site.gate_count, np.float32)
        replacement[name] = np.zeros((1,) * (len(site.shape) - 1), np.float32)
    return Intervention(gate=gate, replacement=replacement, temperature={}, window=np.asarray(ALWAYS))


def leaves_of(sites: Sequence[Site], intervention: Intervention, t: Timesteps) -> dict[str, dict[str, Array]]:
    """Arguments of `GateEdits` at timesteps `t`, `(batch,)`: tag -> name of the argument -> array.

    The arrays of a value in scans have one leading axis for each scan, as long as the scan, outermost first.

    Raises:
      ConfigError: sites of the intervention and of the network differ, or shapes don't fit.
    """
    _check(sites, intervention)
    acting = in_window(intervention, t)
    ranks = {name: len(site.shape) - 1 for site in sites for name in site.names}
    directions = directions_in_window(intervention, t, ranks)
    leaves = {}
    for site in sites:
        at_site = {
            "gate": _stacked_turns(site, [acting.gate[name] for name in site.names]),
            "replacement": _stacked_turns(site, [acting.replacement[name] for name in site.names]),
        }
        if site.names[0] in acting.temperature:
            at_site["temperature"] = _stacked_turns(site, [acting.temperature[name] for name in site.names])
        if any(name in directions for name in site.names):
            nothing = jnp.zeros((1,) * len(site.shape))
            at_site["add"] = _stacked_turns(site, [directions.get(name, nothing) for name in site.names])
        leaves[site.tag] = at_site
    return leaves


def _stacked_turns(site: Site, leaves: Sequence[AnyArray]) -> Array:
    """One array from those of all turns of the scans, whose axes come first."""
    if not site.turns:
        return jnp.asarray(leaves[0])
    rank = max(np.ndim(leaf) for leaf in leaves)
    # Where one turn has an axis of rows, all get one.
    leaves = [leaf if np.ndim(leaf) == rank else jnp.asarray(leaf)[None] for leaf in leaves]
    stacked = jnp.stack(jnp.broadcast_arrays(*leaves))
    return stacked.reshape(*site.turns, *stacked.shape[1:])


def _check(sites: Sequence[Site], intervention: Intervention) -> None:
    if intervention.pattern:
        raise ConfigError(
            "`pattern` of an intervention acts on this package's UNet only; a named pattern is a site, and "
            "`replace_pattern` sets its gate and replacement"
        )
    known = {name: site for site in sites for name in site.names}
    for leaves in (intervention.gate, intervention.replacement):
        _check_known(known, leaves)
        missing = sorted(known.keys() - leaves.keys())
        if missing:
            raise ConfigError(
                f"the intervention lacks {len(missing)} sites, first {missing[0]!r}; "
                "build it from the denoiser's identity"
            )
    _check_temperatures(known, intervention)
    for name, gate in intervention.gate.items():
        if gate.shape[-1] != known[name].gate_count:
            expected = known[name].gate_count
            raise ConfigError(f"gate of {name!r} has {gate.shape[-1]} units, the site {expected}")
    for name, replacement in intervention.replacement.items():
        _check_fits("replacement", name, known[name], replacement)
    _check_known(known, intervention.add)
    for name, direction in intervention.add.items():
        _check_fits("direction", name, known[name], direction)


def _check_known(known: Mapping[str, Site], names: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(unknown("site", name, known))


def _check_temperatures(known: Mapping[str, Site], intervention: Intervention) -> None:
    for name, leaf in intervention.temperature.items():
        if name not in known or site_type(name) != PATTERN:
            patterns = [site for site in known if site_type(site) == PATTERN]
            raise ConfigError(unknown("named pattern", name, patterns))
        site = known[name]
        if np.shape(leaf)[-1] != site.gate_count:
            raise ConfigError(
                f"temperature of {name!r} has {np.shape(leaf)[-1]} heads, the site {site.gate_count}"
            )
        missing = [turn for turn in site.names if turn not in intervention.temperature]
        if missing:
            raise ConfigError(
                f"the intervention has a temperature of {name!r} and none of {missing[0]!r}, another turn of "
                "its scan; set_temperature names them all"
            )


def _check_fits(field: str, name: str, site: Site, leaf: Any) -> None:
    row, shape = site.shape[1:], tuple(np.shape(leaf))
    of_row = shape[1:] if len(shape) == len(row) + 1 else shape
    fits = len(of_row) == len(row) and all(size in (1, full) for size, full in zip(of_row, row, strict=True))
    if not fits:
        raise ConfigError(
            f"{field} of {name!r} has shape {shape}; it must have {len(row)} axes that broadcast to {row}, "
            "or one of rows before them"
        )


def per_turn(sites: Sequence[Site], captured: Mapping[str, Array]) -> dict[str, Array]:
    """Captured values, rows first, by the names of sites instead of tags: one for each turn of the scans."""
    values = {}
    for site in sites:
        if site.tag not in captured:
            continue
        value = captured[site.tag]
        depth = len(site.turns)
        flat = value.reshape(-1, *value.shape[depth:])
        for index, name in enumerate(site.names):
            values[name] = jnp.moveaxis(flat[index], site.row_axis, 0)
    return values
