"""Hair: one shape formula whose row of parameters is the style."""

import jax.numpy as jnp

from mechdiff.data.drawing.canvas import Layer, Plane, bump, ellipse, inside, value_noise
from mechdiff.data.drawing.head import Head
from mechdiff.data.factors import Factors

# One row per style, in units of the face's half axes: sideways volume, height above the crown; hairline in
# the middle, its drop with x^2 and x^6, place of the parting, drop per x; how far the front sides and the
# back hang, widening on the way down, curl of the outline, radius of a bun, and presence.
HAIR_TABLE = (
    (0.00, 0.00, -2.00, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0, 0.00, 0.00, 0.00, 0.0),
    (0.04, 0.06, -0.60, 0.3, 0.5, 0.0, 0.0, 0.00, 0.05, 0.00, 0.02, 0.00, 1.0),
    (0.09, 0.15, -0.66, 0.4, 0.4, -0.4, 0.15, 0.05, 0.12, 0.00, 0.03, 0.00, 1.0),
    (0.16, 0.10, -0.33, 0.0, 0.9, 0.0, 0.0, 0.75, 0.80, 0.06, 0.00, 0.00, 1.0),
    (0.18, 0.10, -0.80, 1.3, 0.0, 0.0, 0.0, 1.60, 1.60, 0.12, 0.01, 0.00, 1.0),
    (0.34, 0.24, -0.55, 0.3, 0.5, 0.0, 0.0, 0.30, 0.55, 0.00, 0.12, 0.00, 1.0),
    (0.03, 0.05, -0.66, 0.5, 0.3, 0.0, 0.0, -0.10, 0.00, 0.00, 0.00, 0.22, 1.0),
    (0.22, 0.14, -0.68, 0.6, 0.3, -0.3, 0.10, 1.50, 1.50, 0.20, 0.07, 0.00, 1.0),
)


def hair(f: Factors, h: Head) -> tuple[Layer, Layer]:
    """Hair behind and in front of the face, from the row of `HAIR_TABLE` that the style names."""
    row = jnp.asarray(HAIR_TABLE)[f["hair_style"].astype(jnp.int32)]
    volume, rise, line, drop2, drop6, part, slant, front, back, flare, curl, bun, presence = row
    across, down = h.x / h.width, h.y / h.height
    noise = value_noise(h.x * 9.0, h.y * 9.0, jnp.uint32(11))
    start = -0.15
    wide = 1.0 + volume + flare * jnp.maximum(down - start, 0.0)
    above = jnp.minimum(down - start, 0.0) / (1.0 + start + rise)
    outline = jnp.sqrt((across / wide) ** 2 + above**2 + 1e-9) - 1.0 + 0.8 * curl * noise
    outer = inside(outline * h.width, h.pixel)
    knot = ellipse(h.x, h.y + (1.02 + rise) * h.height, bun + 1e-3, 0.9 * bun + 1e-3, h.pixel) * (bun > 0)
    turned = h.fx / h.width
    x2 = (turned - part) ** 2
    hairline = line + drop2 * x2 + drop6 * turned**6 + slant * turned + 0.5 * curl * noise
    beside = jnp.abs(across) - (1.0 - 0.20 * jnp.clip(down, 0.0, 1.2) ** 2) * 0.97
    opening = jnp.minimum(down - hairline, -beside)  # positive in the open face
    covers = inside(opening * h.width, h.pixel)
    hang = inside((down - front - 0.3 * curl * noise) * h.height, h.pixel)
    behind = inside((down - back - 0.3 * curl * noise) * h.height, h.pixel)
    color = h.hair * _strands(f, h, turned - part, down, noise * curl * 4.0)
    back_alpha = presence * jnp.maximum(outer * behind, knot)
    return Layer("hair", back_alpha, 0.72 * color), Layer("hair", presence * outer * covers * hang, color)


def _strands(f: Factors, h: Head, across: Plane, down: Plane, noise: Plane) -> Plane:
    fan = across / (1.9 + jnp.clip(down, -1.0, 1.5))
    strands = 0.09 * jnp.sin(26.0 * fan + 2.0 * noise) + 0.06 * jnp.sin(59.0 * fan + 1.7)
    shine = 0.45 * bump(across - 0.35 * f["light_direction"], down + 0.72, 0.55, 0.13)
    return (0.35 + 0.75 * h.shade) * (1.0 + strands + 0.25 * noise) + shine
