"""The independent factors of a synthetic face, the rungs on which they are free, and their draws.

A face is a point in a box: one scalar per factor, drawn uniformly and independently from its own named
stream, so freeing or adding a factor never moves the draw of another. Continuous factors lie in `[low,
high]`; those with `choices` take the whole numbers `0 .. choices - 1` (as floats). x grows to the right and
y downwards from the middle of the image, whose border lies at 0.87 of the unit of length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.keys import stream
from mechdiff.core.types import PRNGKey


class Factor(NamedTuple):
    """Range and frozen value of one factor, and the lowest rung of the ladder on which it is drawn."""

    complexity: int
    low: float
    high: float
    neutral: float
    choices: int = 0  # 0: continuous


HAIR_STYLES = ("bald", "cropped", "side part", "fringe", "long curtains", "curly", "bun", "long swept")

SPECS: dict[str, Factor] = {
    # rung 0: colors of the large areas
    "skin_brightness": Factor(0, 0.0, 1.0, 0.7),  # along a ramp of natural skin tones, dark to light
    "hair_color": Factor(0, 0.0, 1.0, 0.25),  # black, browns, auburn, blonds, grey
    "background_brightness": Factor(0, 0.15, 0.9, 0.55),
    # rung 1: hues and the layout of the head
    "background_hue": Factor(1, 0.0, 1.0, 0.58),  # once around the color circle, muted
    "clothes_hue": Factor(1, 0.0, 1.0, 0.62),
    "skin_hue": Factor(1, -1.0, 1.0, 0.0),  # olive to rosy
    "face_width": Factor(1, 0.45, 0.57, 0.51),  # half axis
    "face_height": Factor(1, 0.62, 0.74, 0.68),  # half axis
    "center_x": Factor(1, -0.12, 0.12, 0.0),
    "center_y": Factor(1, -0.06, 0.10, 0.02),
    # rung 2: features and hair
    "hair_style": Factor(2, 0.0, 7.0, 1.0, choices=len(HAIR_STYLES)),
    "eye_spacing": Factor(2, 0.40, 0.50, 0.45),  # half distance, in face widths
    "eye_size": Factor(2, 0.82, 1.22, 1.0),
    "nose_length": Factor(2, 0.32, 0.46, 0.39),  # below the eyes, in face heights
    "mouth_width": Factor(2, 0.15, 0.25, 0.20),  # half width
    # rung 3: expression, pose and accessories
    "eye_color": Factor(3, 0.0, 1.0, 0.2),  # browns, hazel, green, blue, grey
    "brow_angle": Factor(3, -0.35, 0.35, 0.0),  # slope; positive: inner ends down
    "mouth_curvature": Factor(3, -0.4, 1.0, 0.2),  # frown to smile
    "mouth_opening": Factor(3, 0.0, 1.0, 0.0),
    "glasses": Factor(3, 0.0, 1.0, 0.0, choices=2),
    "pose": Factor(3, -0.40, 0.40, 0.0),  # turn of the head to the right, radians
    "tilt": Factor(3, -0.15, 0.15, 0.0),  # roll of the head, radians
    # rung 4: light and skin texture
    "light_direction": Factor(4, -1.0, 1.0, -0.3),  # from the left to from the right
    "texture_amplitude": Factor(4, 0.15, 1.0, 0.0),
    "texture_frequency": Factor(4, 5.0, 13.0, 8.0),  # freckle cells per unit of length
    "texture_phase": Factor(4, 0.0, 1.0, 0.5),  # which freckles
}
FACTORS: tuple[str, ...] = tuple(SPECS)
RUNGS: tuple[tuple[str, ...], ...] = tuple(
    tuple(name for name, spec in SPECS.items() if spec.complexity <= complexity) for complexity in range(5)
)
GLASSES_RATE = 0.25

Factors = dict[str, Float[Array, ""]]


def sample_factors(key: PRNGKey, complexity: int = 4) -> Factors:
    """Independent draws of the factors free at `complexity` (`RUNGS[complexity]`); the others are neutral.

    Rung 0 frees the brightness of skin and background and the hair color; 1 adds hues, place and shape of
    the head; 2 hair style, eyes, nose and mouth; 3 expression, pose and glasses; 4 light and skin texture.

    Raises:
      ConfigError: `complexity` is not 0 to 4.
    """
    if complexity not in range(len(RUNGS)):
        raise ConfigError(f"complexity={complexity} is out of range; 0 to {len(RUNGS) - 1}")
    free = RUNGS[complexity]
    return {
        name: _draw(stream(key, name), name, spec) if name in free else jnp.float32(spec.neutral)
        for name, spec in SPECS.items()
    }


def redraw(key: PRNGKey, factors: Factors, name: str) -> Factors:
    """`factors` with the one called `name` moved by a quarter to three quarters of its range (cyclically).

    A factor with choices takes another choice, each as likely.

    Raises:
      ConfigError: no factor is called `name`.
    """
    if name not in SPECS:
        raise ConfigError(unknown("factor", name, FACTORS))
    spec, value, key = SPECS[name], factors[name], stream(key, f"redraw {name}")
    if spec.choices:
        moved = jnp.mod(value + jax.random.randint(key, (), 1, spec.choices), spec.choices)
    else:
        span = spec.high - spec.low
        step = span * jax.random.uniform(key, (), minval=0.25, maxval=0.75)
        moved = spec.low + jnp.mod(value - spec.low + step, span)
    return {**factors, name: moved.astype(jnp.float32)}


def _draw(key: PRNGKey, name: str, spec: Factor) -> Float[Array, ""]:
    if name == "glasses":
        return jax.random.bernoulli(key, GLASSES_RATE).astype(jnp.float32)
    if spec.choices:
        return jax.random.randint(key, (), 0, spec.choices).astype(jnp.float32)
    return jax.random.uniform(key, (), minval=spec.low, maxval=spec.high)
