"""Image features: the targets of roles. Definitions are ours.

Every target is a pure function of images `(..., side, side, 3)` in [-1, 1] and gives `(..., numbers)`, in
which changes of an image are distances. Of an image alone (`image_feature_names`):
  edges    magnitude of the Sobel gradient of luminance, at every pixel
  detail0, detail1, ...   root of the energy in each octave of a Haar pyramid, the finest first, down to 4x4
  texture  local variance of luminance (3x3) where there is no edge: weighted by 1 / (1 + (gradient / 0.25)^2)
  color    what is not luminance, in 4x4 cells
  layout   luminance in 4x4 cells
With the masks of a synthetic face, `part:NAME`: mean color of the part. With linear probes, `factor:NAME`:
what the probe predicts from the image (`probes`).
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Float

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, PyTree
from mechdiff.data.images import LUMINANCE

Images = Float[AnyArray, "*rows side side 3"]
Numbers = Float[AnyArray, "*rows numbers"]
Plane = Float[AnyArray, "*rows side side"]

CELLS = 4  # along a side of the coarse image
EDGE = 0.25  # gradient, in luminance per pixel, at which a pixel counts half as an edge
TINY = 1e-12  # under roots, whose slope is infinite at 0


def image_feature_names(side: int, channels: int = 3) -> tuple[str, ...]:
    """Names of the targets of an image alone.

    Raises:
      ConfigError: a side that 4x4 cells do not divide, or images that are not red, green and blue.
    """
    if channels != 3:
        raise ConfigError(
            f"images of {channels} channel(s) have no colors, and targets of roles and selectivity are of "
            "red, green and blue; sweeps, circuits, phases and attention take any images"
        )
    if side % CELLS:
        raise ConfigError(
            f"images of {side} pixels have no {CELLS}x{CELLS} cells; the side must divide by {CELLS}"
        )
    return ("edges", *(f"detail{i}" for i in range(_octaves(side))), "texture", "color", "layout")


def features(
    x: Images,
    masks: Float[AnyArray, "... parts side side"] | None = None,
    parts: Sequence[str] = (),
    probes: Mapping[str, PyTree] | None = None,
) -> dict[str, Numbers]:
    """All targets of images, by name.

    Args:
      masks, parts: of the clean images, not of the predicted ones, and the names of the parts.
      probes: name -> (weights `(pixels, numbers)`, offset `(numbers,)`).
    """
    gray = luminance(x)
    gradient = sobel(gray)
    coarse = _pooled(x, x.shape[-2] // CELLS)
    layout = luminance(coarse)
    targets = {"edges": _flat(gradient, 2)}
    targets |= {f"detail{i}": energy for i, energy in enumerate(octaves(x))}
    targets["texture"] = _flat(local_variance(gray) / (1 + (gradient / EDGE) ** 2), 2)
    targets["color"] = _flat(coarse - layout[..., None], 3)
    targets["layout"] = _flat(layout, 2)
    if masks is not None:
        means = part_means(x, masks)
        targets |= {f"part:{name}": means[..., i, :] for i, name in enumerate(parts)}
    flat = _flat(x, 3)
    targets |= {f"factor:{name}": flat @ w + offset for name, (w, offset) in (probes or {}).items()}
    return targets


def luminance(x: Images) -> Plane:
    """Weighted mean of red, green and blue."""
    return x @ LUMINANCE


def sobel(gray: Plane) -> Plane:
    """Magnitude of the gradient (Sobel & Feldman 1968): a ramp of slope 1 gives 1; borders are repeated."""
    g = _padded(gray)
    down = (g[..., :, :-2] + 2 * g[..., :, 1:-1] + g[..., :, 2:]) / 4
    along = (g[..., :-2, :] + 2 * g[..., 1:-1, :] + g[..., 2:, :]) / 4
    dy = (down[..., 2:, :] - down[..., :-2, :]) / 2
    dx = (along[..., :, 2:] - along[..., :, :-2]) / 2
    return jnp.sqrt(dx * dx + dy * dy + TINY)


def local_variance(gray: Plane) -> Plane:
    """Variance over the 3x3 pixels around each; borders are repeated."""

    def mean(plane):
        p = _padded(plane)
        rows = p[..., :-2, :] + p[..., 1:-1, :] + p[..., 2:, :]
        return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9

    return jnp.maximum(mean(gray * gray) - mean(gray) ** 2, 0)


def octaves(x: Images) -> list[Float[AnyArray, "*rows 1"]]:
    """Root mean square of what each halving of the resolution loses, the finest first."""
    energies = []
    for _ in range(_octaves(x.shape[-2])):
        half = _pooled(x, 2)
        lost = x - half.repeat(2, axis=-3).repeat(2, axis=-2)
        energies.append(jnp.sqrt((lost * lost).mean(axis=(-3, -2, -1)) + TINY)[..., None])
        x = half
    return energies


def part_means(x: Images, masks: Float[AnyArray, "... parts side side"]) -> Float[AnyArray, "*rows parts 3"]:
    """Mean color within each mask; of a part smaller than a pixel the sum: 0 where the part is absent."""
    total = jnp.einsum("...pyx,...yxc->...pc", masks, x)
    return total / jnp.maximum(masks.sum(axis=(-2, -1)), 1)[..., None]


def _octaves(side: int) -> int:
    count = 0
    while side % 2 == 0 and side > CELLS:
        side, count = side // 2, count + 1
    return count


def _pooled(x: AnyArray, fold: int) -> AnyArray:
    *rows, side, _, channels = x.shape
    return x.reshape(*rows, side // fold, fold, side // fold, fold, channels).mean(axis=(-4, -2))


def _padded(plane: AnyArray) -> AnyArray:
    return jnp.pad(plane, [(0, 0)] * (plane.ndim - 2) + [(1, 1)] * 2, mode="edge")


def _flat(a: AnyArray, axes: int) -> Numbers:
    return a.reshape(*a.shape[:-axes], -1)
