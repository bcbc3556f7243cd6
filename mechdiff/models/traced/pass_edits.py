"""The edits of many interventions: their arguments, and how many passes have joined at each named value."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Int

from mechdiff.core.types import PyTree, Timesteps
from mechdiff.interventions.record import Intervention
from mechdiff.models.traced.denoiser import TracedDenoiser, TracedNetwork
from mechdiff.models.traced.edits import GateEdits, leaves_of
from mechdiff.models.traced.interpreter import Leaves, Plan
from mechdiff.models.traced.programs import names_within
from mechdiff.models.traced.sites import in_order

SHARED = "replacement"  # the leaf of a site that all interventions share


@dataclasses.dataclass(frozen=True)
class Edits:
    """The edits of all named values, and the number of passes at each.

    Attributes:
      leaves: tag -> arguments of its edit, with a leading axis of passes (not `SHARED`), then turns of scans.
      passes: tag -> number of passes after it was edited, `(*turns)`; 1 if none has joined yet.
      plan: how to edit.
    """

    leaves: Leaves
    passes: Mapping[str, Int[np.ndarray, "*turns"]]
    plan: Plan

    def within(self, equation: JaxprEqn) -> "Edits":
        """The edits of the values that an equation holds."""
        tags = names_within(equation) & self.passes.keys()
        picked = {field: {tag: getattr(self, field)[tag] for tag in tags} for field in ("leaves", "passes")}
        return dataclasses.replace(self, **picked)

    def at_turn(self, turn: int) -> "Edits":
        """The edits of one turn of the outermost scan."""
        leaves = {
            tag: {name: leaf[turn] if name == SHARED else leaf[:, turn] for name, leaf in of_site.items()}
            for tag, of_site in self.leaves.items()
        }
        passes = {tag: np.asarray(counts[turn]) for tag, counts in self.passes.items()}
        return dataclasses.replace(self, leaves=leaves, passes=passes)

    def counts(self) -> set[int]:
        """All numbers of passes."""
        return {int(count) for counts in self.passes.values() for count in np.ravel(counts)}

    def of_passes(self, tags: Sequence[str], count: int) -> tuple[Leaves, Leaves]:
        """Leaves of the first `count` passes, and their axes for `vmap`."""
        leaves = {
            tag: {name: leaf if name == SHARED else leaf[:count] for name, leaf in self.leaves[tag].items()}
            for tag in tags
        }
        axes = {tag: _axes(leaves[tag]) for tag in tags}
        return leaves, axes


def edits_of(denoiser: TracedDenoiser, joins: Sequence[int], stacked: Intervention, t: Timesteps) -> Edits:
    """The edits of the clean pass and of stacked interventions; arguments as of `joining.predict_each`."""
    network = denoiser.network
    gates = GateEdits(network.sites)
    leaves = _leaves(denoiser, _after_identity(stacked, sum(joins)), t)
    return Edits(leaves, _passes(network, joins), Plan(gates, split_rows=gates.split_rows))


def site_depths(network: TracedNetwork) -> dict[str, int]:
    """Every site's depth: its number in the order of execution."""
    return {name: i for i, (name, _) in enumerate(in_order(network.sites))}


def _passes(network: TracedNetwork, joins: Sequence[int]) -> dict[str, Int[np.ndarray, "*turns"]]:
    """Name of a value -> number of passes that have joined there, with the clean one, turn by turn."""
    passes, depths = 1 + np.cumsum(joins), site_depths(network)
    return {
        site.tag: passes[[depths[name] for name in site.names]].reshape(site.turns) for site in network.sites
    }


def _after_identity(stacked: Intervention, count: int) -> Intervention:
    """The stack with the identity before it, replacements left as they are."""

    def with_first(leaves: PyTree, first: float) -> PyTree:
        return {
            site: jnp.concatenate([jnp.full_like(leaf[:1], first), leaf]) for site, leaf in leaves.items()
        }

    window = jnp.broadcast_to(stacked.window, (count, 2))
    return dataclasses.replace(
        stacked,
        gate=with_first(stacked.gate, 1),
        temperature=with_first(stacked.temperature, 1),
        add=with_first(stacked.add, 0),
        window=jnp.concatenate([window[:1], window]),
    )


def _leaves(denoiser: TracedDenoiser, stacked: Intervention, t: Timesteps) -> Leaves:
    """As `leaves_of`, with an axis of passes but for replacements."""
    axes = dataclasses.replace(
        jax.tree.map(lambda leaf: 0, stacked),
        replacement=jax.tree.map(lambda leaf: None, stacked.replacement),
        pattern_replacement=jax.tree.map(lambda leaf: None, stacked.pattern_replacement),
    )

    def of_one(intervention: Intervention) -> Leaves:
        return leaves_of(denoiser.network.sites, intervention, t)

    first = dataclasses.replace(
        jax.tree.map(lambda leaf: leaf[0], dataclasses.replace(stacked, replacement=None)),
        replacement=stacked.replacement,
    )
    out_axes = {tag: _axes(leaves) for tag, leaves in jax.eval_shape(of_one, first).items()}
    return jax.vmap(of_one, in_axes=(axes,), out_axes=out_axes)(stacked)


def _axes(leaves: Mapping[str, PyTree]) -> dict[str, int | None]:
    """Of one site's leaves, for `vmap`."""
    return {name: None if name == SHARED else 0 for name in leaves}
