"""How many bytes the values of a program take: what a pass is sized by before it is compiled."""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

from mechdiff.models.traced.programs import subprograms


def _bytes(atom: Any) -> int:
    shape, dtype = getattr(atom.aval, "shape", ()), getattr(atom.aval, "dtype", None)
    return math.prod(shape) * getattr(dtype, "itemsize", 4)


def peak_bytes(program: ClosedJaxpr) -> int:
    """Bytes of the values that are alive together at the widest point, arguments and constants left out.

    Exact for the program as written, equation by equation; XLA fuses equations, so that this is an
    upper estimate of what the compiled program holds. One turn counts for a loop, the largest for branches.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> peak_bytes(jax.make_jaxpr(lambda x: jnp.sin(jnp.cos(x)).sum())(jnp.ones(10)))
      80
    """
    equations = program.jaxpr.eqns
    last = {}
    for i, equation in enumerate(equations):
        for atom in equation.invars:
            if not isinstance(atom, Literal):
                last[atom] = i
    for atom in program.jaxpr.outvars:
        if not isinstance(atom, Literal):
            last[atom] = len(equations)
    inputs = {*program.jaxpr.invars, *program.jaxpr.constvars}
    alive = most = 0
    for i, equation in enumerate(equations):
        inside = max((peak_bytes(inner) for inner in subprograms(equation)), default=0)
        alive += sum(_bytes(atom) for atom in equation.outvars)
        most = max(most, alive + inside)
        done = {atom for atom in equation.invars if not isinstance(atom, Literal) and last[atom] == i}
        unused = {atom for atom in equation.outvars if atom not in last}
        alive -= sum(_bytes(atom) for atom in (done - inputs) | unused)
    return most


def total_bytes(program: ClosedJaxpr) -> int:
    """Bytes of all values that a program computes: what its gradient may keep, turns of scans counted."""
    total = 0
    for equation in program.jaxpr.eqns:
        inner = subprograms(equation)
        if not inner:
            total += sum(_bytes(atom) for atom in equation.outvars)
        total += sum(map(total_bytes, inner)) * equation.params.get("length", 1)
    return total
