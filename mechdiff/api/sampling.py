"""Samples of a model under an intervention: one compiled program for all interventions of one structure."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mechdiff.api.replacing import Sources, replacements_of
from mechdiff.core import devices, ranges
from mechdiff.core.batches import batches
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import NumericsError
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.samplers import Sampler, initial_noise, take_steps
from mechdiff.interventions.describe import describe
from mechdiff.interventions.record import Intervention
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.storage.run_log import progress
from mechdiff.sweeps.execution import memory
from mechdiff.sweeps.execution.drawing import (
    check_acts,
    sample_clip,
    sample_condition,
    sampled_timesteps,
)

BLOCK = 16  # images of one program
OF_ROWS = PartitionSpec(None, "images")  # replacements: timesteps, images, ...


def sample(
    denoiser: Examinable,
    intervention: Intervention,
    n: int,
    *,
    seed: int = 0,
    steps: int | None = None,
    sources: Sources | None = None,
    condition: Any = None,
) -> Images:
    """`n` images by DDIM (eta 0) under an intervention, `(n, height, width, channels)` in [-1, 1].

    Image i begins with noise of (seed, i) alone: the same under every intervention.

    Args:
      seed: of the noise.
      steps: of DDIM, evenly spread over [0, T); None: 50, or all of a network with fewer timesteps.
      sources: of replacements that depend on the timestep.
      condition: leaves `(n, ...)`; None: of a network with classes, all of them in turn.

    Raises:
      ConfigError: `n` or `steps` below 1, more steps than T, an intervention whose window holds none of
        them, fewer source images than `n`, or a condition that the network does not take or of another number
        of images.
    """
    n, seed = ranges.whole("n", n, 1), ranges.seed(seed)
    timesteps = sampled_timesteps(denoiser, None if steps is None else ranges.whole("steps", steps, 1))[::-1]
    if describe(intervention) != "identity":
        check_acts(intervention.window, timesteps)
    memory.require_room("samples", (n, *denoiser.image_shape))
    condition = sample_condition(denoiser, n) if condition is None else condition
    condition = conditions.of_rows(denoiser.network, condition, n)  # before tracing, where labels have values
    shared, of_images = replacements_of(denoiser, intervention, sources or {}, timesteps, n)
    block, clip = min(BLOCK, n), sample_clip(denoiser)
    mesh, key, drawn = devices.over(block), jax.random.key(seed), []
    network = devices.everywhere(mesh, denoiser)
    # NumPy leaves throughout: arrays placed elsewhere would compile another program.
    intervention = jax.tree.map(np.asarray, intervention)
    with progress(n, desc=f"sampling {denoiser.name}", unit="image") as bar:
        for batch in batches(n, block):
            samples = _Samples(
                batch.indices,
                conditions.at(condition, batch.indices),
                {site: values[:, batch.indices] for site, values in of_images.items()},
            )
            down = _Steps(timesteps, shared)
            images = _sampled(network, intervention, down, samples, key, clip=clip, mesh=mesh)
            drawn.append(np.asarray(images))
            bar.update(batch.count)
    images = np.concatenate(drawn)[:n]
    if not np.isfinite(images).all():
        raise NumericsError(
            f"{denoiser.name} drew images with NaN or Inf; check its parameters, and what was done to it"
        )
    return images


class _Steps(NamedTuple):
    """What all images of one program share: timesteps, descending, and replacements, a row at each."""

    timesteps: Any
    replacements: PyTree


class _Samples(NamedTuple):
    """What each image has of its own: the index of its noise, its condition, and replacements `(timesteps,
    images, ...)`."""

    indices: Any
    condition: PyTree
    replacements: PyTree


@functools.partial(jax.jit, static_argnames=("clip", "mesh"))
def _sampled(
    denoiser: Any,
    intervention: Intervention,
    steps: _Steps,
    samples: _Samples,
    key: PRNGKey,
    *,
    clip: float,
    mesh: Mesh,
) -> Any:
    """Images after all steps; they are shared out over the devices of the mesh."""

    def local(denoiser, intervention, steps, samples, key):
        def denoise_at(i):
            own = jax.tree.map(lambda values: values[i], steps.replacements | samples.replacements)
            acting = dataclasses.replace(intervention, replacement={**intervention.replacement, **own})
            return functools.partial(denoiser.predict, acting, condition=samples.condition)

        noise = initial_noise(key, samples.indices, denoiser.image_shape)
        sampler = Sampler(denoiser.schedule, clip=clip)
        return take_steps(denoise_at, sampler, key, noise, steps.timesteps, samples.indices)

    specs = (ALL, ALL, ALL, _Samples(IMAGES, IMAGES, OF_ROWS), ALL)
    run = devices.map_over_images(local, mesh, specs)
    return run(denoiser, intervention, steps, samples, key)
