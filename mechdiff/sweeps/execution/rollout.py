"""Rollouts of a sampler under interventions, from any step to any other.

Samples are spread over the devices of this process; each device computes its own under all interventions.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mechdiff.core import devices, ranges
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, Images, PRNGKey, PyTree, StepFn
from mechdiff.diffusion.samplers import Sampler, TimestepSequence, initial_noise, take_steps
from mechdiff.interventions.record import Intervention, stack_size
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable

Window = tuple[int, int]


def even_windows(timesteps: TimestepSequence, count: int) -> tuple[Window, ...]:
    """`count` half-open windows of t that cut the visited timesteps into equal parts, highest t first.

    Together they cover every visited timestep, each once. Raises ConfigError unless 1 <= count <= steps.
    """
    timesteps = np.sort(np.asarray(timesteps))
    if not 1 <= count <= len(timesteps):
        raise ConfigError(f"{count} windows of {len(timesteps)} sampling steps; choose 1 to {len(timesteps)}")
    cuts = [len(timesteps) * i // count for i in range(count)]
    edges = [*(int(timesteps[cut]) for cut in cuts), int(timesteps[-1]) + 1]
    return tuple(itertools.pairwise(edges))[::-1]


def network_calls(timesteps: TimestepSequence, windows: Sequence[Window], count: int) -> tuple[int, int]:
    """Network calls per sample for `count` interventions in each window: with the clean trajectory shared
    (its own calls included), and without sharing."""
    steps = len(timesteps)
    after = sum(steps - first_step_inside(timesteps, window) for window in windows)
    return steps + count * after, count * steps * len(windows)


def first_step_inside(timesteps: TimestepSequence, window: Window) -> int:
    """The first step of a rollout down `timesteps` that is inside a window.

    Raises:
      ConfigError: no timestep lies in the window, or its bounds are no whole numbers.
    """
    low, high = (ranges.whole("window", bound, meaning="bounds of t") for bound in window)
    down = np.sort(np.asarray(timesteps))[::-1]
    inside = np.flatnonzero((down >= low) & (down < high))
    if len(inside) == 0:
        raise ConfigError(f"window [{low}, {high}) holds none of the {len(down)} timesteps visited")
    return int(inside[0])


class Steps(NamedTuple):
    """The steps that are taken, `start` to `stop` of a rollout down `timesteps`.

    All of them are arguments of the compiled program, so that all windows share it.
    """

    timesteps: Int[AnyArray, " steps"]  # descending
    start: int | Int[Array, ""]
    stop: int | Int[Array, ""]
    key: PRNGKey  # of the noise of steps


class Samples(NamedTuple):
    """Where a rollout begins: every sample's state, the index of its noise, and its condition."""

    x_t: Images
    indices: Int[AnyArray, " batch"]
    condition: PyTree = None


@functools.partial(jax.jit, static_argnames=("step_fn", "clip", "mesh"))
def roll(
    denoiser: Examinable,
    stacked: Intervention,
    steps: Steps,
    samples: Samples,
    *,
    step_fn: StepFn,
    clip: float,
    mesh: Mesh,
) -> Float[Array, "interventions batch height width channels"]:
    """The samples after the steps, under each intervention.

    Args:
      stacked: gates, temperatures and directions stacked; replacements `(steps, *site)`, one for each step.
    """

    def local(denoiser, stacked, steps, samples):
        count, batch = stack_size(stacked), len(samples.x_t)
        stacked = dataclasses.replace(
            stacked,
            gate=_each_repeated(stacked.gate, batch),
            temperature=_each_repeated(stacked.temperature, batch),
            add=_each_repeated(stacked.add, batch),
        )
        samples = _tiled(samples, count)
        sampler = Sampler(denoiser.schedule, step_fn, clip=clip)

        def denoise_at(i):
            replacement = jax.tree.map(lambda values: values[i], stacked.replacement)
            acting = dataclasses.replace(stacked, replacement=replacement)
            return functools.partial(denoiser.predict, acting, condition=samples.condition)

        span = steps.start, steps.stop
        final = take_steps(
            denoise_at, sampler, steps.key, samples.x_t, steps.timesteps, samples.indices, span
        )
        return final.reshape(count, batch, *final.shape[1:])

    specs, outs = (ALL, ALL, ALL, IMAGES), PartitionSpec(None, "images")
    run = devices.map_over_images(local, mesh, specs, outs)
    return run(denoiser, stacked, steps, samples)


def _each_repeated(tree: PyTree, count: int) -> PyTree:
    """Every row `count` times, one after the other."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), tree)


def _tiled(tree: PyTree, count: int) -> PyTree:
    """All rows, `count` times over."""
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (count, *[1] * (leaf.ndim - 1))), tree)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A denoiser's sampler, with what all its rollouts share."""

    denoiser: Examinable
    timesteps: np.ndarray  # descending
    key: PRNGKey
    step_fn: StepFn
    clip: float  # see `Sampler`
    block: int  # samples that are computed together
    condition: PyTree = None  # of each sample, leaves (samples, ...)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices that share a block."""
        return devices.over(self.block)

    @functools.cached_property
    def _placed(self) -> Examinable:
        return devices.everywhere(self.mesh, self.denoiser)

    def run(
        self, stacked: Intervention, span: tuple[int, int], x_t: Images, indices: Int[np.ndarray, " batch"]
    ) -> Array:
        """Samples `indices` after steps `span[0]` to `span[1]` from `x_t`, under each intervention.

        Args:
          stacked: as for `roll`.
        """
        x_t = devices.shared(self.mesh, x_t)  # always laid out alike: another layout is another program
        condition = conditions.at(self.condition, indices)
        steps = Steps(self.timesteps, span[0], span[1], self.key)
        return roll(
            self._placed,
            stacked,
            steps,
            Samples(x_t, indices, condition),
            step_fn=self.step_fn,
            clip=self.clip,
            mesh=self.mesh,
        )

    def clean(self, starts: Sequence[int], indices: np.ndarray) -> tuple[dict[int, Array], Array]:
        """States at the steps `starts`, and the final images."""
        identity = _stacked_identity(self.denoiser.identity, len(self.timesteps))
        x_t, step, states = initial_noise(self.key, indices, self.denoiser.image_shape), 0, {}
        for stop in sorted({*starts, len(self.timesteps)}):
            x_t = self.run(identity, (step, stop), x_t, indices)[0]
            step, states[stop] = stop, x_t
        return states, x_t


def _stacked_identity(identity: Intervention, steps: int) -> Intervention:
    """A stack of the identity alone."""

    def with_row_axis(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)

    return dataclasses.replace(
        identity,
        gate=with_row_axis(identity.gate),
        temperature=with_row_axis(identity.temperature),
        replacement=zero_replacements(identity, steps),
    )


def zero_replacements(identity: Intervention, steps: int) -> PyTree:
    """Replacements of `zero` ablation for every step."""
    return {
        site: np.zeros((steps, *np.shape(replacement)), np.float32)
        for site, replacement in identity.replacement.items()
    }
