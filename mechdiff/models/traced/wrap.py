"""Any function `fn(params, x_t, t[, condition])` with named values, as a denoiser."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mechdiff import files
from mechdiff.errors import ConfigError, unknown
from mechdiff.interventions import Component, Intervention, units
from mechdiff.models.traced.edits import GateEdits, identity_of, leaves_of, per_turn
from mechdiff.models.traced.interpreter import Plan, evaluate
from mechdiff.models.traced.parameterization import Parameterization
from mechdiff.models.traced.sites import Site, discover
from mechdiff.schedules import NoiseSchedule
from mechdiff.types import AnyArray, Features, Images, PyTree, Timesteps

Function = Callable[..., Array]  # fn(params, x, time), or fn(params, x, time, condition)
_ADDRESS = re.compile(r"0x[0-9a-f]+")  # of a function in memory, in the text of a program


@dataclasses.dataclass(frozen=True)
class TracedNetwork:
    """What of a traced denoiser is fixed when programs are compiled; hashable.

    Attributes:
      fn: `fn(params, x, time[, condition])`, with values named inside.
      parameterization: what `fn` is given and what it returns.
      sites: of `fn`, in order of execution.
      row_shape: of one row of x.
      conditioned: whether `fn` takes a condition.
      digest: of the program that `fn` is traced to.
    """

    fn: Function
    parameterization: Parameterization
    sites: tuple[Site, ...]
    row_shape: tuple[int, ...]
    conditioned: bool
    digest: str


class _Label(str):
    """A name that is equal to every other, so that it is no reason to compile again."""

    __slots__ = ()

    def __eq__(self, other):
        return isinstance(other, _Label)

    def __hash__(self):
        return 0


@dataclasses.dataclass(frozen=True)
class TracedDenoiser:
    """A network that is examined through its named values; a pytree of `params`, `identity` and `schedule`.

    Attributes:
      params: first argument of the wrapped function.
      identity: the intervention that changes nothing.
      schedule: noise levels of the timesteps.
      network: the function, its sites, and its parameterization; static.
      name: shown in results; no reason to compile again.
      stages: None: sweeps don't share prefixes of the network.
    """

    params: PyTree
    identity: Intervention
    schedule: NoiseSchedule
    network: TracedNetwork
    name: str = "network"
    stages: None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels: the shape of one row of x."""
        return self.network.row_shape

    def components(self, channel_groups: int = 0) -> tuple[Component, ...]:
        """Every addressable component, in order of execution.

        A site is one component, but for one whose name ends in `head`, every unit of which is.

        Args:
          channel_groups: also list this many equal groups of every other site's units as components of their
            own (0: none).
        """
        listed = []
        for depth, site in enumerate(self.network.sites):
            for name in site.names:
                owned = dict(units(name, site.units))
                if channel_groups and len(owned) == 1:
                    owned |= _groups(name, site.units, channel_groups)
                where = (_last_word(name), name)
                listed += [
                    Component(each, *where, index, depth, _side(site.shape)) for each, index in owned.items()
                ]
        return tuple(listed)

    def predict(
        self, intervention: Intervention, x_t: Images, t: Timesteps, condition: Any = None
    ) -> Features:
        """The noise in `x_t` under an intervention, whatever the network was trained to return.

        Args:
          intervention: made from `identity`; leaves may have a row axis.
          x_t: noisy images, `(batch, *image_shape)`, on this package's scale (variance preserving).
          t: one timestep a row, int in [0, T).
          condition: what the function takes after the time, if it takes a condition.
        Raises:
          ConfigError: a condition too many or too few; an intervention of another network.
        """
        output, _ = _run(self.network, self, intervention, x_t, t, condition, frozenset())
        return self.network.parameterization.to_eps(self.schedule, x_t, t, output)

    def digests(self) -> dict:
        """What decides numbers, JSON-ready: parameters, schedule, program and parameterization."""
        return {
            "params": files.digest_arrays(self.params),
            "program": self.network.digest,
            "parameterization": dataclasses.asdict(self.network.parameterization),
            "schedule": files.digest_arrays(self.schedule.log_snr),
        }


