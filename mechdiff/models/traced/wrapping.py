"""`wrap`: any function `fn(params, x_t, t[, condition])` with named values, as a denoiser."""

import functools
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.core.types import PyTree
from mechdiff.diffusion.parameterization import Parameterization
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.record import has_numbers
from mechdiff.models.traced.batch_position import DRAWING, change_by_position, suspect
from mechdiff.models.traced.denoiser import Function, TracedDenoiser, TracedNetwork
from mechdiff.models.traced.edits import identity_of
from mechdiff.models.traced.liveness import rows_mixed
from mechdiff.models.traced.sites import ROWS, Site, discover
from mechdiff.models.traced.size import peak_bytes, total_bytes
from mechdiff.storage import digests

_ADDRESS = re.compile(r"0x[0-9a-f]+")  # of a function in memory, in the text of a program


def wrap(
    fn: Any,
    params: PyTree,
    *,
    schedule: NoiseSchedule,
    example: tuple,
    name: str = "",
    unit_axes: Mapping[str, int] | None = None,
    parameterization: Parameterization | str = "epsilon",
    init: Any = None,
) -> TracedDenoiser:
    """A denoiser from any pure JAX function in which values are named.

    Name a value by `h = jax.ad_checkpoint.checkpoint_name(h, "block0.mlp")`. The name's last word is the
    component's type; after `.head`, every unit is a component. `"mid.head@1"` says that units run along axis
    1 (rows are axis 0). Within a scan, a name stands for one site per turn: `"block*.mlp"` becomes
    `block0.mlp`, `block1.mlp`, ..., and `"mlp"` becomes `turn0.mlp`, ...

    Args:
      fn: `fn(params, x, time)` or `fn(params, x, time, condition)`, returning an array of the shape of x, for
        any number of rows, each computed by itself (else a warning says so).
      params: a pytree of arrays.
      schedule: noise levels; `schedule_from_sigmas`, `edm_schedule` and `flow_schedule` make those of EDM and
        flow matching.
      example: `(x, t)` or `(x, t, condition)`, as `predict` will be given them; only their shapes and dtypes
        matter. Whatever floats `predict` is given, `fn` gets them in the dtype of this x.
      name: shown in results; the function's name if empty.
      unit_axes: regular expression of sites' names -> axis of their units, where names don't say it; the last
        axis elsewhere.
      parameterization: what `fn` takes and returns, or its `output` alone.
      init: `init(key)` draws parameters as they were before training; untrained controls are made of it.
    Raises:
      ConfigError: not a JAX function, shapes that don't fit, no names or names that can't be used; one line.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> from mechdiff.diffusion.schedules import linear_schedule
      >>> def fn(params, x, t):
      ...     return checkpoint_name(params * x, "scaled")
      >>> x, t = jnp.ones((1, 2, 2, 3)), jnp.zeros(1, int)
      >>> denoiser = wrap(fn, jnp.float32(2.0), schedule=linear_schedule(10), example=(x, t))
      >>> [component.name for component in denoiser.components()]
      ['scaled']
    """
    _check(fn, params, schedule, example, init)
    if isinstance(parameterization, str):
        parameterization = Parameterization(output=parameterization)
    args_of = functools.partial(_arguments, parameterization, schedule, params, example)
    _check_function(fn, args_of)
    sites, (few, program) = discover(fn, args_of, dict(unit_axes or {}))
    _check_names(sites)
    name = name or getattr(fn, "__name__", type(fn).__name__)
    _warn_of_mixed_rows(name, mixing := rows_mixed(program, few))
    if not mixing and (operation := suspect(few, program, ROWS)):
        rows_of_noise = _rows(parameterization, schedule, params, example)
        _warn_of_position(name, operation, change_by_position(fn, rows_of_noise))
    network = TracedNetwork(
        fn=fn,
        parameterization=parameterization,
        sites=sites,
        row_shape=tuple(np.shape(example[0])[1:]),
        dtype=str(jnp.result_type(example[0])),
        conditioned=len(example) == 3,
        digest=_digest_program(few),
        row_bytes=math.ceil(peak_bytes(program) / ROWS[-1]),
        gradient_bytes=math.ceil(total_bytes(program) / ROWS[-1]),
        init=init,
    )
    return TracedDenoiser(params, identity_of(sites), schedule, network, name)


