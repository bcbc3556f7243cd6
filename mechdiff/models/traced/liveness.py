"""Which named values of a program its outputs depend on, and whether rows of a batch do on one another."""

from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from mechdiff.models.traced.interpreter import RULES
from mechdiff.models.traced.programs import BRANCHES, SCAN, names_within, scan_sizes, subprograms, tag

Needed = tuple[list[bool], set[str]]


def reaching(program: ClosedJaxpr, outputs: Sequence[bool] | None = None) -> Needed:
    """Which inputs, and which named values, some of a program's outputs depend on.

    Dependence is followed equation by equation and exactly through calls, scans and branches; an equation
    that can't be entered is taken to depend on all that it reads.

    Args:
      outputs: which outputs matter; all of them if None.
    Returns:
      one bool for each input, and the names.

    Example:
      >>> import jax
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> def fn(x):
      ...     checkpoint_name(x, "forgotten")
      ...     return checkpoint_name(2 * x, "used")
      >>> reaching(jax.make_jaxpr(fn)(1.0))
      ([True], {'used'})
    """
    jaxpr = program.jaxpr
    outputs = [True] * len(jaxpr.outvars) if outputs is None else outputs
    needed = {
        atom
        for atom, wanted in zip(jaxpr.outvars, outputs, strict=True)
        if wanted and not isinstance(atom, Literal)
    }
    reached: set[str] = set()
    for equation in reversed(jaxpr.eqns):
        wanted = [atom in needed for atom in equation.outvars]
        if not any(wanted):
            continue
        reads, names = _of_equation(equation, wanted)
        reached |= names
        needed |= {
            atom
            for atom, read in zip(equation.invars, reads, strict=True)
            if read and not isinstance(atom, Literal)
        }
    return [atom in needed for atom in jaxpr.invars], reached


def _of_equation(equation: JaxprEqn, wanted: list[bool]) -> Needed:
    name = tag(equation)
    if name is not None:
        return [True] * len(equation.invars), {name}
    primitive = equation.primitive.name
    if primitive == SCAN:
        return _of_scan(equation, wanted)
    if primitive == BRANCHES:
        return _of_branches(equation, wanted)
    programs = subprograms(equation)
    if primitive in RULES and len(programs) == 1:
        return reaching(programs[0], wanted)
    return [True] * len(equation.invars), set(names_within(equation))


def _of_scan(equation: JaxprEqn, wanted: list[bool]) -> Needed:
    start, carried = scan_sizes(equation)
    wanted = list(wanted)
    while True:  # what a turn needs of the carry, the turn before has to make
        reads, names = reaching(equation.params["jaxpr"], wanted)
        carry = [
            old or new for old, new in zip(wanted[:carried], reads[start : start + carried], strict=True)
        ]
        if carry == wanted[:carried]:
            return reads, names
        wanted[:carried] = carry


def _of_branches(equation: JaxprEqn, wanted: list[bool]) -> Needed:
    branches = [reaching(program, wanted) for program in subprograms(equation)]
    reads = [any(column) for column in zip(*(reads for reads, _ in branches), strict=True)]
    return [True, *reads], set().union(*(names for _, names in branches))


def rows_mixed(program: ClosedJaxpr, other: ClosedJaxpr) -> str:
    """The last operation, of those that the outputs depend on, that runs over the rows of a batch, such as
    `reduce_sum`; empty if there is none.

    Args:
      program, other: of one function, traced at two numbers of rows.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> few, more = (jax.make_jaxpr(lambda x: x - x.mean(0))(jnp.ones((rows, 2))) for rows in (3, 4))
      >>> rows_mixed(few, more)
      'reduce_sum'
    """
    for equation, twin in zip(_needed(program), _needed(other), strict=False):
        if _runs_over_rows(equation, twin):
            return equation.primitive.name
        for inner in zip(subprograms(equation), subprograms(twin), strict=False):
            if found := rows_mixed(*inner):
                return found
    return ""


def _needed(program: ClosedJaxpr) -> list[JaxprEqn]:
    """The operations that the outputs depend on, the last first. One trace may hold others, which would set
    it off against another trace."""
    needed, listed = {atom for atom in program.jaxpr.outvars if not isinstance(atom, Literal)}, []
    for equation in reversed(program.jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
            listed.append(equation)
    return listed


def _runs_over_rows(equation: JaxprEqn, twin: JaxprEqn) -> bool:
    """Whether an axis that it sums over, or the like, has another length at another number of rows."""
    axes = equation.params.get("axes", ())  # of reductions
    if equation.primitive.name == "dot_general":
        axes = equation.params["dimension_numbers"][0][0]
    elif not equation.primitive.name.startswith(("reduce_", "arg")):
        return False
    few, more = equation.invars[0].aval.shape, twin.invars[0].aval.shape
    return any(few[axis] != more[axis] for axis in axes)
