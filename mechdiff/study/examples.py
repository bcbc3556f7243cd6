"""Example images of single components: samples with each of the largest ablated, attention maps of heads, and
the images on which an activation is largest.

They are illustrations, not evidence: a few images without intervals. examples.zarr of an examined model has
  untouched, ablated   samples from equal noise, bytes; `ablated` with one component replaced by zero
  strongest            images on which a component's activation has the largest root mean square, bytes
  strongest_image      their numbers among the scored images
  pattern              attention maps by head, timestep and image, bytes; 255 is the map's own largest weight
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, UInt8
from PIL import Image

from mechdiff.analysis import effects
from mechdiff.core import keys
from mechdiff.core.batches import batches
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import PRNGKey
from mechdiff.data import to_bytes
from mechdiff.diffusion.samplers import ddim_step, initial_noise
from mechdiff.diffusion.schedules import ddim_timesteps
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component, pattern_site
from mechdiff.models import conditions
from mechdiff.models.blocks import PATTERNS
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests, labelled, locks
from mechdiff.study.eval_images import EvalImages
from mechdiff.sweeps import activations
from mechdiff.sweeps.execution import drawing, footprint, memory, rollout

COMPONENTS, SAMPLES, STEPS = 8, 4, 12  # samples are drawn with each component of the largest effects ablated
STRONGEST = 3  # images on which an activation is largest
HEADS, MAPS, MAP_TIMESTEPS, MAP_SIDE = 64, 2, 3, 32  # attention maps: heads, images, timesteps, bytes a side
SIDE = 64  # images are kept no larger, in pixels


def save(
    path: Path, denoiser: Examinable, images: EvalImages, sweep: xr.Dataset, seed: int, noise: PRNGKey
) -> None:
    """Writes the examples of an examined network, unless those at `path` are of the same network and images.

    Args:
      sweep: of `sweeps.ablation_sweep`; it says which components are the largest, and the timesteps.
      seed: of the noise that samples begin with.
      noise: key of the noise on the scored images.
    """
    if not drawable(denoiser):
        return
    chosen = largest(denoiser, sweep)
    made_of = digests.digest_json(
        {
            **denoiser.digests(),
            "images": digests.digest_arrays([images.scored, images.scored_condition]),
            "components": [component.name for component in chosen],
            "settings": [
                seed,
                COMPONENTS,
                SAMPLES,
                STEPS,
                STRONGEST,
                HEADS,
                MAPS,
                MAP_TIMESTEPS,
                MAP_SIDE,
                SIDE,
            ],
            "timesteps": sweep["t"].values.tolist(),
            "numerics": NUMERICS_VERSION,
        }
    )
    with locks.lock(path.parent, wait=True):
        if path.exists() and labelled.read(path).attrs.get("made_of") == made_of:
            return
        timesteps = few(sweep["t"].values)
        parts = [
            samples(denoiser, chosen, seed, images),
            strongest(denoiser, chosen, images, timesteps[len(timesteps) // 2], noise),
            attention_maps(denoiser, images, timesteps, noise),
        ]
        merged = xr.merge(parts, combine_attrs="no_conflicts")
        labelled.replace(path, merged.assign_attrs(made_of=made_of))


def drawable(denoiser: Examinable) -> bool:
    """Whether the network's images can be shown: height, width, and one or three channels."""
    shape = denoiser.image_shape
    return len(shape) == 3 and shape[-1] in (1, 3)


def largest(denoiser: Examinable, sweep: xr.Dataset) -> list[Component]:
    """Components of the largest pooled relative loss increase, by zero ablation if it was swept."""
    ablations = [str(name) for name in sweep["ablation"].values]
    clean, loss = effects.losses(sweep, "zero" if "zero" in ablations else ablations[0])
    pooled = np.nan_to_num((loss.mean(axis=-1) / clean.mean(axis=-1) - 1).mean(axis=-1), nan=-np.inf)
    listed = {component.name: component for component in denoiser.components()}
    ranked = [str(sweep["component"].values[i]) for i in np.argsort(-pooled, kind="stable")]
    return [listed[name] for name in ranked if name in listed][:COMPONENTS]


def few(timesteps: np.ndarray) -> list[int]:
    """The first, a middle and the last timestep."""
    places = np.linspace(0, len(timesteps) - 1, min(MAP_TIMESTEPS, len(timesteps))).round().astype(int)
    return [int(timesteps[place]) for place in places]


def samples(denoiser: Examinable, chosen: Sequence[Component], seed: int, images: EvalImages) -> xr.Dataset:
    """Samples of the network without intervention, and with each component zero-ablated, from the same noise.

    DDIM of `STEPS` steps; sample i has the noise of (seed, i) and the condition of scored image i. All
    interventions are run by one program.
    """
    count = min(SAMPLES, len(images.scored))
    timesteps = ddim_timesteps(denoiser.schedule.steps, min(STEPS, denoiser.schedule.steps))
    condition = conditions.at(images.scored_condition, slice(count))
    key, descending = sampling_key(seed), np.sort(timesteps)[::-1].copy()
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
    small = thumbnails(np.concatenate(drawn))
    axes = ("sample", "y", "x", "channel")
    return xr.Dataset(
        {"untouched": (axes, small[0]), "ablated": (("component", *axes), small[1:])},
        coords={"component": [component.name for component in chosen]},
        attrs={"steps": len(descending)},
    )


