"""Samples of a network with each of a few components ablated, beside those of the network as it is."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import xarray as xr

from mechdiff.core import keys
from mechdiff.core.batches import batches
from mechdiff.core.types import PRNGKey
from mechdiff.diffusion.samplers import ddim_step, initial_noise
from mechdiff.diffusion.schedules import ddim_timesteps
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.examples.sizes import Sizes
from mechdiff.study.examples.thumbnails import thumbnails
from mechdiff.sweeps.execution import drawing, footprint, memory, rollout


def draw(
    denoiser: Examinable, chosen: Sequence[Component], images: EvalImages, seed: int, sizes: Sizes
) -> xr.Dataset:
    """Samples of the network without intervention, and with each component zero-ablated, from the same noise.

    DDIM of `sizes.steps` steps; sample i has the noise of (seed, i) and the condition of scored image i. All
    interventions are run by one program.

    Returns:
      `untouched` and, by component, `ablated`, as bytes.
    """
    count = min(sizes.samples, len(images.scored))
    timesteps = ddim_timesteps(denoiser.schedule.steps, min(sizes.steps, denoiser.schedule.steps))
    condition = conditions.at(images.scored_condition, slice(count))
    key, descending = initial_key(seed), np.sort(timesteps)[::-1].copy()
    clip = drawing.sample_clip(denoiser)
    sampler = rollout.Rollout(denoiser, descending, key, ddim_step, clip, count, condition)
    identity, indices = denoiser.identity, np.arange(count)
    stacked = leave_one_out(identity, chosen)[1]
    gate = {site: np.concatenate([np.ones_like(rows[:1]), rows]) for site, rows in stacked.gate.items()}
    total = 1 + len(chosen)
    fitting = memory.images_at_once(total * count, footprint.row_bytes(denoiser.network))
    group = max(1, min(total, fitting // count))
    start = initial_noise(key, indices, denoiser.image_shape)
    drawn = []
    for batch in batches(total, group):
        acting = dataclasses.replace(
            stacked,
            gate={site: values[batch.indices] for site, values in gate.items()},
            temperature={
                site: np.tile(np.asarray(value), (group, 1)) for site, value in identity.temperature.items()
            },
            replacement=rollout.zero_replacements(identity, len(descending)),
        )
        images_drawn = sampler.run(acting, (0, len(descending)), start, indices)
        drawn.append(np.asarray(images_drawn)[: batch.count])
    small = thumbnails(np.concatenate(drawn), sizes.side)
    axes = ("sample", "y", "x", "channel")
    return xr.Dataset(
        {"untouched": (axes, small[0]), "ablated": (("component", *axes), small[1:])},
        coords={"component": [component.name for component in chosen]},
        attrs={"steps": len(descending)},
    )


def initial_key(seed: int) -> PRNGKey:
    """Key of the initial noise of samples."""
    return keys.stream(jax.random.key(seed), "examples")
