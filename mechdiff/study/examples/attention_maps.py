"""Attention maps of heads on a few images, made small."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, UInt8
from PIL import Image

from mechdiff.core.types import PRNGKey
from mechdiff.interventions.components import pattern_site
from mechdiff.models.blocks import PATTERNS
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.examples.sizes import Sizes
from mechdiff.sweeps import activations


def draw(
    denoiser: Examinable, images: EvalImages, timesteps: Sequence[int], noise: PRNGKey, sizes: Sizes
) -> xr.Dataset:
    """Attention maps of heads over more than one position, queries by row and keys by column.

    Returns:
      `pattern`, by head, timestep and image, as bytes.
    """
    heads = [component for component in denoiser.components() if component.component_type == "head"]
    count, drawn, eval_set = min(sizes.maps, len(images.scored)), {}, images.scored_set(timesteps, noise)
    for t_index in range(len(timesteps) if heads else 0):
        for image in range(count):
            batch = eval_set.batch(t_index, np.array([image]))
            values = activations.of_batch(denoiser, batch, collection=PATTERNS)
            for head in heads[: sizes.heads]:
                pattern = values.get(head.site, values.get(pattern_site(head.site)))
                if pattern is not None and pattern.shape[-1] > 1:
                    maps = drawn.setdefault(head.name, {})
                    maps[t_index, image] = as_bytes(np.asarray(pattern[0, head.index[0]]), sizes.map_side)
    shape = (len(drawn), len(timesteps), count, sizes.map_side, sizes.map_side)
    pattern = np.zeros(shape, np.uint8)
    for row, maps in enumerate(drawn.values()):
        for query, small in maps.items():
            pattern[row][query] = small
    return xr.Dataset(
        {"pattern": (("head", "t", "image", "query", "key"), pattern)},
        coords={"head": np.array(list(drawn), dtype=str), "t": np.asarray(timesteps, np.int32)},
    )


def as_bytes(pattern: Float[np.ndarray, "queries keys"], side: int) -> UInt8[np.ndarray, "side side"]:
    """An attention map, neighbors averaged to `side` a side; 255 is its own largest weight."""
    box = Image.Resampling.BOX
    small = np.asarray(Image.fromarray(pattern.astype(np.float32)).resize((side, side), box))
    return (255 * small / max(float(small.max()), 1e-30)).round().astype(np.uint8)
