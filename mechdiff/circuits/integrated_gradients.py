"""Integrated gradients of the loss in the gates, along the straight path from ablated to identity.

A gradient is taken at one point. At identity, redundant components hide each other; at the ablated point,
those that need each other do. Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) average over
the path on which all gates open together, and their shares sum to the difference of the losses. They miss
what happens between the points taken: where two copies of a signal saturate a norm, near the ablated end.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.interventions.build import ablate
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable, chosen_components
from mechdiff.storage import digests, pieces
from mechdiff.sweeps.activations import replacements_at
from mechdiff.sweeps.coords import component_coords
from mechdiff.sweeps.execution.provenance import component_keys, provenance, result_key, store
from mechdiff.sweeps.in_memory import IMAGES, in_blocks

DIMS = ("component", *IMAGES)


@functools.partial(jax.jit, static_argnames=("steps",))
def _shares(
    denoiser: Examinable, steps: int, start: PyTree, end: Intervention, batch: EvalBatch
) -> dict[str, Float[Array, "batch units"]]:
    """Minus the mean gradient of each image's loss on the gates' path from `start` to those of `end`."""
    count = len(batch.images)
    x_t, t, noise = batch.noised(denoiser.schedule)

    def loss(gate):
        changed = dataclasses.replace(end, gate=gate)
        error = denoiser.predict(changed, x_t, t, batch.condition) - noise
        per_image = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
        return per_image.sum()  # no image's gates touch another image

    def step(total, s):
        gate = {
            site: jnp.tile((1 - s) * start[site] + s * gate, (count, 1)) for site, gate in end.gate.items()
        }
        return jax.tree.map(lambda sum_, g: sum_ - g / steps, total, jax.grad(loss)(gate)), None

    nothing = {site: jnp.zeros((count, gate.shape[-1])) for site, gate in end.gate.items()}
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
    folder: Path | None = None,
) -> xr.Dataset:
    """Share of each of `chosen` in L(without all of them) - L, image by image.

    The share of a component is -int_0^1 dL/dgate ds, s being how far all gates have opened, by the midpoints
    of `steps` equal parts.

    Args:
      steps: gradients taken.
      folder: what is measured is kept here too, so that an interrupted run can go on; None: nothing is kept
        on disk. All other arguments as in `attribution.gate_scores`.

    Returns:
      Dataset with `score`, in units of the denoising loss, dims `component, t, image`.

    Raises:
      ConfigError: no steps, or an ablation without its replacements.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps} must be at least 1; 8 are usual")
    chosen = chosen_components(denoiser, chosen)
    timesteps, count = eval_set.timesteps, eval_set.count

    def compute(t_index: int, image_rows: Int[np.ndarray, " block"]) -> dict[str, np.ndarray]:
        values = None if ablation == "zero" else replacements_at(replacements or {}, t_index)
        ablated = ablate(denoiser.identity, chosen, ablation, values)
        end = dataclasses.replace(ablated, gate=dict(denoiser.identity.gate))
        batch = eval_set.batch(t_index, image_rows)
        shares = jax.device_get(_shares(denoiser, steps, ablated.gate, end, batch))
        of_each = [shares[component.site][:, slice(*component.index)].sum(axis=-1) for component in chosen]
        return {"score": np.stack(of_each)}

    path = None
    if folder is not None:
        values = None if ablation == "zero" else digests.digest_arrays(replacements)
        decisive = {"integrated": component_keys(denoiser, chosen), "replacements": values, "steps": steps}
        path = store(folder, result_key(denoiser, eval_set, **decisive, ablation=ablation, block=block))
    sizes = {"component": len(chosen), "t": len(timesteps), "image": count}
    empty, title = pieces.unfilled({"score": DIMS}, sizes), f"integrating gradients of {denoiser.name}"
    score = in_blocks(empty, compute, block, path, title)["score"]
    return xr.Dataset(
        {"score": (DIMS, score)},
        coords=component_coords(denoiser, chosen, timesteps, count),
        attrs={**provenance(denoiser), "ablation": ablation, "steps": steps},
    )