jax.tree_util.register_pytree_node(
    TracedDenoiser,
    lambda denoiser: (
        (denoiser.params, denoiser.identity, denoiser.schedule),
        (denoiser.network, _Label(denoiser.name)),
    ),
    lambda static, leaves: TracedDenoiser(*leaves, static[0], str(static[1])),
)


def wrap(
    fn: Function,
    params: PyTree,
    *,
    schedule: NoiseSchedule,
    example: tuple,
    name: str = "",
    unit_axes: Mapping[str, int] | None = None,
    parameterization: Parameterization | str = "epsilon",
) -> TracedDenoiser:
    """A denoiser from any pure JAX function in which values are named.

    Name a value by `h = jax.ad_checkpoint.checkpoint_name(h, "block0.mlp")`. The name's last word is the
    component's type; after `.head`, every unit is a component. `"mid.head@1"` says that units run along axis 1
    (rows are axis 0). Within a scan, a name stands for one site a turn: `"block*.mlp"` becomes `block0.mlp`,
    `block1.mlp`, ..., and `"mlp"` becomes `turn0.mlp`, ...

    Args:
      fn: `fn(params, x, time)` or `fn(params, x, time, condition)`, returning an array of the shape of x, for any
        number of rows.
      params: a pytree of arrays.
      schedule: noise levels; `schedule_from_sigmas`, `edm_schedule` and `flow_schedule` make those of EDM and
        flow matching.
      example: `(x, t)` or `(x, t, condition)`, as `predict` will be given them: their shapes and dtypes count.
      name: shown in results; the function's name if empty.
      unit_axes: regular expression of sites' names -> axis of their units, where names don't say it; the last axis
        elsewhere.
      parameterization: what `fn` takes and returns, or its `output` alone.
    Raises:
      ConfigError: not a JAX function, shapes that don't fit, no names or names that can't be used; one line.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> from mechdiff.schedules import linear_schedule
      >>> def fn(params, x, t):
      ...     return checkpoint_name(params * x, "scaled")
      >>> x, t = jnp.ones((1, 2, 2, 3)), jnp.zeros(1, int)
      >>> denoiser = wrap(fn, jnp.float32(2.0), schedule=linear_schedule(10), example=(x, t))
      >>> [component.name for component in denoiser.components()]
      ['scaled']
    """
    if not callable(fn):
        raise ConfigError(f"fn={fn!r} can't be called; give a function fn(params, x_t, t[, condition])")
    if len(example) not in (2, 3):
        raise ConfigError(f"example has {len(example)} entries; give (x, t) or (x, t, condition)")
    if isinstance(parameterization, str):
        parameterization = Parameterization(output=parameterization)
    args_of = functools.partial(_arguments, parameterization, schedule, params, example)
    _check_function(fn, args_of)
    sites = discover(fn, args_of, dict(unit_axes or {}))
    _check_names(sites)
    network = TracedNetwork(
        fn=fn,
        parameterization=parameterization,
        sites=sites,
        row_shape=tuple(np.shape(example[0])[1:]),
        conditioned=len(example) == 3,
        digest=_digest_program(fn, args_of(1)),
    )
    name = name or getattr(fn, "__name__", type(fn).__name__)
    return TracedDenoiser(params, identity_of(sites), schedule, network, name)


def activations(
    denoiser: TracedDenoiser,
    x_t: Images,
    t: Timesteps,
    sites: str | Sequence[str],
    *,
    intervention: Intervention | None = None,
    condition: Any = None,
) -> dict[str, Array]:
    """Values of sites, before their own gates act on them.

    Args:
      sites: names, or one regular expression (full match).
      intervention: under which the network runs; the identity if None.
    Returns:
      site -> `(batch, *rest)`, rows first. Where a branch of a `cond` that holds a site isn't taken: zeros.
    Raises:
      ConfigError: a site or a pattern that matches nothing.

    Example:
      >>> activations(denoiser, x_t, t, "block.*[.]mlp")["block0.mlp"].shape  # doctest: +SKIP
      (16, 64, 128)
    """
    known = {name: site for site in denoiser.network.sites for name in site.names}
    if isinstance(sites, str):
        chosen = [name for name in known if name == sites or re.fullmatch(sites, name)]
        sites = chosen or [sites]
    for name in sites:
        if name not in known:
            raise ConfigError(unknown("site", name, known))
    tags = frozenset(known[name].tag for name in sites)
    intervention = denoiser.identity if intervention is None else intervention
    _, captured = _run(denoiser.network, denoiser, intervention, x_t, t, condition, tags)
    values = per_turn(denoiser.network.sites, captured)
    return {name: values[name] for name in sites}


