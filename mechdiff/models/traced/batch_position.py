"""Whether a row's numbers depend on its position in the batch: a look at the program, then a run of it.

The look takes no compilation and errs on one side: it passes programs whose every operation works on rows one
by one, which most networks' do. Any other program is run on two batches that share rows, at other positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from mechdiff.core.types import PyTree
from mechdiff.models.traced.interpreter import RULES
from mechdiff.models.traced.programs import LOOP, SCAN, subprograms

BATCHES = np.array([range(8), (2, 8, 5, 1, 11, 3, 14, 4)])  # of 16 rows: five in both, at different positions
TOLERANCE = 1e-4  # of the output's deviation: more than rounding
DRAWING = "random_bits"
ENTERED = (set(RULES) | {LOOP}) - {"shard_map"}
ALONG = {  # primitives that run along an axis, which they keep -> the parameter that says which
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), "axis"),
    **{"sort": "dimension", "rev": "dimensions", "iota": "dimension"},
}
# Those that leave rows apart if their output has rows, as do those whose shapes are the same (or 1),
APART = ("broadcast_in_dim", "transpose", "squeeze", "expand_dims", "concatenate", "slice", "dynamic_slice")
APART += ("split", "dot_general", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and")
APART += ("reduce_or", "reduce_xor", "argmax", "argmin")
# but for these, those of `ALONG` and whatever calls something.
MIXING = ("fft", "cholesky", "triangular_solve", "eigh", "eig", "lu", "qr", "svd", "householder_product")


def suspect(program: ClosedJaxpr, other: ClosedJaxpr, rows: tuple[int, int]) -> str:
    """The last operation, of those that the outputs depend on, by which a row's numbers may depend on its
    position in the batch; empty if there is none. Of several, one that draws random bits.

    Args:
      program, other: of one function, traced at two numbers of rows.
      rows: these numbers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def look(fn):
      ...     return suspect(*(jax.make_jaxpr(fn)(jnp.ones((rows, 2))) for rows in (8, 16)), (8, 16))
      >>> look(lambda x: jnp.tanh(x @ jnp.ones((2, 2)))), look(lambda x: jnp.cumsum(x, 0))
      ('', 'cumsum')
    """
    operations = list(_suspects(program, other, rows))
    return DRAWING if DRAWING in operations else next(iter(operations), "")


def _suspects(program: ClosedJaxpr, other: ClosedJaxpr, rows: tuple[int, int]) -> Iterator[str]:
    if len(program.jaxpr.eqns) != len(other.jaxpr.eqns):
        yield "a branch of Python"
        return
    if any(_row_axes(pair) for pair in zip(program.jaxpr.constvars, other.jaxpr.constvars, strict=False)):
        yield "a constant"
    needed = {atom for atom in program.jaxpr.outvars if not isinstance(atom, Literal)}
    for equation, twin in reversed(list(zip(program.jaxpr.eqns, other.jaxpr.eqns, strict=True))):
        if needed.isdisjoint(equation.outvars):
            continue
        needed |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
        primitive = equation.primitive.name
        if primitive in ENTERED and subprograms(equation):
            if primitive == SCAN and equation.params["length"] != twin.params["length"]:
                yield primitive
            for inner in zip(subprograms(equation), subprograms(twin), strict=True):
                yield from _suspects(*inner, rows)
        elif primitive != twin.primitive.name or not _keeps_rows_apart(equation, twin, rows):
            yield primitive


def _keeps_rows_apart(equation: JaxprEqn, twin: JaxprEqn, rows: tuple[int, int]) -> bool:
    """Whether each row of its outputs is surely made of that row of its inputs alone, in the same way."""
    inputs = list(zip(equation.invars, twin.invars, strict=True))
    outputs = list(zip(equation.outvars, twin.outvars, strict=True))
    axes_in, axes_out = ([_row_axes(pair) for pair in pairs] for pairs in (inputs, outputs))
    if not any(axes_in) and not any(axes_out):
        return True
    if not all(_rows_are_whole(pair, rows) for pair in (*inputs, *outputs)):
        return False
    if not all(axes_out):  # rows vanish
        return False
    return _works_by_row(equation, axes_in, axes_out[0][0])


def _rows_are_whole(pair: tuple, rows: tuple[int, int]) -> bool:
    """Whether a value has no axis of rows, or one that is as long as the batch."""
    axes, (few, more) = _row_axes(pair), (atom.aval.shape for atom in pair)
    return not axes or (len(axes) == 1 and (few[axes[0]], more[axes[0]]) == rows)


def _works_by_row(equation: JaxprEqn, axes_in: list[list[int]], axis: int) -> bool:
    """Whether a primitive works on rows one by one.

    Args:
      axes_in: the axis of rows of each input; empty of one that has no rows.
      axis: of rows in the first output.
    """
    name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
    if name in ALONG:
        along = params[ALONG[name]]
        return axis not in (along if isinstance(along, Sequence) else (along,))
    if not any(axes_in):
        return name == "broadcast_in_dim"
    if name == "reshape":
        source = equation.invars[0].aval.shape
        return math.prod(source[: axes_in[0][0]]) == math.prod(shape[:axis])
    if name == "pad":
        return tuple(params["padding_config"][axis]) == (0, 0, 0)
    if name == "gather":  # of a table, by rows of indices
        return not axes_in[0]
    if name == "dynamic_update_slice":
        return bool(axes_in[0] and axes_in[1])
    if name == "conv_general_dilated":
        by_row = [params["dimension_numbers"].lhs_spec[0]]
        return axes_in[0] == by_row and not axes_in[1] and params["batch_group_count"] == 1
    if name.startswith("reduce_window"):
        return params["window_dimensions"][axis] == 1
    return name in APART or (_by_element(equation, shape) and name not in MIXING and "call" not in name)


def _by_element(equation: JaxprEqn, shape: tuple[int, ...]) -> bool:
    """Whether its operands have the output's shape, but for lengths of 1 and single numbers."""
    for operand in equation.invars:
        own = operand.aval.shape
        if len(own) not in (0, len(shape)):
            return False
        if any(size not in (full, 1) for size, full in zip(own, shape, strict=False)):
            return False
    return True


