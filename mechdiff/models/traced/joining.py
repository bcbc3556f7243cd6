"""Many interventions on one traced function; nothing before a site is computed twice.

An intermediate value is shared by all passes until a site that some intervention changes. From there it has
an axis of passes: the clean one first, then those of the interventions that have joined, in the order in
which they first change something. An intervention that joins later starts from the clean pass's values.
Values that no edited value reaches are never repeated; no separate liveness analysis is needed.

Programs around several sites are entered: calls, rematerialization and derivative rules are run in line,
and a scan turn by turn if interventions join inside it. `cond` and `shard_map` are one piece: all that
join inside join at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from mechdiff.core.types import Images, PyTree, Timesteps
from mechdiff.interventions.record import Intervention
from mechdiff.models.traced.denoiser import TracedDenoiser, TracedNetwork, program_of
from mechdiff.models.traced.edits import GateEdits, leaves_of
from mechdiff.models.traced.interpreter import RULES, Leaves, Plan, bind
from mechdiff.models.traced.programs import SCAN, names_within, subprograms, tag
from mechdiff.models.traced.sites import in_order

LONGEST = 32  # turns of a scan that are run one by one; a longer one is one piece, to limit compile time
IN_LINE = frozenset({"jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2"})
SHARED = "replacement"  # the leaf of a site that all interventions share


class Value(NamedTuple):
    """An array, and how many passes its leading axis holds; 0: no such axis, the same in all passes."""

    array: Any
    passes: int = 0


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
        axes = {tag: {name: None if name == SHARED else 0 for name in leaves[tag]} for tag in tags}
        return leaves, axes


def predict_each(
    denoiser: TracedDenoiser,
    joins: Sequence[int],
    stacked: Intervention,
    x_t: Images,
    t: Timesteps,
    condition: PyTree = None,
) -> tuple[Images, Float[Array, "interventions batch ..."]]:
    """Predicted noise without and with each intervention, as `denoiser.predict` would give it.

    Args:
      joins: how many of the interventions first change something at each site, in order of execution; they
        are sorted by it. `site_places` says where that is.
      stacked: gates, temperatures, directions and windows stacked; replacements shared.
      x_t, t, condition: as for `predict`; seen by every intervention.
    """
    network, count = denoiser.network, sum(joins)
    gates = GateEdits(network.sites)
    program, arguments = program_of(denoiser, x_t, t, condition)
    leaves = _leaves(denoiser, _after_identity(stacked, count), t)
    edits = Edits(leaves, _passes(network, joins), Plan(gates, split_rows=gates.split_rows))
    (output,) = _evaluate(program, [Value(argument) for argument in arguments], edits)
    to_eps = network.parameterization.to_eps
    eps = jax.vmap(lambda row: to_eps(denoiser.schedule, x_t, t, row))(_extended(output, 1 + count).array)
    return eps[0], eps[1:]


def site_places(network: TracedNetwork) -> dict[str, int]:
    """Every site's place in the order of execution."""
    return {name: place for place, (name, _) in enumerate(in_order(network.sites))}