def _arguments(
    parameterization: Parameterization, schedule: NoiseSchedule, params: PyTree, example: tuple, rows: int
) -> tuple:
    """Shapes of the function's arguments for a number of rows."""
    x, t, *condition = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *np.shape(leaf)[1:]), jnp.result_type(leaf)), example
    )
    return (params, *jax.eval_shape(parameterization.inputs, schedule, x, t), *condition)


def _check(fn: Any, params: PyTree, schedule: Any, example: tuple, init: Any) -> None:
    _check_callable(fn)
    _check_schedule(schedule)
    _check_example(example)
    _check_finite(params)
    if init is not None:
        _check_init(init, params)


def _check_callable(fn: Any) -> None:
    if not callable(fn):
        raise ConfigError(f"fn={fn!r} can't be called; give a function fn(params, x_t, t[, condition])")
    try:
        hash(fn)
    except TypeError as error:
        way_out = "give lambda params, x, t: fn(params, x, t)"
        raise ConfigError(f"fn can't be hashed ({error}); {way_out}") from None


def _warn_of_mixed_rows(name: str, operation: str) -> None:
    """Warns if an operation of a network runs over the rows of its batch."""
    if operation:
        logging.warning(
            "%s: %s runs over the rows of a batch, so that an image's numbers depend on those it is batched "
            "with; use statistics of training (running averages) instead",
            *(name, operation),
        )


def _warn_of_position(name: str, operation: str, change: float | None) -> None:
    """Warns if rows of a network change with their position in its batch."""
    if change is None:
        return
    why, way_out = f"by {operation}, say", "compute every row by itself"
    if operation == DRAWING:
        why, way_out = "it draws random bits", "if that is dropout, turn it off (.eval(), deterministic=True)"
    logging.warning(
        "%s: an image's numbers change with its position in the batch and the others there (%s), by %.2g of "
        "the output's deviation; %s",
        *(name, why, change, way_out),
    )


def _rows(
    parameterization: Parameterization, schedule: NoiseSchedule, params: PyTree, example: tuple
) -> tuple:
    """Arguments of the function: rows of noise, each at its timestep, under the example's conditions."""
    (x, _, *condition), rows = example, ROWS[-1]
    noise = np.random.default_rng(0).standard_normal((rows, *np.shape(x)[1:]), np.float32)
    times = np.linspace(0, schedule.steps - 1, rows).astype(np.int32)
    noisy, time = parameterization.inputs(schedule, noise, times)
    conditions = jax.tree.map(functools.partial(_repeated, rows=rows), condition)
    return (params, jnp.asarray(noisy, jnp.result_type(x)), time, *conditions)


def _repeated(leaf: Any, rows: int) -> Any:
    """Rows of an example again and again; zeros if it has none, or only their shape is known."""
    if isinstance(leaf, np.ndarray | jax.Array) and len(leaf):
        return leaf[np.arange(rows) % len(leaf)]
    return np.zeros((rows, *np.shape(leaf)[1:]), jnp.result_type(leaf))