def _row_axes(pair: tuple) -> list[int]:
    """Axes of a value that have another length at another number of rows."""
    few, more = (atom.aval.shape for atom in pair)
    return [axis for axis, (size, larger) in enumerate(zip(few, more, strict=True)) if size != larger]


def change_by_position(fn: Callable[..., jax.Array], args: tuple) -> float | None:
    """How much rows of `fn(params, *rows)` change with their position in the batch and with the others there:
    root mean square, as a share of the output's deviation; None where it is rounding, or isn't known.

    Args:
      args: `params`, and pytrees of 16 rows.
    """
    params, *rows = args
    if not all(map(_is_here, jax.tree.leaves(args))):
        return None
    try:
        with jax.ensure_compile_time_eval():
            run = jax.jit(fn)
            before, after = (run(params, *_taken(rows, batch)) for batch in BATCHES)
            jax.block_until_ready((before, after))
    except Exception:  # whatever hinders a run here, such as a lack of memory: nothing is known then
        return None
    kept = [i for i, row in enumerate(BATCHES[1]) if row in BATCHES[0]]
    precision = jnp.finfo(before.dtype).eps
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    change = np.sqrt(np.mean((after[kept] - before[BATCHES[1][kept]]) ** 2))
    share = change / max(before.std(), np.finfo(np.float32).tiny)
    return float(share) if share > max(TOLERANCE, 4 * precision) else None


def _taken(rows: PyTree, batch: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[batch], rows)


def _is_here(leaf: PyTree) -> bool:
    """Whether numbers of a leaf are known to this process."""
    unknown = isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct)
    return not unknown and getattr(leaf, "is_fully_addressable", True)
