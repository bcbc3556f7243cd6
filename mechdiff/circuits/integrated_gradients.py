"""Integrated gradients of the loss in the gates, along the straight path from ablated to identity.

A gradient is taken at one point. At identity, redundant components hide each other; at the ablated point,
those that need each other do. Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) average over
the path on which all gates open together, and their shares sum to the difference of the losses. They miss
what happens between the points taken: where two copies of a signal saturate a norm, near the ablated end.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import ablate
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.activations import replacements_at


@functools.partial(jax.jit, static_argnames=("steps",))
def _shares(
    denoiser: Examinable,
    steps: int,
    start: PyTree,
    end: Intervention,
    x0: Images,
    t: Int[Array, ""],
    indices: Int[Array, " batch"],
    key: PRNGKey,
    condition: PyTree,
) -> dict[str, Float[Array, "batch units"]]:
    """Minus the mean gradient of each image's loss on the gates' path from `start` to those of `end`."""
    batch = len(x0)
    noise, at = image_noise(key, indices, x0.shape[1:]), jnp.full(batch, t)
    x_t = q_sample(denoiser.schedule, x0, at, noise)

    def loss(gate):
        changed = dataclasses.replace(end, gate=gate)
        error = denoiser.predict(changed, x_t, at, condition) - noise
        return jnp.mean(
            error**2, axis=tuple(range(1, error.ndim))
        ).sum()  # no image's gates touch another image

    def step(total, s):
        gate = {
            site: jnp.tile((1 - s) * start[site] + s * gate, (batch, 1)) for site, gate in end.gate.items()
        }
        return jax.tree.map(lambda sum_, g: sum_ - g / steps, total, jax.grad(loss)(gate)), None

    nothing = {site: jnp.zeros((batch, gate.shape[-1])) for site, gate in end.gate.items()}
    return jax.lax.scan(step, nothing, (jnp.arange(steps) + 0.5) / steps)[0]


def integrated_gradients(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    chosen: Sequence[Component] | None = None,
    ablation: str = "zero",
    replacements: PyTree = None,
    steps: int = 8,
    block: int = 8,
) -> xr.Dataset:
    """Share of each of `chosen` in L(without all of them) - L, image by image.

    The share of a component is -int_0^1 dL/dgate ds, s being how far all gates have opened, by the midpoints
    of `steps` equal parts.

    Args:
      steps: gradients taken; all other arguments as in `attribution.gate_scores`.

    Returns:
      Dataset with `score`, in units of the denoising loss, dims `component, t, image`.

    Raises:
      ConfigError: no steps, or an ablation without its replacements.
    """
    images, timesteps, key = eval_set.images, eval_set.timesteps, eval_set.key
    if steps < 1:
        raise ConfigError(f"steps={steps} must be at least 1; 8 are usual")
    chosen = tuple(chosen or denoiser.components())
    images, timesteps = np.asarray(images), np.asarray(timesteps, np.int32)
    score = np.empty((len(chosen), len(timesteps), len(images)), np.float32)
    for t_index, t in enumerate(timesteps):
        ablated = ablate(
            denoiser.identity,
            chosen,
            ablation,
            None if ablation == "zero" else replacements_at(replacements or {}, t_index),
        )
        end = dataclasses.replace(ablated, gate=dict(denoiser.identity.gate))
        for start in range(0, len(images), block):
            # A short last block is padded, so that one compiled program serves all blocks.
            count = min(block, len(images) - start)
            index = np.resize(np.arange(start, start + count), block)
            condition = jax.tree.map(lambda leaf, index=index: leaf[index], eval_set.condition)
            path = denoiser, steps, ablated.gate, end
            units = jax.device_get(_shares(*path, images[index], int(t), index, key, condition))
            shares = [units[part.site][:count, slice(*part.index)].sum(axis=-1) for part in chosen]
            score[:, t_index, start : start + count] = shares
    return xr.Dataset(
        {"score": (("component", "t", "image"), score)},
        coords={
            "component": [component.name for component in chosen],
            "component_type": ("component", [component.component_type for component in chosen]),
            "t": timesteps,
            "image": np.arange(len(images)),
        },
        attrs={"denoiser": denoiser.name, "ablation": ablation, "steps": steps},
    )
