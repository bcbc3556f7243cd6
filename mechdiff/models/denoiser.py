"""The denoiser that is examined: a network with its parameters, schedule and identity intervention."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from mechdiff.core import devices
from mechdiff.core.config import UNetConfig, decisive
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Features, Images, PyTree, Timesteps
from mechdiff.diffusion.process import to_eps
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.components import Component, ComponentSelection, select, site_type
from mechdiff.interventions.gates import CAPTURED
from mechdiff.interventions.record import Intervention
from mechdiff.models.stages import Stage, stages
from mechdiff.models.unet import components, count_parameters, denoise, forward
from mechdiff.storage import digests


@runtime_checkable
class Examinable(Protocol):
    """What the two kinds of denoiser that can be examined have in common: the UNet (`Denoiser`), and any JAX
    function with named values (`traced.TracedDenoiser`, made by `wrap`). A network of another framework or of
    one's own is not a third kind: give its function to `wrap`.

    It is a pytree whose leaves are `params`, `identity` and `schedule`; another name compiles nothing again.
    """

    name: str
    params: PyTree
    identity: Intervention
    schedule: NoiseSchedule

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        ...

    @property
    def network(self) -> Any:
        """The part that is static in compiled programs; hashable: a `UNetConfig` or a `TracedNetwork`."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...] | None:
        """Stages of the forward pass, which sweeps share between interventions that don't act in them. None:
        sites take their place."""
        ...

    def components(self, channel_groups: int = 0) -> tuple[Component, ...]:
        """Every addressable component, in order of execution."""
        ...

    def unit_axis(self, site: str) -> int:
        """The negative axis of a site's activation that has one gate per unit."""
        ...

    def predict(
        self, intervention: Intervention, x_t: Images, t: Timesteps, condition: Any = None
    ) -> Features:
        """The predicted noise in `x_t` under an intervention, whatever the network was trained to output."""
        ...

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
          collection: `sites`: activations before their gates act; `patterns`: attention patterns, `(batch,
            heads, queries, keys)`; `attention`: statistics of patterns, see `attention_stats`.
        """
        ...

    def digests(self) -> dict:
        """Digests of everything that decides its numbers, JSON-ready."""
        ...


def chosen_components(
    denoiser: "Examinable", chosen: Sequence[Component] | None = None
) -> tuple[Component, ...]:
    """The `chosen` components, in their order; all of the denoiser's if there are none."""
    return tuple(chosen or denoiser.components())


def selected_components(denoiser: "Examinable", what: ComponentSelection) -> tuple[Component, ...]:
    """The components of a denoiser that names or a regular expression select, in the denoiser's order.

    Raises:
      ConfigError: as `interventions.components.select`; patterns of attention alone, which are no components.

    Example:
      >>> from mechdiff.models.toy import toy_denoiser
      >>> [component.name for component in selected_components(toy_denoiser(), "(idle|small).*")]
      ['small.mlp', 'idle.mlp']
    """
    names = select(denoiser.identity, what)
    chosen = tuple(component for component in denoiser.components() if component.name in names)
    if not chosen:
        first = next(iter(names))
        raise ConfigError(f"{first} is no component to ablate; sweep_patterns replaces attention patterns")
    return chosen


def check_inputs(denoiser: "Examinable", x_t: Any, t: Any) -> tuple[Any, Any]:
    """`x_t` and one timestep per row; a single integer `t` serves all rows.

    Raises:
      ConfigError: images of another shape, such as with channels first, or whole numbers; timesteps that are
        not integers, not one per row, or outside [0, T).
    """
    expected, shape = tuple(denoiser.image_shape), np.shape(x_t)
    if len(shape) != len(expected) + 1 or shape[1:] != expected:
        hint = ""
        if len(shape) == 4 and (*shape[2:], shape[1]) == expected:
            hint = "; channels come last: use x.transpose(0, 2, 3, 1)"
        takes = ", ".join(map(str, expected))
        raise ConfigError(f"images of shape {shape}, but {denoiser.name} takes (images, {takes}){hint}")
    if not shape[0]:
        raise ConfigError(f"no images: an array of shape {shape}")
    if not jnp.issubdtype(jnp.result_type(x_t), jnp.floating):
        raise ConfigError(
            f"images of type {jnp.result_type(x_t)}: expected noisy images, floats of about [-1, 1]"
        )
    return x_t, check_timesteps(t, len(x_t), denoiser.schedule.steps)


