"""Saves the examples of an examined network, once."""

import dataclasses
from pathlib import Path

import numpy as np
import xarray as xr

from mechdiff.analysis import effects
from mechdiff.core.types import PRNGKey
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests, labelled
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.examples import attention_maps, samples, strongest
from mechdiff.study.examples.sizes import Sizes
from mechdiff.sweeps.execution.provenance import result_key


def save(
    path: Path,
    denoiser: Examinable,
    images: EvalImages,
    sweep: xr.Dataset,
    seed: int,
    noise: PRNGKey,
    sizes: Sizes = Sizes(),
) -> None:
    """Writes the examples of an examined network, unless those at `path` are of the same network and images.

    Args:
      sweep: of `ablation.ablation_sweep`; it says which components are the largest, and the timesteps.
      seed: of the noise that samples begin with.
      noise: key of the noise on the scored images.
    """
    if not drawable(denoiser):
        return
    chosen = largest(denoiser, sweep, sizes.components)
    key = result_key(
        denoiser,
        images=digests.digest_arrays([images.scored, images.scored_condition]),
        components=[component.name for component in chosen],
        settings=[seed, *dataclasses.asdict(sizes).values()],
        timesteps=sweep["t"].values.tolist(),
    )

    def draw() -> xr.Dataset:
        timesteps = few(sweep["t"].values, sizes.map_timesteps)
        datasets = [
            samples.draw(denoiser, chosen, images, seed, sizes),
            strongest.find(denoiser, chosen, images, timesteps[len(timesteps) // 2], noise, sizes),
            attention_maps.draw(denoiser, images, timesteps, noise, sizes),
        ]
        return xr.merge(datasets, combine_attrs="no_conflicts")

    labelled.save_once(path, key, draw)


def drawable(denoiser: Examinable) -> bool:
    """Whether the network's images can be shown: height, width, and one or three channels."""
    shape = denoiser.image_shape
    return len(shape) == 3 and shape[-1] in (1, 3)


def largest(denoiser: Examinable, sweep: xr.Dataset, count: int) -> list[Component]:
    """Components of the largest pooled relative loss increase, by zero ablation if it was swept."""
    ablations = [str(name) for name in sweep["ablation"].values]
    clean, loss = effects.losses(sweep, "zero" if "zero" in ablations else ablations[0])
    pooled = np.nan_to_num((loss.mean(axis=-1) / clean.mean(axis=-1) - 1).mean(axis=-1), nan=-np.inf)
    listed = {component.name: component for component in denoiser.components()}
    ranked = [str(sweep["component"].values[i]) for i in np.argsort(-pooled, kind="stable")]
    return [listed[name] for name in ranked if name in listed][:count]


def few(timesteps: np.ndarray, count: int) -> list[int]:
    """`count` of the timesteps, evenly spread from the first to the last."""
    indices = np.linspace(0, len(timesteps) - 1, min(count, len(timesteps))).round().astype(int)
    return [int(timesteps[i]) for i in indices]