def sampling_key(seed: int) -> PRNGKey:
    """Key of the initial noise of samples."""
    return keys.stream(jax.random.key(seed), "examples")


def strongest(
    denoiser: Examinable, chosen: Sequence[Component], images: EvalImages, t: int, noise: PRNGKey
) -> xr.Dataset:
    """The scored images on which the activation of a component has the largest root mean square at `t`."""
    network, count = denoiser.network, len(images.scored)
    of_image = footprint.row_bytes(network) + footprint.replacement_bytes(network)
    block = memory.images_at_once(min(8, count), of_image)
    size = np.empty((len(chosen), count))
    for batch in batches(count, block):
        places = batch.indices
        condition = conditions.at(images.scored_condition, places)
        values = activations.activations(denoiser, images.scored[places], t, noise, places, condition)
        for row, component in enumerate(chosen):
            size[row, places] = root_mean_square(denoiser, component, np.asarray(values[component.site]))
    order = np.argsort(-size, axis=1, kind="stable")[:, :STRONGEST]
    axes = ("component", "rank")
    return xr.Dataset(
        {
            "strongest": ((*axes, "y", "x", "channel"), thumbnails(np.asarray(images.scored)[order])),
            "strongest_image": (axes, order.astype(np.int32)),
        },
        coords={"component": [component.name for component in chosen]},
        attrs={"strongest_t": t},
    )


def root_mean_square(
    denoiser: Examinable, component: Component, activation: Float[np.ndarray, "images ..."]
) -> Float[np.ndarray, " images"]:
    """Root mean square of a component's units of its site's activation, image by image."""
    units = np.moveaxis(activation, denoiser.unit_axis(component.site), -1)[..., slice(*component.index)]
    return np.sqrt((units.astype(np.float64) ** 2).mean(axis=tuple(range(1, units.ndim))))


def attention_maps(
    denoiser: Examinable, images: EvalImages, timesteps: Sequence[int], noise: PRNGKey
) -> xr.Dataset:
    """Attention maps of heads over more than one position, queries by row and keys by column, as bytes."""
    heads = [component for component in denoiser.components() if component.component_type == "head"][:HEADS]
    count, drawn = min(MAPS, len(images.scored)), {}
    for t_index, t in enumerate(timesteps if heads else ()):
        for image in range(count):
            place = np.array([image])
            condition = conditions.at(images.scored_condition, place)
            values = activations.activations(
                denoiser, images.scored[place], t, noise, place, condition, collection=PATTERNS
            )
            for head in heads:
                pattern = values.get(head.site, values.get(pattern_site(head.site)))
                if pattern is not None and pattern.shape[-1] > 1:
                    maps = drawn.setdefault(head.name, {})
                    maps[t_index, image] = as_bytes(np.asarray(pattern[0, head.index[0]]))
    shape = (len(drawn), len(timesteps), count, MAP_SIDE, MAP_SIDE)
    pattern = np.zeros(shape, np.uint8)
    for row, maps in enumerate(drawn.values()):
        for place, small in maps.items():
            pattern[row][place] = small
    return xr.Dataset(
        {"pattern": (("head", "t", "image", "query", "key"), pattern)},
        coords={"head": np.array(list(drawn), dtype=str), "t": np.asarray(timesteps, np.int32)},
    )


def as_bytes(pattern: Float[np.ndarray, "queries keys"]) -> UInt8[np.ndarray, "side side"]:
    """An attention map, neighbors averaged to `MAP_SIDE`; 255 is its own largest weight."""
    box = Image.Resampling.BOX
    small = np.asarray(Image.fromarray(pattern.astype(np.float32)).resize((MAP_SIDE, MAP_SIDE), box))
    return (255 * small / max(float(small.max()), 1e-30)).round().astype(np.uint8)


def thumbnails(
    images: Float[np.ndarray, "*leading height width channels"],
) -> UInt8[np.ndarray, "*leading y x channel"]:
    """Images in [-1, 1] as bytes, no larger than `SIDE`."""
    pixels = to_bytes(np.nan_to_num(images))
    height, width, channels = pixels.shape[-3:]
    if max(height, width) <= SIDE:
        return pixels
    size = (max(1, SIDE * width // max(height, width)), max(1, SIDE * height // max(height, width)))
    flat = [
        image[..., 0] if channels == 1 else image for image in pixels.reshape(-1, height, width, channels)
    ]
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in flat]
    return np.stack(small).reshape(*pixels.shape[:-3], size[1], size[0], channels)
