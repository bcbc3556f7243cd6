"""Evaluates a jaxpr and edits the values that it names, at any depth.

Equations without a value of interest are run unchanged: `jit` stays compiled, custom derivatives stay custom.
Those with one are entered:

  jit, closed_call   compiled again around the edits, under JAX's own cache
  scan               one edit per turn: edits have a leading axis of turns, which is scanned too
  cond, switch       the same edits in every branch
  remat              rematerialized again, with its policy; the edited value keeps its name
  custom_jvp, _vjp   replaced by the function itself: derivatives are then those of the edited computation,
                     not those of a custom rule, which does not include the edits
  shard_map          edits are the same on every shard, or sharded like the rows

Anything else that holds a name (`while`, a Pallas kernel, ...) is refused. Related work: oryx's `harvest`
(`sow`, `plant`), which also scans planted values, plants the same values in all branches of `cond` and keeps
`remat`, but traces custom rules again by JAX's internals; and the proposal google/flax#5538 (calls and custom
rules are inlined, sown values become `ys` of a scan).

Documented by JAX: `jax.extend.core`, and `eval` loops over `primitive.bind` ("Writing custom Jaxpr
interpreters"). Not documented: names of equations' parameters, and `equation.ctx`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.sharding import PartitionSpec, Sharding

from mechdiff.core.errors import ConfigError
from mechdiff.models.traced.programs import LOOP, closed, names_within, scan_sizes, subprograms, tag

Leaves = Mapping[str, Any]  # site -> pytree of arrays for its edit, with leading axes of turns
Captured = dict[str, Any]  # site -> its value before the edit, with leading axes of turns
Result = tuple[list[Any], Captured]


def _none_split(site: str, leaves: Any) -> Any:
    return jax.tree.map(lambda _: False, leaves)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How values are edited; hashable, and the same object in every call, so that JAX's cache is hit.

    Attributes:
      edit: `(site, value, leaves of the site) -> value` of the same shape and dtype.
      capture: sites whose values are returned.
      split_rows: `(site, leaves of the site) -> pytree of bool`, whether a leaf is sharded like rows; used
        only for sites in `shard_map`; default: no leaf is.
    """

    edit: Callable[[str, Any, Any], Any]
    capture: frozenset[str] = frozenset()
    split_rows: Callable[[str, Any], Any] = _none_split


