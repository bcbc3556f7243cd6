"""From an intervention to what is done at each named value."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
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
    """`interpreter.Plan.edit` and `split_rows` for gates: a' = gate a + (1 - gate) replacement + add, a being
    tempered first if it is a pattern with a temperature."""

    sites: tuple[Site, ...]

    @functools.cached_property
    def _by_tag(self) -> dict[str, Site]:
        return {site.tag: site for site in self.sites}

    def __call__(self, tag: str, value: Array, leaves: Mapping[str, Array]) -> Array:
        site = self._by_tag[tag]
        rows_first = jnp.moveaxis(value, site.row_axis, 0)
        if "temperature" in leaves:
            rows_first = tempered(rows_first, leaves["temperature"], site.unit_axis)
        edited = blend(rows_first, leaves["gate"], leaves["replacement"], site.unit_axis)
        if "add" in leaves:
            edited = edited + leaves["add"].astype(edited.dtype)
        return jnp.moveaxis(edited, 0, site.row_axis)

    def split_rows(self, tag: str, leaves: Mapping[str, Array]) -> dict[str, bool]:
        """Which leaves have an axis of rows."""
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
    """The intervention that leaves every site alone: gates 1, replacements 0."""
    gate, replacement = {}, {}
    for name, site in in_order(sites):
        gate[name] = np.ones(site.units, np.float32)
        replacement[name] = np.zeros((1,) * (len(site.shape) - 1), np.float32)
    return Intervention(gate=gate, replacement=replacement, temperature={}, window=np.asarray(ALWAYS))


def leaves_of(sites: Sequence[Site], intervention: Intervention, t: Timesteps) -> dict[str, dict[str, Array]]:
    """Arguments of `GateEdits` at `t`: tag -> gate, replacement and, if there is one, temperature and add;
    turns of scans leading.

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
            "gate": _turned(site, [acting.gate[name] for name in site.names]),
            "replacement": _turned(site, [acting.replacement[name] for name in site.names]),
        }
        if site.names[0] in acting.temperature:
            at_site["temperature"] = _turned(site, [acting.temperature[name] for name in site.names])
        if any(name in directions for name in site.names):
            nothing = jnp.zeros((1,) * len(site.shape))
            at_site["add"] = _turned(site, [directions.get(name, nothing) for name in site.names])
        leaves[site.tag] = at_site
    return leaves


def _turned(site: Site, leaves: Sequence[AnyArray]) -> Array:
    """One array from those of all turns, with the axes of the scans first."""
    if not site.turns:
        return jnp.asarray(leaves[0])
    rank = max(np.ndim(leaf) for leaf in leaves)
    if any(np.ndim(leaf) != rank for leaf in leaves):  # rows for one turn: rows for all
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
        for name in leaves:
            if name not in known:
                raise ConfigError(unknown("site", name, known))
        missing = sorted(known.keys() - leaves.keys())
        if missing:
            raise ConfigError(
                f"the intervention lacks {len(missing)} sites, first {missing[0]!r}; "
                "build it from the denoiser's identity"
            )
    _check_temperatures(known, intervention)
    for name, gate in intervention.gate.items():
        if gate.shape[-1] != known[name].units:
            raise ConfigError(f"gate of {name!r} has {gate.shape[-1]} units, the site {known[name].units}")
    for leaves, what in ((intervention.replacement, "replacement"), (intervention.add, "direction")):
        for name, leaf in leaves.items():
            if name not in known:
                raise ConfigError(unknown("site", name, known))
            _check_fits(name, known[name], leaf, what)


def _check_temperatures(known: Mapping[str, Site], intervention: Intervention) -> None:
    for name, leaf in intervention.temperature.items():
        if name not in known or site_type(name) != PATTERN:
            patterns = [site for site in known if site_type(site) == PATTERN]
            raise ConfigError(unknown("named pattern", name, patterns))
        site = known[name]
        if np.shape(leaf)[-1] != site.units:
            raise ConfigError(
                f"temperature of {name!r} has {np.shape(leaf)[-1]} heads, the site {site.units}"
            )
        missing = [turn for turn in site.names if turn not in intervention.temperature]
        if missing:
            raise ConfigError(
                f"the intervention has a temperature of {name!r} and none of {missing[0]!r}, another turn of "
                "its scan; set_temperature names them all"
            )


def _check_fits(name: str, site: Site, leaf: Any, what: str) -> None:
    rank, row = np.ndim(leaf), site.shape[1:]
    shape = np.shape(leaf)[1:] if rank == len(site.shape) else np.shape(leaf)
    fits = rank in (len(row), len(row) + 1) and all(
        size in (1, full) for size, full in zip(shape, row, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{what} of {name!r} has shape {tuple(np.shape(leaf))}; it must have {len(row)} axes that "
            f"broadcast to {row}, or one of rows before them"
        )


def per_turn(sites: Sequence[Site], captured: Mapping[str, Array]) -> dict[str, Array]:
    """Captured values by the sites' own names, rows first."""
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
