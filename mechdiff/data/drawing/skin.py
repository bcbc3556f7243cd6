"""The skin: face, ears and neck, with soft relief (nose, sockets, folds), blush and freckles."""

import jax.numpy as jnp
from jaxtyping import Array

from mechdiff.data.drawing.canvas import Layer, Plane, band, bump, ellipse, inside, spots, value_noise
from mechdiff.data.drawing.head import Head, face_oval
from mechdiff.data.factors import Factors


def skin(f: Factors, h: Head) -> tuple[Layer, Layer]:
    """Ears, then the face with its relief and texture."""
    ear_x = jnp.abs(h.x + 0.10 * jnp.sin(f["pose"])) - 1.0 * h.width
    ears = ellipse(ear_x, h.y - 0.06 * h.height, 0.085, 0.16, h.pixel)
    inner = 1.0 - 0.30 * bump(ear_x - 0.02, h.y - 0.05 * h.height, 0.035, 0.09)
    color = h.skin * h.shade * _relief(f, h) * _texture(f, h)
    blush = _cheeks(h)[None] * jnp.array([0.05, -0.035, -0.02])[:, None, None]
    return (
        Layer("skin", ears, h.skin * (0.92 * h.shade * inner)),
        Layer("skin", face_oval(h), color + blush * h.skin),
    )


def neck(f: Factors, h: Head) -> Layer:
    """The neck, dark under the chin."""
    x = h.x - 0.15 * jnp.sin(f["pose"]) * h.width
    fall = jnp.clip(h.y - 0.95 * h.height, 0.0, 1.0)
    wide = 0.60 * h.width + 1.6 * fall**2
    under_chin = 1.0 - 0.42 * jnp.exp(-(((h.y - 0.90 * h.height) / 0.16) ** 2))
    side = 1.0 + 0.25 * f["light_direction"] * x / h.width - 0.25 * (x / wide) ** 2
    alpha = inside(jnp.abs(x) - wide, h.pixel) * inside(0.4 * h.height - h.y, h.pixel)
    return Layer("skin", alpha, h.skin * (0.86 * under_chin * side))


def nose_region(f: Factors, h: Head) -> Plane:
    """Soft region of the nose, in [0, 1]."""
    x, along = _nose_frame(f, h)
    wide = 0.045 + 0.055 * jnp.clip(along, 0.0, 1.0)
    tip = h.eye_y + f["nose_length"] * h.height
    return inside(jnp.abs(x) - wide, h.pixel) * band(h.y, h.eye_y, tip + 0.06, h.pixel)


def freckled_region(f: Factors, h: Head) -> Plane:
    """Where the skin carries texture, in [0, 1]; zero everywhere when the amplitude is zero."""
    return _freckle_weight(h) * (f["texture_amplitude"] > 0)


def _cheeks(h: Head) -> Plane:
    return bump(jnp.abs(h.fx) - 0.55 * h.width, h.y - 0.28 * h.height, 0.16, 0.13)


def _nose_frame(f: Factors, h: Head) -> tuple[Plane, Plane]:
    """Distance from the ridge, and the place along it: 0 between the eyes, 1 at the tip."""
    along = (h.y - h.eye_y) / (f["nose_length"] * h.height)
    lean = 0.22 * jnp.sin(f["pose"]) * h.width * jnp.clip(along, 0.0, 1.0)  # the tip stands out
    return h.fx - lean, along


def _relief(f: Factors, h: Head) -> Plane:
    """Multiplies the skin: nose, eye sockets, folds and chin."""
    light = f["light_direction"]
    x, along = _nose_frame(f, h)
    tip = h.eye_y + f["nose_length"] * h.height
    on_nose = jnp.clip(along * 3.0, 0.0, 1.0) * jnp.clip((1.12 - along) * 7.0, 0.0, 1.0)
    wide = 0.05 + 0.045 * jnp.clip(along, 0.0, 1.0) ** 2
    q = x / wide
    slope = q * jnp.exp(-(q**2)) * on_nose
    relief = 1.0 + slope * (0.50 * light) - 0.16 * q**2 * jnp.exp(-((q**2 - 1.2) ** 2)) * on_nose
    relief += 0.13 * bump(x, h.y - tip + 0.03, 0.045, 0.05) + 0.07 * jnp.exp(-(q**2) * 3) * on_nose
    relief -= 0.26 * bump(x, h.y - tip - 0.045, 0.10, 0.028)
    relief -= 0.50 * bump(jnp.abs(x) - 0.050, h.y - tip - 0.020, 0.026, 0.018)
    eye = jnp.abs(h.fx) - f["eye_spacing"] * h.width
    relief -= 0.20 * bump(eye, h.y - h.eye_y + 0.03, 0.17, 0.10)
    relief -= 0.10 * bump(eye, h.y - h.eye_y - 0.10, 0.13, 0.035)
    lip = 0.58 * h.height
    relief -= 0.16 * bump(h.fx, h.y - lip - 0.115, 0.11, 0.03)
    return relief + 0.06 * bump(h.fx, h.y - 0.85 * h.height, 0.10, 0.07)


def _freckle_weight(h: Head) -> Plane:
    near = bump(h.fx, h.y - 0.15 * h.height, 0.95 * h.width, 0.75 * h.height)
    return near * face_oval(h)


def _texture(f: Factors, h: Head) -> Array:
    """Freckles and blotches, (3, H, W) factors on the skin; exactly 1 at amplitude 0."""
    seed = (f["texture_phase"] * 65536.0).astype(jnp.uint32) * jnp.uint32(7)
    frequency = f["texture_frequency"]
    x, y = h.fx * frequency + 0.37, h.y * frequency + 0.11
    freckles = spots(x, y, seed, h.pixel * frequency)
    blotches = value_noise(0.8 * x, 0.8 * y, seed + jnp.uint32(3))
    tone = jnp.array([0.26, 0.36, 0.42])[:, None, None]
    weight = f["texture_amplitude"] * _freckle_weight(h)
    return 1.0 - weight * (tone * freckles - 0.09 * blotches)