def evaluate(program: ClosedJaxpr, values: Sequence[Any], leaves: Leaves, plan: Plan) -> Result:
    """Runs a program with edits.

    Args:
      program: as `jax.make_jaxpr` returns it.
      values: one array for each of its inputs.
      leaves: site -> arguments of its edit; sites without an entry are not edited. In a scan every array has
        a leading axis as long as the scan, in nested scans several, the outermost first.
      plan: how to edit, and what to capture.
    Returns:
      The program's outputs, and site -> captured value.
    Raises:
      ConfigError: a site of interest is where edits can't follow, such as in a `while`.

    Example:
      >>> import jax
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> program = jax.make_jaxpr(lambda x: 1 + checkpoint_name(2 * x, "twice"))(1.0)
      >>> plan = Plan(lambda site, value, gate: gate * value, frozenset({"twice"}))
      >>> outputs, captured = evaluate(program, [3.0], {"twice": 0.5}, plan)
      >>> float(outputs[0]), float(captured["twice"])
      (4.0, 6.0)
    """
    jaxpr = program.jaxpr
    environment = dict(zip(jaxpr.constvars, program.consts, strict=True))
    environment |= zip(jaxpr.invars, values, strict=True)
    captured: Captured = {}

    def read(atom):
        return atom.val if isinstance(atom, Literal) else environment[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        outputs, news = _step(equation, operands, leaves, plan)
        environment.update(zip(equation.outvars, outputs, strict=True))
        captured.update(news)
    return [read(atom) for atom in jaxpr.outvars], captured


def _step(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    name = tag(equation)
    if name is not None:
        news = {name: operands[0]} if name in plan.capture else {}
        if name in leaves:
            operands = [plan.edit(name, operands[0], leaves[name]), *operands[1:]]
        return bind(equation, operands), news
    inside = names_within(equation)
    if not inside & (plan.capture | leaves.keys()):
        return bind(equation, operands), {}
    rule = RULES.get(equation.primitive.name)
    if rule is None:
        raise ConfigError(cannot_enter(min(inside), equation.primitive.name))
    within = {site: value for site, value in leaves.items() if site in inside}
    return rule(equation, operands, within, dataclasses.replace(plan, capture=plan.capture & inside))


def bind(equation: JaxprEqn, operands: list) -> list:
    """Runs an equation unchanged; one output for each of its variables."""
    primitive = equation.primitive
    with equation.ctx.manager:
        outputs = primitive.bind(*operands, **primitive.get_bind_params(equation.params))
    return outputs if primitive.multiple_results else [outputs]


def cannot_enter(site: str, primitive: str) -> str:
    """One line for a site inside a primitive that edits can't enter."""
    if primitive == LOOP:
        why = "stands in a while loop, whose number of turns is not known beforehand"
        way_out = "use lax.scan (or fori_loop with constant bounds), or name a value outside of the loop"
    else:
        why = f"stands in {primitive!r}, which can't be entered"
        way_out = "name a value outside of it, such as its result"
    return f"site {site!r} {why}; {way_out}"


@functools.partial(jax.jit, static_argnums=(0, 3))
def _compiled(program: ClosedJaxpr, operands: list, leaves: Leaves, plan: Plan) -> Result:
    return evaluate(program, operands, leaves, plan)


def _jit(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    params = equation.params
    operands = _constrained(operands, params["in_shardings"])
    outputs, captured = _compiled(params["jaxpr"], operands, leaves, plan)
    return _constrained(outputs, params["out_shardings"]), captured


def _constrained(values: list, shardings: Sequence[Any]) -> list:
    return [
        jax.lax.with_sharding_constraint(value, sharding) if isinstance(sharding, Sharding) else value
        for value, sharding in zip(values, shardings, strict=True)
    ]


def _call(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    (program,) = subprograms(equation)
    return evaluate(program, operands, leaves, plan)


def _scan(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    params = equation.params
    start, carried = scan_sizes(equation)
    consts, init, xs = operands[:start], operands[start : start + carried], operands[start + carried :]

    def turn(carry, slices):
        x, leaves_of_turn = slices
        outputs, captured = evaluate(params["jaxpr"], [*consts, *carry, *x], leaves_of_turn, plan)
        return outputs[:carried], (outputs[carried:], captured)

    carry, (ys, captured) = jax.lax.scan(
        turn,
        init,
        (xs, dict(leaves)),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], captured


def _cond(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    index, *operands = operands
    runs = [
        functools.partial(evaluate, closed(branch), leaves=leaves, plan=plan)
        for branch in equation.params["branches"]
    ]
    shapes: Captured = {}
    for run in runs:  # what a branch does not name is returned as zeros when it is taken
        shapes |= jax.eval_shape(run, operands)[1] if plan.capture else {}

    def complete(run):
        def branch(*operands):
            outputs, captured = run(operands)
            absent = {site: jnp.zeros(shapes[site].shape, shapes[site].dtype) for site in shapes}
            return outputs, absent | captured

        return branch

    return jax.lax.switch(index, [complete(run) for run in runs], *operands)


def _remat(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    params = equation.params
    run = functools.partial(evaluate, closed(params["jaxpr"]), plan=plan)
    again = jax.checkpoint(
        lambda operands, leaves: run(operands, leaves),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )
    return again(operands, dict(leaves))


def _hi_remat(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    primitive = equation.params["_prim"]
    if type(primitive).__name__ != "RematTraced":
        raise ConfigError(cannot_enter(min(names_within(equation)), type(primitive).__name__))
    run = functools.partial(evaluate, closed(primitive.jaxpr), plan=plan)
    checkpointed = jax.checkpoint(lambda operands, leaves: run(operands, leaves), policy=primitive.policy)
    return checkpointed(operands, dict(leaves))


def _shard_map(equation: JaxprEqn, operands: list, leaves: Leaves, plan: Plan) -> Result:
    params = equation.params
    program = closed(params["jaxpr"])
    mesh, axes = params["mesh"], params["newly_manual_axes"]
    split = {axis for axis in axes if dict(mesh.shape)[axis] > 1}
    rows = [spec[0] for spec in params["in_specs"] if len(spec) and split <= set(_axes(spec[0]))]
    if split and not rows:
        raise ConfigError(
            f"site {min(names_within(equation))!r} stands in a shard_map over {sorted(split)} that splits "
            "more than rows; split only the batch axis, or name a value outside of it"
        )
    by_rows = PartitionSpec(rows[0]) if split else PartitionSpec()
    specs = {
        site: jax.tree.map(lambda rows: by_rows if rows else PartitionSpec(), plan.split_rows(site, value))
        for site, value in leaves.items()
    }

    def run(operands, leaves):
        return evaluate(program, operands, leaves, plan)

    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(list(params["in_specs"]), specs),
        out_specs=(list(params["out_specs"]), {site: by_rows for site in plan.capture}),
        axis_names=axes,
        check_vma=params["check_vma"],
    )(operands, dict(leaves))


def _axes(entry: Any) -> tuple:
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


# name of a primitive -> how to run its equation with edits inside
RULES: dict[str, Callable[[JaxprEqn, list, Leaves, Plan], Result]] = {
    "jit": _jit,
    "closed_call": _call,
    "core_call": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "scan": _scan,
    "cond": _cond,
    "remat2": _remat,
    "call_hi_primitive": _hi_remat,  # under the flag `jax_remat3`
    "shard_map": _shard_map,
}
