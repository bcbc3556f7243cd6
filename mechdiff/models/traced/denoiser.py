"""A network that is examined through its named values: the `Denoiser` of any JAX function."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Features, Images, PRNGKey, PyTree, Timesteps
from mechdiff.diffusion.parameterization import Parameterization
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.components import (
    HEAD,
    PATTERN,
    Component,
    channel_group_ranges,
    component_ranges,
    pattern_site,
    site_type,
)
from mechdiff.interventions.gates import CAPTURED
from mechdiff.interventions.record import Intervention, in_window
from mechdiff.models.attention_stats import attention_statistics
from mechdiff.models.blocks import ATTENTION
from mechdiff.models.denoiser import Label, check_inputs
from mechdiff.models.traced.edits import GateEdits, leaves_of, per_turn, tempered
from mechdiff.models.traced.interpreter import Plan, evaluate
from mechdiff.models.traced.sites import Site, in_order
from mechdiff.storage import digests

Function = Callable[..., Array]  # fn(params, x, time), or fn(params, x, time, condition)


@dataclasses.dataclass(frozen=True)
class TracedNetwork:
    """The part of a traced denoiser that is static in compiled programs; hashable.

    Attributes:
      fn: `fn(params, x, time[, condition])`, with values named inside.
      parameterization: inputs and output of `fn`.
      sites: of `fn`, in order of execution.
      row_shape: of one row of x.
      dtype: of x, in which `fn` is always given it.
      conditioned: whether `fn` takes a condition.
      digest: of the program that `fn` is traced to.
      row_bytes: bytes alive at once for one row of x, see `size.peak_bytes`.
      gradient_bytes: bytes of all values computed for one row of x.
      init: `init(key)` draws fresh parameters; None: unknown, so that no untrained control can be made.
    """

    fn: Function
    parameterization: Parameterization
    sites: tuple[Site, ...]
    row_shape: tuple[int, ...]
    dtype: str
    conditioned: bool
    digest: str
    row_bytes: int
    gradient_bytes: int
    init: Callable[[PRNGKey], PyTree] | None = None

    @property
    def imported(self) -> bool:
        """Whether this package wrote `fn`, for others' network, so that its user can name no more values."""
        return type(self.fn).__module__.startswith("mechdiff.models.pretrained.")

    @property
    def replacement_bytes(self) -> int:
        """Bytes of one replacement of every site, or of the activations captured for one row."""
        return sum(4 * math.prod(site.shape[1:]) * len(site.names) for site in self.sites)


@dataclasses.dataclass(frozen=True, repr=False)
class TracedDenoiser:
    """A network that is examined through its named values; a pytree of `params`, `identity` and `schedule`.

    Attributes:
      params: first argument of the wrapped function.
      identity: the intervention that changes nothing.
      schedule: noise levels of the timesteps.
      network: the function, its sites, and its parameterization; static.
      name: shown in results; another name compiles nothing again.
      stages: None; sweeps share the computation before its sites instead, see `joining`.
    """

    params: PyTree
    identity: Intervention
    schedule: NoiseSchedule
    network: TracedNetwork
    name: str = "network"
    stages: None = None

    def __repr__(self) -> str:
        parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        row, listed = "x".join(map(str, self.image_shape)), len(self.components())
        return f"TracedDenoiser({self.name!r}: {row}, {parameters:,} parameters, {listed} components)"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels: the shape of one row of x."""
        return self.network.row_shape

    def components(self, channel_groups: int = 0) -> tuple[Component, ...]:
        """Every addressable component, in order of execution.

        A site is one component; if its name ends in `head` or `pattern`, each of its units is one. Patterns
        are left out if the outputs of the same heads are named too (`a.head` and `a.pattern`): then
        these are the components, and patterns are reached by temperatures and `replace_pattern`.

        Args:
          channel_groups: also list this many equal groups of every other site's units as components of their
            own (0: none).
        """
        listed = []
        in_turn = in_order(self.network.sites)
        attended = {pattern_site(name) for name, _ in in_turn if site_type(name) == HEAD}
        for depth, (name, site) in enumerate(in_turn):
            if name in attended:
                continue
            owned = dict(component_ranges(name, site.gate_count))
            if channel_groups and len(owned) == 1:
                owned |= channel_group_ranges(name, site.gate_count, channel_groups)
            listed += [
                Component(unit, site_type(name), name, index, depth, _side(site.shape))
                for unit, index in owned.items()
            ]
        return tuple(listed)

    def unit_axis(self, site: str) -> int:
        """The negative axis of a site's activation that has one gate per unit."""
        return next(known.unit_axis for known in self.network.sites if site in known.names)

    def predict(
        self, intervention: Intervention, x_t: Images, t: Timesteps, condition: Any = None
    ) -> Features:
        """The predicted noise in `x_t` under an intervention, whatever the network was trained to return.

        Args:
          intervention: made from `identity`; leaves may have a row axis.
          x_t: noisy images, `(batch, *image_shape)`, on this package's scale (variance preserving).
          t: one timestep per row, int in [0, T); a single one serves all rows.
          condition: argument of the function after the time, if it takes a condition.
        Raises:
          ConfigError: a condition that is missing or not taken; an intervention of another network; images
            or timesteps that `check_inputs` refuses.
        """
        x_t, t = check_inputs(self, x_t, t)
        output, _ = _run(self.network, self, intervention, x_t, t, condition, frozenset())
        return self.network.parameterization.to_eps(self.schedule, x_t, t, output)

    def captured(
        self,
        intervention: Intervention,
        x_t: Images,
        t: Timesteps,
        condition: Any = None,
        *,
        collection: str = CAPTURED,
    ) -> tuple[Features, dict[str, Any]]:
        """`predict`, and intermediate values: site -> `(batch, ...)`.

        Args:
          collection: `sites`: activations before their gates act; `patterns`: values whose name ends in
            `pattern`, after temperature and before replacement, heads first after rows; `attention`: their
            statistics, over a square grid of positions if they form one, else over a single row of them.
        Raises:
          ConfigError: as `predict`.
        """
        x_t, t = check_inputs(self, x_t, t)
        patterns = [name for site in self.network.sites for name in site.names if site_type(name) == PATTERN]
        sites = None if collection == CAPTURED else patterns
        known = {name: site for site in self.network.sites for name in site.names}
        tags = frozenset(known[name].tag for name in (known if sites is None else sites))
        output, values = _run(self.network, self, intervention, x_t, t, condition, tags)
        values = _tempered(per_turn(self.network.sites, values), known, intervention, t)
        if collection != CAPTURED:
            values = {name: jnp.moveaxis(values[name], known[name].unit_axis, 1) for name in patterns}
        if collection == ATTENTION:
            values = {
                name: attention_statistics(value, _grid(value.shape[-2])) for name, value in values.items()
            }
        return self.network.parameterization.to_eps(self.schedule, x_t, t, output), values

    def digests(self) -> dict:
        """Digests of everything that decides its numbers: parameters, schedule, program, parameterization."""
        return {
            "params": digests.digest_device_arrays(self.params),
            "program": self.network.digest,
            "parameterization": dataclasses.asdict(self.network.parameterization),
            "schedule": digests.digest_arrays(self.schedule.log_snr),
        }


