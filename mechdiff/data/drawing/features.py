"""Mouth, eyes, brows and glasses. Both eyes are drawn at once, in mirrored coordinates."""

import jax.numpy as jnp

from mechdiff.data.drawing.canvas import Layer, Plane, band, bump, ellipse, inside, ramp
from mechdiff.data.drawing.head import Head
from mechdiff.data.factors import Factors

IRIS = (
    (0.16, 0.085, 0.045), (0.33, 0.185, 0.08), (0.44, 0.36, 0.16), (0.30, 0.42, 0.24),
    (0.26, 0.45, 0.62), (0.48, 0.54, 0.58),
)  # fmt: skip


def mouth(f: Factors, h: Head) -> tuple[Layer, ...]:
    """Upper lip, lower lip, the dark between them, and teeth."""
    wide = f["mouth_width"] * (1.0 + 0.10 * jnp.maximum(f["mouth_curvature"], 0.0))
    q = (h.fx / wide) ** 2
    arch = 1.0 - q
    line = 0.58 * h.height + 0.065 * f["mouth_curvature"] * (arch - 0.55)
    gap = 0.075 * f["mouth_opening"] * arch
    bow = 0.044 * arch * (1.0 - 0.25 * jnp.exp(-50.0 * q)) + 0.004
    full = 0.058 * jnp.sqrt(jnp.maximum(arch, 0.0))
    beside = jnp.where(arch > 0, 0.0, 9.0)  # empties the bands beyond the corners
    top, bottom = line - 0.10 * gap, line + 0.90 * gap
    upper = band(h.y, top - bow + beside, top, h.pixel)
    lower = band(h.y, bottom + beside, bottom + full, h.pixel)
    seam = band(h.y, top - 0.008 * arch + beside, bottom + 0.008 * arch, h.pixel)
    teeth = band(h.y, top + beside, top + jnp.minimum(0.6 * gap, 0.035), h.pixel)
    lips = h.skin * jnp.array([0.86, 0.56, 0.56])[:, None, None] + jnp.array([0.05, 0.0, 0.01])[:, None, None]
    gloss = 1.06 + 0.25 * bump(h.fx - 0.03 * f["light_direction"], h.y - bottom - 0.03, 0.07, 0.018)
    dark = jnp.array([0.20, 0.07, 0.07])[:, None, None]
    return (
        Layer("mouth", upper, lips * (0.84 * h.shade)),
        Layer("mouth", lower, lips * (h.shade * gloss)),
        Layer("mouth", 0.9 * seam, dark),
        Layer("mouth", teeth, jnp.array([0.90, 0.88, 0.84])[:, None, None] * h.shade),
    )


def _eye_frame(f: Factors, h: Head) -> tuple[Plane, Plane, Plane]:
    """Mirrored eye coordinates (x grows outwards) and the side, -1 or 1."""
    side = jnp.where(h.fx < 0, -1.0, 1.0)
    x = jnp.abs(h.fx) - f["eye_spacing"] * h.width
    return x, h.y - h.eye_y + 0.07 * x, side


def eyes(f: Factors, h: Head) -> tuple[Layer, ...]:
    """White, iris, pupil, highlight, lashes and lower lid."""
    x, y, side = _eye_frame(f, h)
    size = f["eye_size"]
    wide, high = 0.122 * size, 0.060 * size
    arch = 1.0 - (x / wide) ** 2
    beside = jnp.where(arch > 0, 0.0, 9.0)
    top, bottom = -high * arch, 0.72 * high * arch
    opening = band(y, top + beside, bottom, h.pixel)
    radius = jnp.sqrt(x**2 + (y + 0.08 * high) ** 2 + 1e-9)
    iris = inside(radius - 0.88 * high, h.pixel)
    pupil = inside(radius - 0.42 * high, h.pixel)
    glint_x = x * side - 0.35 * high * f["light_direction"] - 0.05 * high
    glint = inside(jnp.sqrt(glint_x**2 + (y + 0.40 * high) ** 2 + 1e-9) - 0.24 * high, h.pixel)
    lash = band(y, top - (0.20 * high * (1.05 - (x / wide) ** 2) + 0.006) + beside, top + 0.008, h.pixel)
    lower_lid = band(y, bottom + beside, bottom + 0.010, h.pixel)
    sclera = (0.93 - 0.35 * jnp.exp(-jnp.maximum(y - top, 0.0) / (0.35 * high))) * (0.55 + 0.45 * h.shade)
    color = ramp(f["eye_color"], IRIS)[:, None, None]
    ring = 1.25 - 0.55 * (radius / (0.88 * high)) ** 2 + 0.25 * y / high
    return (
        Layer("eyes", opening, jnp.array([1.0, 0.975, 0.95])[:, None, None] * sclera),
        Layer("eyes", opening * iris, color * ring),
        Layer("eyes", opening * pupil, jnp.full((3, 1, 1), 0.03)),
        Layer("eyes", opening * glint * 0.9, jnp.full((3, 1, 1), 0.97)),
        Layer("eyes", 0.85 * lash, 0.25 * h.hair + 0.03),
        Layer("skin", 0.35 * lower_lid, 0.55 * h.skin),
    )


def brows(f: Factors, h: Head) -> Layer:
    """Tapered arcs, thinner outwards."""
    x, _, _ = _eye_frame(f, h)
    q = (x + 0.01) / 0.165
    arch = 1.0 - q**2
    line = h.eye_y - 0.125 - 0.03 * f["eye_size"] - f["brow_angle"] * (x + 0.02) - 0.022 * arch + 0.02 * q
    thick = 0.026 * (1.0 - 0.35 * q)
    alpha = band(h.y, line - thick + jnp.where(arch > 0, 0.0, 9.0), line + thick, h.pixel)
    color = 0.72 * h.hair + 0.10 * h.skin
    return Layer("brows", 0.85 * alpha * jnp.clip(5.0 * arch, 0.0, 1.0), color * (0.5 + 0.5 * h.shade))


def glasses(f: Factors, h: Head) -> tuple[Layer, Layer]:
    """Lenses with a faint glare, and the frame."""
    x = jnp.abs(h.fx) - f["eye_spacing"] * h.width
    y = h.y - h.eye_y - 0.012
    rx, ry, rim = jnp.minimum(0.175, f["eye_spacing"] * h.width - 0.03), 0.135, 0.016
    lens = ellipse(x, y, rx, ry, h.pixel)
    ring = ellipse(x, y, rx + rim, ry + rim, h.pixel) - ellipse(x, y, rx - rim, ry - rim, h.pixel)
    bridge = band(y + 0.03, -rim, rim, h.pixel) * inside(x + rx, h.pixel)
    beside = inside(rx - x, h.pixel) * inside(jnp.abs(h.x) - h.width, h.pixel)
    arms = band(y + 0.04, -rim, rim, h.pixel) * beside
    glare = jnp.exp(-(((x + 0.4 * y + 0.03) / 0.05) ** 2))
    frame = jnp.clip(ring + bridge + arms, 0.0, 1.0)
    return (
        Layer("glasses", f["glasses"] * lens * (0.07 + 0.13 * glare), jnp.full((3, 1, 1), 0.95)),
        Layer("glasses", f["glasses"] * frame, jnp.array([0.10, 0.085, 0.085])[:, None, None]),
    )
