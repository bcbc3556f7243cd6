"""Reading jaxprs: which equations name a value, and which hold inner programs.

Equations, jaxprs and primitives are those of `jax.extend.core`. Parameters of equations (`jaxpr`, `branches`,
`num_carry`, ...) are not documented by JAX; everything here and in `interpreter.py` that depends on them is
looked up by the name of the primitive, so that an unknown one is refused by name, not misread.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

LOOP = "while"
SCAN = "scan"
BRANCHES = "cond"


def _hi_name(params: Mapping[str, Any]) -> str | None:
    primitive = params["_prim"]
    return primitive.name if type(primitive).__name__ == "CheckpointName" else None


# name of a primitive -> parameters of its equation -> the name that it gives to its one operand, if any
TAGGING: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "name": lambda params: params["name"],  # jax.ad_checkpoint.checkpoint_name
    "call_hi_primitive": _hi_name,  # the same under the flag `jax_remat3`
    "sow": lambda params: params["name"],  # oryx.core.sow
}


def tag(equation: JaxprEqn) -> str | None:
    """The name that an equation gives to its value, or None if it does not name one.

    Primitives other than those of `TAGGING` can be added to that table: any identity with a name in its
    parameters will do.

    Example:
      >>> import jax
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> program = jax.make_jaxpr(lambda x: checkpoint_name(2 * x, "twice"))(1.0)
      >>> [tag(equation) for equation in program.eqns]
      [None, 'twice']
    """
    reader = TAGGING.get(equation.primitive.name)
    return None if reader is None else reader(equation.params)


def closed(program: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """A jaxpr without constants as a closed one; a closed one is returned unchanged."""
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def subprograms(equation: JaxprEqn) -> list[ClosedJaxpr]:
    """The programs among an equation's parameters, at the first level, in order."""
    held = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (Jaxpr, ClosedJaxpr)):
                held.append(closed(item))
            elif isinstance(getattr(item, "jaxpr", None), (Jaxpr, ClosedJaxpr)):  # a primitive that wraps one
                held.append(closed(item.jaxpr))
    return held


def scan_sizes(equation: JaxprEqn) -> tuple[int, int]:
    """How many operands of a scan are the same in every turn, and how many it carries; the rest it slices.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> def summed(factor, xs):
      ...     return jax.lax.scan(lambda total, x: (total + factor * x, None), 0.0, xs)[0]
      >>> (scan,) = jax.make_jaxpr(summed)(2.0, jnp.ones(3)).eqns
      >>> scan_sizes(scan)
      (1, 1)
    """
    params = equation.params
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()  # since JAX 0.12
    return len(constants), len(carried)


def names(program: ClosedJaxpr) -> frozenset[str]:
    """Names of all values tagged in a program, however deep."""
    inside: set[str] = set()
    for equation in program.jaxpr.eqns:
        name = tag(equation)
        if name is None:
            inside |= names_within(equation)
        else:
            inside.add(name)
    return frozenset(inside)


def names_within(equation: JaxprEqn) -> frozenset[str]:
    """Names tagged in the programs that an equation holds."""
    return frozenset().union(*map(names, subprograms(equation)))


class Naming(NamedTuple):
    """An equation that names a value, and where it stands."""

    name: str
    aval: Any  # of the value: shape and dtype
    path: tuple[str, ...]  # primitives that it stands within, the outermost first
    scans: tuple[tuple[int, bool], ...]  # length of each scan among them, and whether it runs backward
    numbers: tuple[int | None, ...]  # of the equation at each level of nesting; None stands for a scan's turn

    @property
    def turns(self) -> tuple[int, ...]:
        """Lengths of the scans."""
        return tuple(length for length, _ in self.scans)


def walk(program: ClosedJaxpr, outer: Naming | None = None) -> Iterator[Naming]:
    """Every naming equation of a program, in order, however deep.

    Args:
      outer: the equation that holds the program, if one does.
    """
    _, _, path, scans, numbers = outer or Naming("", None, (), (), ())
    for number, equation in enumerate(program.jaxpr.eqns):
        name, primitive = tag(equation), equation.primitive.name
        own_numbers = (*numbers, number)
        if name is not None:
            yield Naming(name, equation.invars[0].aval, path, scans, own_numbers)
            continue
        for index, inside in enumerate(subprograms(equation)):
            if primitive == SCAN:
                turns = (*scans, (equation.params["length"], equation.params["reverse"]))
                yield from walk(inside, Naming("", None, (*path, SCAN), turns, (*own_numbers, None)))
            else:
                step = f"{primitive}:{index}" if primitive == BRANCHES else primitive
                yield from walk(inside, Naming("", None, (*path, step), scans, own_numbers))
