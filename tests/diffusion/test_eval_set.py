"""The record of what a denoiser is examined on."""

import jax
import numpy as np
import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet

KEY = jax.random.key(0)


def test_crossed_and_nested_images_are_counted():
    crossed = EvalSet(np.zeros((4, 8, 8, 3), np.float32), (10, 500), KEY)
    assert (crossed.count, crossed.images_total) == (4, 4) and crossed.timesteps.dtype == np.int32
    nested = EvalSet(np.arange(24.0).reshape(2, 3, 2, 2, 1), [10, 500], KEY)
    assert (nested.count, nested.images_total) == (3, 6)
    images, indices = nested.at(1)
    np.testing.assert_array_equal(images, nested.images[1])
    np.testing.assert_array_equal(indices, [3, 4, 5])  # noise of their own


@pytest.mark.parametrize(
    "images, match",
    [(np.zeros((8, 8, 3)), r"shape \(8, 8, 3\)"), (np.zeros((3, 2, 8, 8, 3)), "for 3 timesteps")],
)
def test_images_of_another_rank_or_number_are_refused(images, match):
    with pytest.raises(ConfigError, match=match):
        EvalSet(images, [1, 2], KEY)
