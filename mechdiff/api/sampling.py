"""Samples of a model under an intervention: one compiled program for all interventions of one structure."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mechdiff.api.replacing import Sources, replacements_of
from mechdiff.core import devices
from mechdiff.core.devices import ALL, IMAGES
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.samplers import Sampler, initial_noise, keys_of_steps, one_step
from mechdiff.diffusion.schedules import ddim_timesteps
from mechdiff.interventions.record import Intervention
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.storage.run_log import progress
from mechdiff.sweeps.execution.drawing import sample_clip, sample_condition

BLOCK = 16  # images of one program
OF_ROWS = PartitionSpec(None, "images")  # replacements: timesteps, images, ...


def sample(
    denoiser: Examinable,
    intervention: Intervention,
    n: int,
    *,
    seed: int = 0,
    steps: int = 50,
    sources: Sources | None = None,
    condition: Any = None,
) -> Images:
    """`n` images by DDIM (eta 0) under an intervention, `(n, height, width, channels)` in [-1, 1].

    Image i begins with noise of (seed, i) alone: the same under every intervention.

    Args:
      seed: of the noise.
      steps: of DDIM, evenly spread over [0, T); at most T.
      sources: of replacements that depend on the timestep.
      condition: leaves `(n, ...)`; None: of a network with classes, all of them in turn.

    Raises:
      ConfigError: `n` or `steps` below 1, or fewer source images than `n`.
    """
    if n < 1 or steps < 1:
        raise ConfigError(f"n={n} images in steps={steps}: both must be at least 1")
    condition = sample_condition(denoiser, n) if condition is None else condition
    conditions.check(denoiser.network, condition)  # labels are out of range here, or never seen to be
    levels = ddim_timesteps(denoiser.schedule.steps, min(steps, denoiser.schedule.steps))[::-1]
    shared, rows = replacements_of(denoiser, intervention, sources or {}, levels)
    for site, values in rows.items():
        if values.shape[1] < n:
            raise ConfigError(f"{n} images, but {site} is patched from {values.shape[1]}; give as many")
    block, program = min(BLOCK, n), {"clip": sample_clip(denoiser)}
    mesh, key, drawn = devices.over(block), jax.random.key(seed), []
    network = devices.everywhere(mesh, denoiser)
    # Of one kind of array, wherever they come from: another placement would be another program.
    intervention = jax.tree.map(np.asarray, intervention)
    with progress(n, desc=f"sampling {denoiser.name}", unit="image") as bar:
        for start in range(0, n, block):
            places = np.minimum(np.arange(start, start + block), n - 1)
            own = {site: values[:, places] for site, values in rows.items()}
            told = _at(condition, places)
            images = (levels, key, places, told)
            drawn.append(
                np.asarray(_sampled(network, intervention, shared, own, *images, **program, mesh=mesh))
            )
            bar.update(min(block, n - start))
    return np.concatenate(drawn)[:n]


def _at(condition: Any, places: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[places], condition)


@functools.partial(jax.jit, static_argnames=("clip", "mesh"))
def _sampled(
    denoiser: Any,
    intervention: Intervention,
    shared: PyTree,
    own: PyTree,
    levels: Any,
    key: PRNGKey,
    indices: Any,
    condition: PyTree,
    *,
    clip: float,
    mesh: Mesh,
) -> Any:
    """Images `indices` after a walk down `levels`; images are shared out over the devices of the mesh."""

    def local(denoiser, intervention, shared, own, levels, key, indices, condition):
        x = initial_noise(key, indices, denoiser.image_shape)
        inputs = levels, jnp.append(levels[1:], -1), keys_of_steps(key, levels), shared, own

        def step(x_t, at):
            level, previous, step_key, *here = at
            replacement = dict(intervention.replacement) | here[0] | here[1]
            acting = dataclasses.replace(intervention, replacement=replacement)

            def predict(x_t, t):
                return denoiser.predict(acting, x_t, t, condition)

            sampler = Sampler(denoiser.schedule, clip=clip)
            return one_step(predict, sampler, step_key, x_t, level, previous, indices)[0], None

        return jax.lax.scan(step, x, inputs)[0]

    specs = (ALL, ALL, ALL, OF_ROWS, ALL, ALL, IMAGES, IMAGES)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=IMAGES, check_vma=False)
    return run(denoiser, intervention, shared, own, levels, key, indices, condition)