def _check_finite(params: PyTree) -> None:
    """Checks the numbers of arrays that are here: not of tracers, nor of shapes alone."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if has_numbers(leaf) and not np.isfinite(np.asarray(leaf)).all():
            name = jax.tree_util.keystr(path)
            raise ConfigError(f"params{name} holds NaN or Inf; load parameters that were saved whole")


def _check_schedule(schedule: Any) -> None:
    if not isinstance(schedule, NoiseSchedule):
        raise ConfigError(
            f"schedule={shorten(schedule)} is not a noise schedule; make one, such as "
            "mechdiff.diffusion.schedules.cosine_schedule(steps)"
        )


def _check_example(example: tuple) -> None:
    if not isinstance(example, tuple | list) or len(example) not in (2, 3):
        raise ConfigError(f"example={shorten(example)}: give (x, t) or (x, t, condition)")
    shape, shape_of_t, dtype = np.shape(example[0]), np.shape(example[1]), jnp.result_type(example[1])
    if len(shape) != 4:
        raise ConfigError(
            f"x of the example has shape {shape}; expected (rows, height, width, channels): give vectors as "
            "(rows, 1, 1, size), say, and reshape them inside of fn"
        )
    dtype_of_x = jnp.result_type(example[0])
    if not jnp.issubdtype(dtype_of_x, jnp.floating):
        raise ConfigError(
            f"x of the example has dtype {dtype_of_x}; noisy images are real numbers, so give floats (and "
            "round inside of fn what it takes as whole numbers)"
        )
    if shape_of_t != shape[:1] or not jnp.issubdtype(dtype, jnp.integer):
        raise ConfigError(f"t of the example has shape {shape_of_t} and dtype {dtype}; give one int a row")


def _check_init(init: Any, params: PyTree) -> None:
    """Checks, by tracing, that `init` draws parameters of the structure and shapes of `params`."""
    if not callable(init):
        raise ConfigError(f"init={init!r} can't be called; give a function of a PRNG key that returns params")
    try:
        drawn = jax.eval_shape(init, jax.random.key(0))
    except Exception as error:  # whatever the user's function raises
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(
            f"init(key) can't be traced by JAX: {type(error).__name__}: {reason}; give a function of one "
            "PRNG key that returns parameters"
        ) from error
    if jax.tree.structure(drawn) != jax.tree.structure(params):
        raise ConfigError(
            "init(key) returns another tree than params: "
            f"{shorten(jax.tree.structure(drawn))}, expected {shorten(jax.tree.structure(params))}"
        )
    for (path, leaf), param in zip(jax.tree.leaves_with_path(drawn), jax.tree.leaves(params), strict=True):
        if leaf.shape != np.shape(param):
            name = jax.tree_util.keystr(path)
            raise ConfigError(f"init(key) gives {name} the shape {leaf.shape}, params have {np.shape(param)}")


def _check_function(fn: Function, args_of: Callable[[int], tuple]) -> None:
    for rows in ROWS:
        args = args_of(rows)
        try:
            output = jax.eval_shape(fn, *args)
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's function raises
            reason = str(error).strip().split("\n")[0]
            shapes = ", ".join(str(leaf.shape) for leaf in args[1:3])
            raise ConfigError(
                f"fn(params, x, t{', condition' if len(args) == 4 else ''}) can't be traced by JAX "
                f"at {rows} rows (x, t of shapes {shapes}): {type(error).__name__}: {reason}"
            ) from error
        if getattr(output, "shape", None) != args[1].shape:
            shown = getattr(output, "shape", type(output).__name__)
            raise ConfigError(
                f"fn returns {shown} for x of shape {args[1].shape}; return one array of x's shape "
                "(drop a predicted variance)"
            )
        if not jnp.issubdtype(output.dtype, jnp.floating):
            raise ConfigError(f"fn returns numbers of type {output.dtype}; noise is real, so return floats")


def _check_names(sites: Sequence[Site]) -> None:
    names = [name for site in sites for name in site.names]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two sites are called {name!r}; rename one (numbers of turns are put into names)"
            )


def _digest_program(program: ClosedJaxpr) -> str:
    """Digest of the program's text and of its constants."""
    text = _ADDRESS.sub("", str(program.jaxpr))
    return digests.digest_json([text, digests.digest_arrays(list(program.consts))])
