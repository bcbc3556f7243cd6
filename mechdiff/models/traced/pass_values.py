"""Arrays with an axis of passes, or without one where they are the same in all.

The first pass is the clean one. A pass that an array lacks is a copy of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Value(NamedTuple):
    """An array, and how many passes its leading axis holds; 0: no such axis, the same in all passes."""

    array: Any
    passes: int = 0


def mapped(
    run: Callable[..., Sequence],
    operands: Sequence[Value],
    count: int = 0,
    first: tuple = (),
    axes: tuple = (),
) -> list[Value]:
    """`run(*first, *arrays)` for every pass of an operand, at least `count`; once if there are none.

    Args:
      first: pytrees whose leaves have an axis of `count` passes where `axes`, as of `jax.vmap`, says so.
    """
    count = max(count, *(operand.passes for operand in operands)) if operands else count
    if not count:
        return [Value(array) for array in run(*first, *(operand.array for operand in operands))]
    operands = [extended(operand, count) if operand.passes else operand for operand in operands]
    in_axes = (*axes, *(0 if operand.passes else None for operand in operands))
    outputs = jax.vmap(run, in_axes=in_axes)(*first, *(operand.array for operand in operands))
    return [Value(array, count) for array in outputs]


def extended(value: Value, count: int) -> Value:
    """The value for `count` passes, those that it lacks being copies of the clean one."""
    array, passes = value
    if not passes:
        return Value(jnp.broadcast_to(array, (count, *jnp.shape(array))), count)
    if passes == count:
        return value
    copies = jnp.broadcast_to(array[:1], (count - passes, *array.shape[1:]))
    return Value(jnp.concatenate([array, copies]), count)


def of_turns(turns: Sequence[Value]) -> Value:
    """The values of all turns of a scan as one, stacked along an axis of turns."""
    count = max(value.passes for value in turns)
    if count:
        turns = [extended(value, count) for value in turns]
    return Value(jnp.stack([value.array for value in turns], axis=1 if count else 0), count)