def _run(
    network: TracedNetwork,
    denoiser: TracedDenoiser,
    intervention: Intervention,
    x_t: Images,
    t: Timesteps,
    condition: Any,
    capture: frozenset[str],
) -> tuple[Array, dict[str, Array]]:
    """The function's own output under an intervention, and captured values by tag."""
    if network.conditioned != (condition is not None):
        raise ConfigError(
            "this network takes a condition; give predict(..., condition=...)"
            if network.conditioned
            else "this network takes no condition; wrap it with example=(x, t, condition)"
        )
    x, time = network.parameterization.inputs(denoiser.schedule, x_t, t)
    args = (denoiser.params, x, time) if condition is None else (denoiser.params, x, time, condition)
    program = jax.make_jaxpr(jax.jit(network.fn))(*args)  # under JAX's cache of traced functions
    leaves = leaves_of(network.sites, intervention, t)
    edits = GateEdits(network.sites)
    plan = Plan(edits, capture, edits.split_rows)
    (output,), captured = evaluate(program, jax.tree.leaves(args), leaves, plan)
    return output, captured


def _arguments(
    parameterization: Parameterization, schedule: NoiseSchedule, params: PyTree, example: tuple, rows: int
) -> tuple:
    """Shapes of the function's arguments for a number of rows."""
    x, t, *condition = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *np.shape(leaf)[1:]), jnp.result_type(leaf)), example
    )
    if t.shape != (rows,) or not jnp.issubdtype(t.dtype, jnp.integer):
        raise ConfigError(f"t of the example has shape {t.shape} and dtype {t.dtype}; give one int a row")
    if len(x.shape) < 2:
        raise ConfigError(f"x of the example has shape {np.shape(example[0])}; its first axis is the rows'")
    return (params, *jax.eval_shape(parameterization.inputs, schedule, x, t), *condition)


def _check_function(fn: Function, args_of: Callable[[int], tuple]) -> None:
    for rows in (1, 2):
        args = args_of(rows)
        try:
            output = jax.eval_shape(fn, *args)
        except Exception as error:  # whatever the user's function raises
            reason = str(error).strip().split("\n")[0]
            shapes = ", ".join(str(leaf.shape) for leaf in args[1:3])
            raise ConfigError(
                f"fn(params, x, t{', condition' if len(args) == 4 else ''}) can't be traced by JAX at {rows} rows "
                f"(x, t of shapes {shapes}): {type(error).__name__}: {reason}"
            ) from error
        if getattr(output, "shape", None) != args[1].shape:
            shown = getattr(output, "shape", type(output).__name__)
            raise ConfigError(
                f"fn returns {shown} for x of shape {args[1].shape}; return one array of x's shape "
                "(drop a predicted variance)"
            )


def _check_names(sites: Sequence[Site]) -> None:
    names = [name for site in sites for name in site.names]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two sites are called {name!r}; rename one (numbers of turns are put into names)")


def _digest_program(fn: Function, args: tuple) -> str:
    """Of the text of the program and of the constants that it holds."""
    program = jax.make_jaxpr(fn)(*args)
    text = _ADDRESS.sub("", str(program.jaxpr))
    return files.digest_json([text, files.digest_arrays(list(program.consts))])


def _groups(site: str, width: int, count: int) -> dict[str, tuple[int, int]]:
    edges = [width * group // min(count, width) for group in range(min(count, width) + 1)]
    return {f"{site}.{low}-{high}": (low, high) for low, high in zip(edges, edges[1:])}


def _last_word(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _side(shape: Sequence[int]) -> int:
    """Side of a feature map, `(rows, side, side, channels)`; 0 for values that are none."""
    return shape[1] if len(shape) == 4 and shape[1] == shape[2] else 0