def _passes(network: TracedNetwork, joins: Sequence[int]) -> dict[str, Int[np.ndarray, "*turns"]]:
    """Name of a value -> number of passes that have joined there, with the clean one, turn by turn."""
    passes, places = 1 + np.cumsum(joins), site_places(network)
    return {
        site.tag: passes[[places[name] for name in site.names]].reshape(site.turns) for site in network.sites
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
    out_axes = {
        tag: {name: None if name == SHARED else 0 for name in leaves}
        for tag, leaves in jax.eval_shape(of_one, first).items()
    }
    return jax.vmap(of_one, in_axes=(axes,), out_axes=out_axes)(stacked)


def _evaluate(program: ClosedJaxpr, values: Sequence[Value], edits: Edits) -> list[Value]:
    """The outputs of a program, equation by equation; a value has as many passes as its inputs need."""
    jaxpr = program.jaxpr
    environment = dict(zip(jaxpr.constvars, map(Value, program.consts), strict=True))
    environment |= zip(jaxpr.invars, values, strict=True)

    def read(atom) -> Value:
        return Value(atom.val) if isinstance(atom, Literal) else environment[atom]

    for equation in jaxpr.eqns:
        outputs = _step(equation, [read(atom) for atom in equation.invars], edits)
        environment.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(equation: JaxprEqn, operands: list[Value], edits: Edits) -> list[Value]:
    """The outputs of an equation. A named value is edited; an equation without sites inside is run for all
    passes of its operands at once; programs within an equation are entered where their sites differ in
    passes, and else run as one piece under edits of the most."""
    name = tag(equation)
    if name is not None:
        return [_edited(name, operands[0], edits)]
    inside = edits.within(equation)
    counts = inside.counts()
    if max(counts, default=1) == 1:  # no site inside, or none that has been joined at
        return _mapped(lambda *arrays: bind(equation, list(arrays)), operands)
    primitive, params = equation.primitive.name, equation.params
    if primitive in IN_LINE and not _sharded(params):
        (program,) = subprograms(equation)
        return _evaluate(program, operands, inside)
    if primitive == SCAN and len(counts) > 1 and params["length"] <= LONGEST:
        return _turn_by_turn(equation, operands, inside)
    leaves, axes = inside.of_passes(tuple(inside.passes), max(counts))
    rule = RULES[primitive]

    def run(leaves: Leaves, *arrays: Any) -> Any:
        return rule(equation, list(arrays), leaves, edits.plan)[0]

    return _mapped(run, operands, max(counts), (leaves,), (axes,))


def _edited(name: str, value: Value, edits: Edits) -> Value:
    """A named value under the interventions that have joined at it; unchanged if none has."""
    count = int(edits.passes[name])
    if count == 1:
        return value
    leaves, axes = edits.of_passes((name,), count)

    def edit(leaves: Leaves, array: Any) -> list:
        return [edits.plan.edit(name, array, leaves[name])]

    return _mapped(edit, [value], count, (leaves,), (axes,))[0]


def _mapped(run, operands: Sequence[Value], count: int = 0, first: tuple = (), axes: tuple = ()):
    """`run(*first, *arrays)` for every pass of an operand, at least `count`; once if there are none."""
    count = max(count, *(operand.passes for operand in operands)) if operands else count
    if not count:
        return [Value(array) for array in run(*first, *(operand.array for operand in operands))]
    operands = [_extended(operand, count) if operand.passes else operand for operand in operands]
    in_axes = (*axes, *(0 if operand.passes else None for operand in operands))
    outputs = jax.vmap(run, in_axes=in_axes)(*first, *(operand.array for operand in operands))
    return [Value(array, count) for array in outputs]


def _extended(value: Value, count: int) -> Value:
    """The value for `count` passes, those that it lacks being copies of the clean one."""
    array, passes = value
    if not passes:
        return Value(jnp.broadcast_to(array, (count, *jnp.shape(array))), count)
    if passes == count:
        return value
    copies = jnp.broadcast_to(array[:1], (count - passes, *array.shape[1:]))
    return Value(jnp.concatenate([array, copies]), count)


def _turn_by_turn(equation: JaxprEqn, operands: list[Value], edits: Edits) -> list[Value]:
    """A scan, unrolled, so that interventions can join at one of its turns."""
    params = equation.params
    start, carried, length = params["num_consts"], params["num_carry"], params["length"]
    consts, carry, xs = operands[:start], operands[start : start + carried], operands[start + carried :]
    ys: list[list[Value]] = [[]] * length
    for turn in reversed(range(length)) if params["reverse"] else range(length):
        slices = [Value(x.array[:, turn] if x.passes else x.array[turn], x.passes) for x in xs]
        outputs = _evaluate(params["jaxpr"], [*consts, *carry, *slices], edits.at_turn(turn))
        carry, ys[turn] = outputs[:carried], outputs[carried:]
    return [*carry, *map(_stacked, zip(*ys, strict=True))]


def _stacked(turns: Sequence[Value]) -> Value:
    """One value of those of all turns."""
    count = max(value.passes for value in turns)
    if count:
        turns = [_extended(value, count) for value in turns]
    return Value(jnp.stack([value.array for value in turns], axis=1 if count else 0), count)


def _sharded(params: Mapping[str, Any]) -> bool:
    """Whether a call says where its arguments lie."""
    return any(isinstance(sharding, Sharding) for sharding in params.get("in_shardings", ()))
