"""Anti-aliased shapes, color ramps and hashed noise on a pixel grid: the brushes of the face painter.

A coverage is the share of a pixel that lies inside a shape, in [0, 1]; edges are one pixel wide. A color is
RGB in [0, 1] with shape (3,), (3, 1, 1) or (3, H, W).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

Plane = Float[Array, "height width"]


class Layer(NamedTuple):
    """Paint of one part: opacity and color; later layers lie over earlier ones."""

    part: str
    alpha: Plane
    color: Array


def inside(distance: Plane, pixel: float) -> Plane:
    """Coverage from a signed distance to the outline (negative inside)."""
    return jnp.clip(0.5 - distance / pixel, 0.0, 1.0)


def ellipse(x: Plane, y: Plane, rx, ry, pixel: float) -> Plane:
    """Coverage of an ellipse around the origin; the distance is first order in the implicit function."""
    qx, qy = x / rx, y / ry
    radius = jnp.sqrt(qx**2 + qy**2 + 1e-9)
    slope = jnp.sqrt((qx / rx) ** 2 + (qy / ry) ** 2 + 1e-9) / radius
    return inside((radius - 1.0) / slope, pixel)


def band(y: Plane, top, bottom, pixel: float) -> Plane:
    """Coverage of `top < y < bottom`, right also when thinner than a pixel; empty where top >= bottom."""
    below_top = jnp.clip((y - top) / pixel + 0.5, 0.0, 1.0)
    below_bottom = jnp.clip((y - bottom) / pixel + 0.5, 0.0, 1.0)
    return jnp.maximum(below_top - below_bottom, 0.0)


def bump(x: Plane, y: Plane, rx, ry) -> Plane:
    """A Gaussian hill of height 1."""
    return jnp.exp(-((x / rx) ** 2) - (y / ry) ** 2)


def ramp(value: Float[Array, ""], colors: tuple[tuple[float, float, float], ...]) -> Float[Array, "3"]:
    """The color at `value` in [0, 1] along equally spaced `colors`."""
    table = jnp.asarray(colors, jnp.float32)
    position = jnp.clip(value, 0.0, 1.0) * (len(colors) - 1)
    weights = jnp.maximum(1.0 - jnp.abs(position - jnp.arange(len(colors))), 0.0)
    return weights @ table


def from_hue(hue: Float[Array, ""], saturation: float, value) -> Float[Array, "3"]:
    """RGB of a hue in [0, 1), by cosines instead of a hexagon; its mean is `value * (1 - saturation / 2)`."""
    wheel = 0.5 + 0.5 * jnp.cos(2 * jnp.pi * (hue - jnp.array([0.0, 1 / 3, 2 / 3])))
    return value * (1.0 - saturation + saturation * wheel)


def hashed(x: UInt32[Array, "..."], y: UInt32[Array, "..."], seed: UInt32[Array, ""]) -> Float[Array, "..."]:
    """A fixed pseudo-random number in [0, 1) for every lattice point (integer mixing as in MurmurHash3)."""
    mixed = x * jnp.uint32(374761393) + y * jnp.uint32(668265263) + seed * jnp.uint32(2246822519)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(3266489917)
    return (mixed >> 8).astype(jnp.float32) / 2.0**24


def lattice(x: Plane) -> tuple[UInt32[Array, "height width"], Plane]:
    """Cell number and place inside the cell, in [0, 1)."""
    floor = jnp.floor(x)
    return (floor + 4096.0).astype(jnp.uint32), x - floor


def value_noise(x: Plane, y: Plane, seed: UInt32[Array, ""]) -> Plane:
    """Smooth noise in [-1, 1] with one random value per unit cell."""
    (ix, fx), (iy, fy) = lattice(x), lattice(y)
    wx, wy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    one = jnp.uint32(1)
    top = hashed(ix, iy, seed) * (1.0 - wx) + hashed(ix + one, iy, seed) * wx
    bottom = hashed(ix, iy + one, seed) * (1.0 - wx) + hashed(ix + one, iy + one, seed) * wx
    return 2.0 * (top * (1.0 - wy) + bottom * wy) - 1.0


def spots(x: Plane, y: Plane, seed: UInt32[Array, ""], pixel: Float[Array, ""]) -> Plane:
    """One round spot of random place, size and strength per unit cell, in [0, 1]; it stays in its cell."""
    (ix, fx), (iy, fy) = lattice(x), lattice(y)
    offset_x = 0.32 + 0.36 * hashed(ix, iy, seed)
    offset_y = 0.32 + 0.36 * hashed(ix, iy, seed + jnp.uint32(1))
    chance = hashed(ix, iy, seed + jnp.uint32(2))
    radius = 0.09 + 0.17 * chance
    distance = jnp.sqrt((fx - offset_x) ** 2 + (fy - offset_y) ** 2 + 1e-9)
    return jnp.clip(0.5 - (distance - radius) / jnp.maximum(pixel, 0.12), 0.0, 1.0) * jnp.sqrt(chance)