def _flattened(denoiser: TracedDenoiser) -> tuple[tuple, tuple]:
    leaves = denoiser.params, denoiser.identity, denoiser.schedule
    return leaves, (denoiser.network, Label(denoiser.name))


def _unflattened(static: tuple, leaves: tuple) -> TracedDenoiser:
    params, identity, schedule = leaves
    network, name = static
    return TracedDenoiser(params, identity, schedule, network, str(name))


jax.tree_util.register_pytree_node(TracedDenoiser, _flattened, _unflattened)


def _tempered(
    values: dict[str, Array], known: Mapping[str, Site], intervention: Intervention, t: Timesteps
) -> dict[str, Array]:
    """Captured values as their gates receive them: patterns after their temperatures."""
    acting = in_window(intervention, t).temperature
    changed = {name: acting[name] for name in values if name in acting}
    return values | {
        name: tempered(values[name], temperature, known[name].unit_axis)
        for name, temperature in changed.items()
    }


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
    program, arguments = program_of(denoiser, x_t, t, condition)
    leaves = leaves_of(network.sites, intervention, t)
    edits = GateEdits(network.sites)
    plan = Plan(edits, capture, edits.split_rows)
    (output,), captured = evaluate(program, arguments, leaves, plan)
    return output, captured


def program_of(
    denoiser: TracedDenoiser, x_t: Images, t: Timesteps, condition: Any
) -> tuple[ClosedJaxpr, list[Any]]:
    """The function as a program for the rows of `x_t`, and its arguments.

    Raises:
      ConfigError: a condition that is missing or not taken.
    """
    network = denoiser.network
    if network.conditioned != (condition is not None):
        raise ConfigError(
            "this network takes a condition; give predict(..., condition=...)"
            if network.conditioned
            else "this network takes no condition; wrap it with example=(x, t, condition)"
        )
    x, time = network.parameterization.inputs(denoiser.schedule, x_t, t)
    x = jnp.asarray(x, network.dtype)
    args = (denoiser.params, x, time) if condition is None else (denoiser.params, x, time, condition)
    program = jax.make_jaxpr(jax.jit(network.fn))(*args)  # under JAX's cache of traced functions
    return program, jax.tree.leaves(args)


def _grid(tokens: int) -> tuple[int, int]:
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (1, tokens)


def _side(shape: Sequence[int]) -> int:
    """Side of a square feature map, `(rows, side, side, channels)`; 0 for other values."""
    return shape[1] if len(shape) == 4 and shape[1] == shape[2] else 0
