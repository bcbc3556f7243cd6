"""How a face is painted from its factors: parts as layers from the background to the glasses.

Features are placed in a head frame (tilt undone, origin at the middle of the face) and turned on a sphere: a
feature at angle a shows at a + pose. Shading is Lambert's on an ellipsoid plus soft relief for nose, eye sockets
and lips. Everything is a smooth function of position, so the resolution changes nothing but the pixel width.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mechdiff.data.canvas import Layer, Plane, band, bump, ellipse, from_hue, inside, ramp, spots, value_noise
from mechdiff.data.factors import Factors

SKIN = (
    (0.27, 0.165, 0.115), (0.42, 0.265, 0.19), (0.60, 0.405, 0.295), (0.76, 0.555, 0.43),
    (0.88, 0.69, 0.57), (0.96, 0.81, 0.72),
)  # fmt: skip
HAIR = (
    (0.055, 0.045, 0.045), (0.15, 0.095, 0.065), (0.27, 0.165, 0.095), (0.44, 0.21, 0.10),
    (0.60, 0.42, 0.22), (0.82, 0.68, 0.43), (0.66, 0.64, 0.62),
)  # fmt: skip
IRIS = (
    (0.16, 0.085, 0.045), (0.33, 0.185, 0.08), (0.44, 0.36, 0.16), (0.30, 0.42, 0.24),
    (0.26, 0.45, 0.62), (0.48, 0.54, 0.58),
)  # fmt: skip

# One row per hair style, in units of the face's half axes: sideways volume, height above the crown, hairline at
# its middle, its drop with x^2 and with x^6, place of the parting, drop per x, how far the front sides and the back
# hang, widening on the way down, curl of the outline, radius of a bun, and presence.
HAIR_TABLE = (
    (0.00, 0.00, -2.00, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0, 0.00, 0.00, 0.00, 0.0),
    (0.04, 0.06, -0.60, 0.3, 0.5, 0.0, 0.0, 0.00, 0.05, 0.00, 0.02, 0.00, 1.0),
    (0.09, 0.15, -0.66, 0.4, 0.4, -0.4, 0.15, 0.05, 0.12, 0.00, 0.03, 0.00, 1.0),
    (0.16, 0.10, -0.33, 0.0, 0.9, 0.0, 0.0, 0.75, 0.80, 0.06, 0.00, 0.00, 1.0),
    (0.18, 0.10, -0.80, 1.3, 0.0, 0.0, 0.0, 1.60, 1.60, 0.12, 0.01, 0.00, 1.0),
    (0.36, 0.28, -0.55, 0.3, 0.5, 0.0, 0.0, 0.30, 0.55, 0.00, 0.16, 0.00, 1.0),
    (0.03, 0.05, -0.66, 0.5, 0.3, 0.0, 0.0, -0.10, 0.00, 0.00, 0.00, 0.22, 1.0),
    (0.22, 0.14, -0.62, 0.8, 0.3, 0.5, -0.15, 1.50, 1.50, 0.20, 0.07, 0.00, 1.0),
)


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


def layers(f: Factors, u: Plane, v: Plane, pixel: float) -> tuple[Layer, ...]:
    """All layers of the face `f` on a grid, from the back to the front."""
    head = _head(f, u, v, pixel)
    hair_back, hair_front = _hair(f, head)
    return (
        _background(f, head),
        hair_back,
        _neck(f, head),
        _clothes(f, head),
        *_skin(f, head),
        *_mouth(f, head),
        *_eyes(f, head),
        _brows(f, head),
        hair_front,
        *_glasses(f, head),
    )


def nose_region(f: Factors, u: Plane, v: Plane, pixel: float) -> Plane:
    """Soft region of the nose, in [0, 1]."""
    head = _head(f, u, v, pixel)
    x, along = _nose_frame(f, head)
    length = f["nose_length"] * head.height
    wide = 0.045 + 0.055 * jnp.clip(along, 0.0, 1.0)
    rows = band(head.y, head.eye_y, head.eye_y + length + 0.03, pixel)
    return inside(jnp.abs(x) - wide, pixel) * rows


def freckled_region(f: Factors, u: Plane, v: Plane, pixel: float) -> Plane:
    """Where the skin carries texture, in [0, 1]; zero everywhere when the amplitude is zero."""
    return _freckle_weight(_head(f, u, v, pixel)) * (f["texture_amplitude"] > 0)


def _head(f: Factors, u: Plane, v: Plane, pixel: float) -> Head:
    cos, sin = jnp.cos(f["tilt"]), jnp.sin(f["tilt"])
    du, dv = u - f["center_x"], v - f["center_y"]
    x, y = cos * du + sin * dv, cos * dv - sin * du
    width, height = f["face_width"], f["face_height"]
    across = x / width
    depth = jnp.sqrt(jnp.maximum(1.0 - across**2, 0.0))
    turned = across * jnp.cos(f["pose"]) - depth * jnp.sin(f["pose"])
    rosy = jnp.array([0.010, -0.012, 0.004]) + 0.0
    skin = ramp(f["skin_brightness"], SKIN) * (1.0 + f["skin_hue"] * jnp.array([0.03, -0.045, 0.0]) * 1.2 + 0 * rosy)
    skin = skin + f["skin_hue"] * jnp.array([0.0, 0.0, 0.025])
    shade = _lambert(f["light_direction"], across, y / height)
    return Head(
        u=u, v=v, x=x, y=y, fx=turned * width, width=width, height=height, eye_y=-0.06 * height, pixel=pixel,
        shade=shade, skin=skin[:, None, None], hair=ramp(f["hair_color"], HAIR)[:, None, None],
    )  # fmt: skip


def _lambert(light: Array, nx: Plane, ny: Plane) -> Plane:
    """Ambient plus diffuse light on an ellipsoid; `light` in [-1, 1] from left to right, always from above."""
    lx, ly, lz = 0.75 * light, -0.35, 0.75
    flat = jnp.minimum(1.0, 1.0 / jnp.sqrt(nx**2 + ny**2 + 1e-6))
    nx, ny = 0.9 * nx * flat, 0.9 * ny * flat
    nz = jnp.sqrt(jnp.maximum(1.0 - nx**2 - ny**2, 0.0))
    diffuse = (nx * lx + ny * ly + nz * lz) / jnp.sqrt(lx**2 + ly**2 + lz**2)
    return 0.50 + 0.58 * jnp.maximum(diffuse, 0.0)


def _background(f: Factors, h: Head) -> Layer:
    color = from_hue(f["background_hue"], 0.45, f["background_brightness"])[:, None, None]
    glow = 1.0 + 0.16 * (f["light_direction"] * h.u - 0.6 * h.v) - 0.10 * (h.u**2 + h.v**2)
    return Layer("background", jnp.ones_like(h.u), color * glow)


def _neck(f: Factors, h: Head) -> Layer:
    x = h.x - 0.15 * jnp.sin(f["pose"]) * h.width
    fall = jnp.clip(h.y - 0.95 * h.height, 0.0, 1.0)
    wide = 0.60 * h.width + 1.6 * fall**2
    under_chin = 1.0 - 0.42 * jnp.exp(-(((h.y - 0.90 * h.height) / 0.16) ** 2))
    side = 1.0 + 0.25 * f["light_direction"] * x / h.width - 0.25 * (x / wide) ** 2
    alpha = inside(jnp.abs(x) - wide, h.pixel) * inside(0.4 * h.height - h.y, h.pixel)
    return Layer("skin", alpha, h.skin * (0.86 * under_chin * side))


def _clothes(f: Factors, h: Head) -> Layer:
    x = h.u - f["center_x"]
    start = f["center_y"] + 1.14 * h.height
    collar = 0.14 * jnp.exp(-((x / 0.26) ** 2))
    slope = start + 0.22 * x**2 + collar
    color = from_hue(f["clothes_hue"], 0.6, 0.55)[:, None, None]
    folds = 0.9 + 0.25 * f["light_direction"] * x - 0.9 * jnp.maximum(h.v - 1.0, 0.0)
    return Layer("clothes", inside(slope - h.v, h.pixel), color * folds)


def _skin(f: Factors, h: Head) -> tuple[Layer, Layer]:
    """Ears, then the face with its relief and texture."""
    ear_x = jnp.abs(h.x + 0.10 * jnp.sin(f["pose"])) - 1.0 * h.width
    ears = ellipse(ear_x, h.y - 0.06 * h.height, 0.085, 0.16, h.pixel)
    inner = 1.0 - 0.30 * bump(ear_x - 0.02, h.y - 0.05 * h.height, 0.035, 0.09)
    color = h.skin * h.shade * _relief(f, h) * _texture(f, h)
    blush = _cheeks(h)[None] * jnp.array([0.05, -0.035, -0.02])[:, None, None]
    return Layer("skin", ears, h.skin * (0.92 * h.shade * inner)), Layer("skin", face_oval(h), color + blush * h.skin)


def face_oval(h: Head) -> Plane:
    """Coverage of the face: an egg, narrower towards the chin."""
    down = jnp.clip(h.y / h.height, 0.0, 1.2)
    taper = 1.0 - 0.20 * down**2
    return ellipse(h.x / taper, h.y, h.width, h.height, h.pixel)


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
    tone = jnp.array([0.30, 0.42, 0.48])[:, None, None]
    weight = f["texture_amplitude"] * _freckle_weight(h)
    return 1.0 - weight * (tone * freckles - 0.09 * blotches)


def _mouth(f: Factors, h: Head) -> tuple[Layer, ...]:
    wide = f["mouth_width"] * (1.0 + 0.10 * jnp.maximum(f["mouth_curvature"], 0.0))
    q = (h.fx / wide) ** 2
    arch = 1.0 - q
    line = 0.58 * h.height + 0.055 * f["mouth_curvature"] * (arch - 0.55)
    gap = 0.075 * f["mouth_opening"] * arch
    bow = 0.048 * arch * (1.0 - 0.25 * jnp.exp(-50.0 * q)) + 0.004
    top, bottom = line - 0.35 * gap, line + 0.65 * gap
    upper = band(h.y, jnp.where(arch > 0, top - bow, 2.0), top, h.pixel)
    lower = band(h.y, bottom, jnp.where(arch > 0, bottom + 0.060 * jnp.sqrt(jnp.maximum(arch, 0.0)), -2.0), h.pixel)
    seam = band(h.y, top - 0.007 * arch, jnp.where(arch > 0, bottom + 0.007 * arch, -2.0), h.pixel)
    teeth = band(h.y, top, jnp.where(arch > 0.1, top + jnp.minimum(0.6 * gap, 0.035), -2.0), h.pixel)
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


def _eyes(f: Factors, h: Head) -> tuple[Layer, ...]:
    x, y, side = _eye_frame(f, h)
    size = f["eye_size"]
    wide, high = 0.122 * size, 0.060 * size
    arch = 1.0 - (x / wide) ** 2
    outside = jnp.where(arch > 0, 0.0, 9.0)
    top, bottom = -high * arch, 0.72 * high * arch
    opening = band(y, top + outside, bottom, h.pixel)
    round_iris = ellipse(x, y + 0.08 * high, 0.88 * high, 0.88 * high, h.pixel)
    pupil = ellipse(x, y + 0.08 * high, 0.42 * high, 0.42 * high, h.pixel)
    glint_x = x * side - 0.35 * high * f["light_direction"] - 0.05 * high
    glint = ellipse(glint_x, y + 0.40 * high, 0.24 * high, 0.24 * high, h.pixel)
    lash = band(y, top - (0.20 * high * (1.05 - (x / wide) ** 2) + 0.006) + outside, top + 0.008, h.pixel)
    lower_lid = band(y, bottom + outside, bottom + 0.010, h.pixel)
    sclera = (0.93 - 0.35 * jnp.exp(-jnp.maximum(y - top, 0.0) / (0.35 * high))) * (0.55 + 0.45 * h.shade)
    iris = ramp(f["eye_color"], IRIS)[:, None, None]
    ring = 1.25 - 0.55 * ((x**2 + y**2) / (0.88 * high) ** 2) + 0.25 * y / high
    return (
        Layer("eyes", opening, jnp.array([1.0, 0.975, 0.95])[:, None, None] * sclera),
        Layer("eyes", opening * round_iris, iris * ring),
        Layer("eyes", opening * pupil, jnp.full((3, 1, 1), 0.03)),
        Layer("eyes", opening * glint * 0.9, jnp.full((3, 1, 1), 0.97)),
        Layer("eyes", 0.85 * lash, 0.25 * h.hair + 0.03),
        Layer("skin", 0.35 * lower_lid, 0.55 * h.skin),
    )


def _brows(f: Factors, h: Head) -> Layer:
    x, _, _ = _eye_frame(f, h)
    q = (x + 0.01) / 0.165
    arch = 1.0 - q**2
    line = h.eye_y - 0.125 - 0.03 * f["eye_size"] - f["brow_angle"] * (x + 0.02) - 0.022 * arch + 0.02 * q
    thick = 0.026 * (1.0 - 0.35 * q)
    alpha = band(h.y, jnp.where(arch > 0, line - thick, 9.0), line + thick, h.pixel)
    color = 0.72 * h.hair + 0.10 * h.skin
    return Layer("brows", 0.85 * alpha * jnp.clip(5.0 * arch, 0.0, 1.0), color * (0.5 + 0.5 * h.shade))


def _hair(f: Factors, h: Head) -> tuple[Layer, Layer]:
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


def _glasses(f: Factors, h: Head) -> tuple[Layer, Layer]:
    x = jnp.abs(h.fx) - f["eye_spacing"] * h.width
    y = h.y - h.eye_y - 0.012
    rx, ry, rim = jnp.minimum(0.175, f["eye_spacing"] * h.width - 0.03), 0.135, 0.016
    lens = ellipse(x, y, rx, ry, h.pixel)
    ring = ellipse(x, y, rx + rim, ry + rim, h.pixel) - ellipse(x, y, rx - rim, ry - rim, h.pixel)
    bridge = band(y + 0.03, -rim, rim, h.pixel) * inside(x + rx, h.pixel)
    arms = band(y + 0.04, -rim, rim, h.pixel) * inside(rx - x, h.pixel) * inside(jnp.abs(h.x) - h.width, h.pixel)
    glare = jnp.clip(bump(x + 0.4 * y + 0.03, y * 0.0, 0.05, 1.0), 0.0, 1.0)
    frame = jnp.clip(ring + bridge + arms, 0.0, 1.0)
    return (
        Layer("glasses", f["glasses"] * lens * (0.07 + 0.13 * glare), jnp.full((3, 1, 1), 0.95)),
        Layer("glasses", f["glasses"] * frame, jnp.array([0.10, 0.085, 0.085])[:, None, None]),
    )