def check_timesteps(t: Any, images: int, steps: int) -> Any:
    """One timestep for each of `images` images; a single integer `t` serves all.

    Raises:
      ConfigError: timesteps that are not integers, not one per image, or outside [0, steps).
    """
    dtype, rank = (t if hasattr(t, "dtype") else np.asarray(t)).dtype, np.ndim(t)
    if not np.issubdtype(dtype, np.integer) or rank > 1 or (rank == 1 and len(t) not in (1, images)):
        raise ConfigError(
            f"t of type {dtype} and shape {np.shape(t)}: expected one integer timestep, or one for each of "
            f"the {images} images"
        )
    if not isinstance(t, jax.core.Tracer):
        values = np.asarray(t)  # NumPy, since JAX's minimum would be traced inside a trace
        if values.min() < 0 or values.max() >= steps:
            raise ConfigError(
                f"t from {values.min()} to {values.max()} is out of range; integers in [0, {steps})"
            )
    return t if rank == 1 and len(t) == images else jnp.full(images, t, jnp.int32)


class Label(str):
    """A name that equals every other one, so that another name does not compile programs again."""

    __slots__ = ()

    def __eq__(self, other):
        return isinstance(other, Label)

    def __hash__(self):
        return 0


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A UNet to be examined.

    Attributes:
      name: shown in results.
      unet: configuration of the network.
      schedule: noise schedule that it was trained with.
      params, identity: as `init_unet` returns them (parameters trained).

    Example:
      >>> import jax, mechdiff
      >>> config = mechdiff.preset("tiny")
      >>> make = lambda key: mechdiff.init_unet(key, config.unet)
      >>> params, identity = jax.eval_shape(make, jax.random.key(0))  # shapes are enough to look at
      >>> schedule = mechdiff.make_schedule(config.diffusion)
      >>> Denoiser("fresh", config.unet, schedule, params, identity)
      Denoiser('fresh': UNet 8x8x3, 45,259 parameters, 28 components)
    """

    name: str
    unet: UNetConfig
    schedule: NoiseSchedule
    params: PyTree
    identity: Intervention

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.unet.image_size, self.unet.image_size, self.unet.in_channels

    @property
    def network(self) -> UNetConfig:
        """The configuration: the part that is static in compiled programs."""
        return self.unet

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages of the forward pass, which sweeps share between interventions that don't act in them."""
        return stages(self.unet)

    def components(self, channel_groups: int = 0) -> tuple[Component, ...]:
        """Every addressable component; see `unet.components`."""
        return components(self.unet, channel_groups)

    def unit_axis(self, site: str) -> int:
        """-2 for attention heads, whose activation is `(..., heads, depth)`; else -1, the channels."""
        return -2 if site_type(site) == "head" else -1

    def predict(
        self, intervention: Intervention, x_t: Images, t: Timesteps, condition: Any = None
    ) -> Features:
        """The predicted noise in `x_t` under an intervention; see `unet.denoise` and `conditions.resolve`."""
        x_t, t = check_inputs(self, x_t, t)
        return denoise(self.unet, self.schedule, self.params, intervention, x_t, t, condition)

    def captured(
        self,
        intervention: Intervention,
        x_t: Images,
        t: Timesteps,
        condition: Any = None,
        *,
        collection: str = CAPTURED,
    ) -> tuple[Features, dict[str, Any]]:
        """`predict`, and intermediate values: collection `sites`, `patterns`, `attention` (`Examinable`), or
        `streams`, the feature map that leaves each stage; errors as of `predict`."""
        x_t, t = check_inputs(self, x_t, t)
        output, values = forward(
            self.unet, self.params, intervention, x_t, t, condition=condition, capture=(collection,)
        )
        return to_eps(self.unet.prediction, self.schedule, x_t, t, output), values[collection]

    def digests(self) -> dict:
        """Digests of everything that decides its numbers, JSON-ready."""
        return {
            "params": digests.digest_device_arrays(self.params),
            "unet": decisive(self.unet),
            "schedule": digests.digest_arrays(self.schedule.log_snr),
            "precision": devices.precision(),
        }

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        parameters, listed = count_parameters(self.unet), len(self.components())
        network = f"UNet {height}x{width}x{channels}, {parameters:,} parameters, {listed} components"
        return f"Denoiser({self.name!r}: {network})"


def _flatten(denoiser: Denoiser):
    return (denoiser.params, denoiser.identity, denoiser.schedule), (denoiser.unet, Label(denoiser.name))


def _unflatten(static, leaves) -> Denoiser:
    params, identity, schedule = leaves
    return Denoiser(str(static[1]), static[0], schedule, params, identity)


jax.tree_util.register_pytree_node(Denoiser, _flatten, _unflatten)
