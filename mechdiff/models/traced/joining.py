"""Many interventions on one traced function; nothing before a site is computed twice.

An intermediate value is shared by all passes until a site that some intervention changes. From there it has
an axis of passes: the clean one first, then those of the interventions that have joined, in the order in
which they first change something. An intervention that joins later starts from the clean pass's values.
Values that no edited value reaches are never repeated; no separate liveness analysis is needed.

Programs around several sites are entered: calls, rematerialization and derivative rules are run in line,
and a scan turn by turn if interventions join inside it. `cond` and `shard_map` are one piece: all that
join inside join at once.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.sharding import Sharding
from jaxtyping import Array, Float

from mechdiff.core.types import Images, PyTree, Timesteps
from mechdiff.interventions.record import Intervention
from mechdiff.models.traced.denoiser import TracedDenoiser, program_of
from mechdiff.models.traced.interpreter import RULES, Leaves, bind
from mechdiff.models.traced.pass_edits import Edits, edits_of
from mechdiff.models.traced.pass_values import Value, extended, mapped, of_turns
from mechdiff.models.traced.programs import SCAN, scan_sizes, subprograms, tag

MAX_UNROLLED = 32  # turns of a scan that are run one by one; a longer one is one piece, to limit compile time
IN_LINE = frozenset({"jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2"})


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
        are sorted by it. `pass_edits.site_depths` says where that is.
      stacked: gates, temperatures, directions and windows stacked; replacements shared.
      x_t, t, condition: as for `predict`; seen by every intervention.
    """
    program, arguments = program_of(denoiser, x_t, t, condition)
    edits = edits_of(denoiser, joins, stacked, t)
    (output,) = _evaluate(program, [Value(argument) for argument in arguments], edits)
    each = extended(output, 1 + sum(joins)).array
    to_eps = denoiser.network.parameterization.to_eps
    eps = jax.vmap(lambda row: to_eps(denoiser.schedule, x_t, t, row))(each)
    return eps[0], eps[1:]


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
    """The outputs of an equation: a named value is edited; an equation without sites inside is run for all
    passes of its operands at once; programs within an equation are entered where their sites differ in
    passes, and else run as one piece."""
    name = tag(equation)
    if name is not None:
        return [_edited(name, operands[0], edits)]
    inside = edits.within(equation)
    counts = inside.counts()
    if max(counts, default=1) == 1:  # no site inside, or none that has been joined at
        return mapped(lambda *arrays: bind(equation, list(arrays)), operands)
    if _is_in_line(equation):
        (program,) = subprograms(equation)
        return _evaluate(program, operands, inside)
    if len(counts) > 1 and _is_short_scan(equation):
        return _turn_by_turn(equation, operands, inside)
    return _in_one_piece(equation, operands, inside)


def _is_in_line(equation: JaxprEqn) -> bool:
    """Whether it is a call that doesn't say where its arguments lie."""
    if equation.primitive.name not in IN_LINE:
        return False
    shardings = equation.params.get("in_shardings", ())
    return not any(isinstance(sharding, Sharding) for sharding in shardings)


def _is_short_scan(equation: JaxprEqn) -> bool:
    """Whether it is a scan of few enough turns to be unrolled."""
    return equation.primitive.name == SCAN and equation.params["length"] <= MAX_UNROLLED


def _edited(name: str, value: Value, edits: Edits) -> Value:
    """A named value under the interventions that have joined at it; unchanged if none has."""
    count = int(edits.passes[name])
    if count == 1:
        return value
    leaves, axes = edits.of_passes((name,), count)

    def edit(leaves: Leaves, array: Any) -> list:
        return [edits.plan.edit(name, array, leaves[name])]

    return mapped(edit, [value], count, (leaves,), (axes,))[0]


def _in_one_piece(equation: JaxprEqn, operands: list[Value], edits: Edits) -> list[Value]:
    """An equation with sites inside: all interventions that join at one of them join before it."""
    rule, most = RULES[equation.primitive.name], max(edits.counts())
    leaves, axes = edits.of_passes(tuple(edits.passes), most)

    def run(leaves: Leaves, *arrays: Any) -> Any:
        return rule(equation, list(arrays), leaves, edits.plan)[0]

    return mapped(run, operands, most, (leaves,), (axes,))


def _turn_by_turn(equation: JaxprEqn, operands: list[Value], edits: Edits) -> list[Value]:
    """A scan, unrolled, so that interventions can join at one of its turns."""
    params = equation.params
    (start, carried), length = scan_sizes(equation), params["length"]
    consts, carry, xs = operands[:start], operands[start : start + carried], operands[start + carried :]
    ys: list[list[Value]] = [[]] * length
    for turn in reversed(range(length)) if params["reverse"] else range(length):
        slices = [Value(x.array[:, turn] if x.passes else x.array[turn], x.passes) for x in xs]
        outputs = _evaluate(params["jaxpr"], [*consts, *carry, *slices], edits.at_turn(turn))
        carry, ys[turn] = outputs[:carried], outputs[carried:]
    return [*carry, *map(of_turns, zip(*ys, strict=True))]
