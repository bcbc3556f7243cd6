"""The layers of a face, from the background to the glasses."""

import jax.numpy as jnp

from mechdiff.data.drawing.canvas import Layer, from_hue, inside
from mechdiff.data.drawing.features import brows, eyes, glasses, mouth
from mechdiff.data.drawing.hair import hair
from mechdiff.data.drawing.head import Head
from mechdiff.data.drawing.skin import neck, skin
from mechdiff.data.factors import Factors


def layers(f: Factors, h: Head) -> tuple[Layer, ...]:
    """All layers of the face `f`, from the back to the front."""
    hair_back, hair_front = hair(f, h)
    return (
        _background(f, h),
        hair_back,
        neck(f, h),
        _clothes(f, h),
        *skin(f, h),
        *mouth(f, h),
        *eyes(f, h),
        brows(f, h),
        hair_front,
        *glasses(f, h),
    )


def _background(f: Factors, h: Head) -> Layer:
    color = from_hue(f["background_hue"], 0.30, f["background_brightness"])[:, None, None]
    glow = 1.0 + 0.16 * (f["light_direction"] * h.u - 0.6 * h.v) - 0.10 * (h.u**2 + h.v**2)
    return Layer("background", jnp.ones_like(h.u), color * glow)


def _clothes(f: Factors, h: Head) -> Layer:
    x = h.u - f["center_x"]
    start = f["center_y"] + 1.14 * h.height
    collar = 0.14 * jnp.exp(-((x / 0.26) ** 2))
    slope = start + 0.22 * x**2 + collar
    color = from_hue(f["clothes_hue"], 0.5, 0.52)[:, None, None]
    folds = 0.9 + 0.25 * f["light_direction"] * x - 0.9 * jnp.maximum(h.v - 1.0, 0.0)
    return Layer("clothes", inside(slope - h.v, h.pixel), color * folds)
