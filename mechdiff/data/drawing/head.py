"""The head: its frame of coordinates, its colors, its shape and its light.

Features are placed in a head frame (tilt undone, origin at the middle of the face) and turned on a sphere: a
feature at angle a shows at a + pose. Shading is Lambert's on an ellipsoid. Everything is a smooth function of
position, so the resolution changes nothing but the pixel width.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mechdiff.data.drawing.canvas import Plane, ellipse, ramp
from mechdiff.data.factors import Factors

SKIN = (
    (0.27, 0.165, 0.115), (0.42, 0.265, 0.19), (0.60, 0.405, 0.295), (0.76, 0.555, 0.43),
    (0.88, 0.69, 0.57), (0.96, 0.81, 0.72),
)  # fmt: skip
HAIR = (
    (0.055, 0.045, 0.045), (0.15, 0.095, 0.065), (0.27, 0.165, 0.095), (0.40, 0.22, 0.135),
    (0.60, 0.42, 0.22), (0.82, 0.68, 0.43), (0.66, 0.64, 0.62),
)  # fmt: skip


class Head(NamedTuple):
    """Coordinates of every pixel in the head's frame; planes of shape (H, W), lengths in half frames."""

    u: Plane  # frame
    v: Plane
    x: Plane  # head, tilt undone, before the turn
    y: Plane
    fx: Plane  # features: turned on the sphere
    width: Array  # half axes
    height: Array
    eye_y: Array
    pixel: float
    shade: Plane  # Lambert on the ellipsoid, about 1
    skin: Float[Array, "3 1 1"]
    hair: Float[Array, "3 1 1"]


def make_head(f: Factors, u: Plane, v: Plane, pixel: float) -> Head:
    """The frame of the face `f` on a grid of points (u, v) that lie `pixel` apart."""
    cos, sin = jnp.cos(f["tilt"]), jnp.sin(f["tilt"])
    du, dv = u - f["center_x"], v - f["center_y"]
    x, y = cos * du + sin * dv, cos * dv - sin * du
    width, height = f["face_width"], f["face_height"]
    across = x / width
    depth = jnp.sqrt(jnp.maximum(1.0 - across**2, 0.0))
    turned = across * jnp.cos(f["pose"]) - depth * jnp.sin(f["pose"])
    skin = ramp(f["skin_brightness"], SKIN) * (1.0 + f["skin_hue"] * jnp.array([0.025, -0.03, 0.01]))
    shade = lambert(f["light_direction"], across, y / height)
    return Head(
        u=u, v=v, x=x, y=y, fx=turned * width, width=width, height=height, eye_y=-0.06 * height, pixel=pixel,
        shade=shade, skin=skin[:, None, None], hair=ramp(f["hair_color"], HAIR)[:, None, None],
    )  # fmt: skip


def lambert(light: Array, nx: Plane, ny: Plane) -> Plane:
    """Ambient plus diffuse light on an ellipsoid; `light` -1: from the left, 1: from the right."""
    lx, ly, lz = 0.75 * light, -0.35, 0.75
    flat = jnp.minimum(1.0, 1.0 / jnp.sqrt(nx**2 + ny**2 + 1e-6))
    nx, ny = 0.9 * nx * flat, 0.9 * ny * flat
    nz = jnp.sqrt(jnp.maximum(1.0 - nx**2 - ny**2, 0.0))
    diffuse = (nx * lx + ny * ly + nz * lz) / jnp.sqrt(lx**2 + ly**2 + lz**2)
    return 0.50 + 0.58 * jnp.maximum(diffuse, 0.0)


def face_oval(h: Head) -> Plane:
    """Coverage of the face: an egg, narrower towards the chin."""
    down = jnp.clip(h.y / h.height, 0.0, 1.2)
    taper = 1.0 - 0.20 * down**2
    return ellipse(h.x / taper, h.y, h.width, h.height, h.pixel)
