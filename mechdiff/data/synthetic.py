"""Procedural faces with known causes: image, factors and part masks, seeded by index, at any resolution.

Face `i` of a seed depends on the seed and `i` alone (`fold_in(seed, i)`), never on batch, chunk or device.
The geometry is the same at every size: small images are averages of a finer grid, whose edges are one of
its pixels wide. The factors and the complexity ladder are in `factors.py`, the painting in `drawing/`.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey
from mechdiff.data.drawing.canvas import Layer
from mechdiff.data.drawing.head import make_head
from mechdiff.data.drawing.scene import layers
from mechdiff.data.drawing.skin import freckled_region, nose_region
from mechdiff.data.factors import FACTORS, HAIR_STYLES, RUNGS, Factors, redraw, sample_factors

__all__ = [
    "FACTORS",
    "HAIR_STYLES",
    "PARTS",
    "RUNGS",
    "Face",
    "face",
    "faces",
    "factor_pair",
    "render",
    "render_bytes",
    "sample_factors",
]  # fmt: skip

LAYERED = ("background", "clothes", "skin", "eyes", "brows", "mouth", "hair", "glasses")
PARTS: tuple[str, ...] = (*LAYERED, "nose", "texture", "edges")
FINE = 64  # smaller images are averages of a grid at least this fine
VIEW = 0.87  # half width of the image in the units of the factors
CHUNK = 16  # faces per compiled call in `render_bytes`


class Face(NamedTuple):
    """A rendered face: `image` (H, W, 3) in [-1, 1], `masks` (parts, H, W) in [0, 1] as in `PARTS`."""

    image: Float[Array, "*batch height width 3"]
    factors: dict[str, Float[Array, "*batch"]]
    masks: Float[Array, "*batch parts height width"]


def render(
    factors: Factors, size: int
) -> tuple[Float[Array, "{size} {size} 3"], Float[Array, "parts {size} {size}"]]:
    """Image in [-1, 1] and part masks in [0, 1] (`PARTS`) of one face.

    The first eight masks are what is visible of each painted part and sum to 1; `nose` and `texture` are
    regions of visible skin; `edges` is a band of about a pixel on both sides of every border between parts.

    Raises:
      ConfigError: `size` is not 8 to 256.
    """
    if not 8 <= size <= 256:
        raise ConfigError(f"size={size} pixels is out of range; 8 to 256")
    fold = max(1, math.ceil(FINE / size))
    pixel = 2.0 * VIEW / (size * fold)
    head = make_head(factors, *_grid(size * fold, pixel), pixel)
    image, parts = _composite(layers(factors, head))
    skin = parts[LAYERED.index("skin")]
    regions = (nose_region(factors, head), freckled_region(factors, head))
    masks = _pool(jnp.concatenate([parts, skin * jnp.stack(regions)]), fold)
    masks = jnp.concatenate([masks, _edges(masks[: len(LAYERED)])[None]])
    return jnp.moveaxis(_pool(2.0 * jnp.clip(image, 0.0, 1.0) - 1.0, fold), 0, -1), masks


def face(seed_key: PRNGKey, index: int | Int[Array, ""], size: int, complexity: int = 4) -> Face:
    """Face `index` of the seed, on rung `complexity` of the ladder."""
    return _drawn(_sample(jax.random.fold_in(seed_key, index), complexity), size)


@partial(jax.jit, static_argnames=("size", "complexity"))
def faces(seed_key: PRNGKey, indices: Int[Array, " batch"], size: int, complexity: int = 4) -> Face:
    """`face` for every index, stacked along a leading axis."""
    return jax.vmap(lambda index: face(seed_key, index, size, complexity))(indices)


def factor_pair(
    seed_key: PRNGKey, index: int | Int[Array, ""], factor: str, size: int, complexity: int = 4
) -> tuple[Face, Face]:
    """Face `index` and its twin that differs in `factor` alone, by a quarter to three quarters of its range.

    The factor moves even where `complexity` freezes it. `texture_frequency` and `texture_phase` show only
    where the texture is on (complexity 4).

    Raises:
      ConfigError: no factor is called so (the closest names are given).
    """
    key = jax.random.fold_in(seed_key, index)
    factors = _sample(key, complexity)
    changed = redraw(key, factors, factor)
    return _drawn(factors, size), _drawn(changed, size)


def render_bytes(
    seed: int, start: int, count: int, size: int, complexity: int = 4
) -> UInt8[np.ndarray, "{count} {size} {size} 3"]:
    """Faces `start .. start + count - 1` as bytes, rendered in chunks of one compiled shape.

    Raises:
      ConfigError: a negative start or count, or a size or complexity out of range.
    """
    if start < 0 or count < 0:
        raise ConfigError(f"start={start}, count={count}: both must be at least 0")
    out = np.empty((count, size, size, 3), np.uint8)
    for done in range(0, count, CHUNK):
        chunk = _bytes(
            jax.random.key(seed), start + done + np.arange(CHUNK, dtype=np.int32), size, complexity
        )
        out[done : done + CHUNK] = np.asarray(chunk)[: count - done]
    return out


@partial(jax.jit, static_argnames=("size", "complexity"))
def _bytes(
    key: PRNGKey, indices: Int[Array, " batch"], size: int, complexity: int
) -> UInt8[Array, "batch {size} {size} 3"]:
    return jnp.round(127.5 * (faces(key, indices, size, complexity).image + 1.0)).astype(jnp.uint8)


_sample = partial(jax.jit, static_argnames="complexity")(sample_factors)


@partial(jax.jit, static_argnames="size")
def _drawn(factors: Factors, size: int) -> Face:
    image, masks = render(factors, size)
    return Face(image, factors, masks)


def _grid(count: int, pixel: float) -> tuple[Array, Array]:
    """Centres of count x count pixels around the origin: x and y, each (count, count)."""
    offsets = (jnp.arange(count) - 0.5 * (count - 1)) * pixel
    return tuple(jnp.meshgrid(offsets, offsets))


def _composite(
    painted: tuple[Layer, ...],
) -> tuple[Float[Array, "3 height width"], Float[Array, "parts height width"]]:
    """Paint the layers in order (the "over" operator): the image, and what stays visible of each part."""
    image = 0.0
    for _, alpha, color in painted:
        image = image * (1.0 - alpha) + alpha * color
    visible, through = dict.fromkeys(LAYERED, 0.0), 1.0
    for part, alpha, _ in reversed(painted):
        visible[part] += alpha * through
        through *= 1.0 - alpha
    return image, jnp.stack([visible[name] for name in LAYERED])


def _pool(planes: Float[Array, "planes fine fine"], fold: int) -> Float[Array, "planes size size"]:
    count, fine, _ = planes.shape
    return planes.reshape(count, fine // fold, fold, fine // fold, fold).mean((2, 4))


def _edges(masks: Float[Array, "planes height width"]) -> Float[Array, "height width"]:
    """Half the local range of the masks over 3 x 3 pixels, summed: 1 at a sharp border, 0 well inside."""
    window = dict(window_dimensions=(1, 3, 3), window_strides=(1, 1, 1), padding="SAME")
    high = jax.lax.reduce_window(masks, -jnp.inf, jax.lax.max, **window)
    low = -jax.lax.reduce_window(-masks, -jnp.inf, jax.lax.max, **window)
    return jnp.clip(0.5 * jnp.sum(high - low, axis=0), 0.0, 1.0)
