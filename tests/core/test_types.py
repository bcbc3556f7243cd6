"""While tests run, types and shapes are checked at every call of the package (`reference.type_checks`)."""

import jax
import numpy as np
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from reference.type_checks import checked_once

from mechdiff.core.presets import preset
from mechdiff.data import gaussian
from mechdiff.diffusion import process
from mechdiff.diffusion.schedules import make_schedule

IMAGES = np.zeros((2, 4, 4, 3), np.float32)
WRONG = {
    "type": lambda: process.image_noise(jax.random.key(0), np.zeros(2, np.float32), (3,)),
    "number of axes": lambda: process._mean_square(IMAGES[0]),
    "two sizes of one axis": lambda: process.q_sample(
        make_schedule(preset("tiny").diffusion), IMAGES, np.zeros(2, int), IMAGES[:1]
    ),
    "type, where shapes name arguments": lambda: gaussian.images(0, 0, 2.0, 4),
    "returned shape": lambda: doubled(np.zeros((2, 3), np.float32)),
}


@checked_once(typechecker=beartype)
def doubled(x: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    return np.concatenate([x, x])


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_an_error(wrong):
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        WRONG[wrong]()
