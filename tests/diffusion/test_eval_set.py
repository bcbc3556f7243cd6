"""The record of what a denoiser is examined on."""

import jax
import numpy as np
import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import linear_schedule

KEY = jax.random.key(0)


def test_crossed_and_nested_images_are_counted():
    crossed = EvalSet(np.zeros((4, 8, 8, 3), np.float32), (10, 500), KEY)
    assert (crossed.count, crossed.images_total) == (4, 4) and crossed.timesteps.dtype == np.int32
    nested = EvalSet(np.arange(24.0).reshape(2, 3, 2, 2, 1), [10, 500], KEY)
    assert (nested.count, nested.images_total, nested.nested, crossed.nested) == (3, 6, True, False)
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


@pytest.mark.parametrize("timesteps", [[-1], [0.5], [True], [], [2**40], [[1, 2]]])
def test_timesteps_and_images_of_another_kind_are_refused(timesteps):
    with pytest.raises(ConfigError, match=r"timesteps=\[.*\]: expected integers"):
        EvalSet(np.zeros((2, 8, 8, 3)), timesteps, KEY)
    with pytest.raises(ConfigError, match="images of type uint8: expected floats"):
        EvalSet(np.zeros((2, 8, 8, 3), np.uint8), [1], KEY)


def test_a_timestep_that_the_schedule_lacks_gives_no_number():
    batch = EvalSet(np.zeros((1, 2, 2, 1), np.float32), [1000], KEY).batch(0)
    assert np.isnan(jax.jit(lambda batch: batch.noised(linear_schedule(1000)).x_t)(batch)).all()


def test_a_batch_is_noised_as_the_forward_process_says():
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise in float64, the noise being that of each index."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 2, 2, 1)).astype(np.float32)
    eval_set = EvalSet(images, [10, 500], KEY, {"label": np.arange(6).reshape(2, 3)})
    batch = eval_set.batch(1, np.array([2, 0]))
    np.testing.assert_array_equal(batch.images, images[1][[2, 0]])
    np.testing.assert_array_equal(batch.condition["label"], [5, 3])
    schedule = linear_schedule()
    x_t, t, noise = jax.jit(lambda batch: batch.noised(schedule))(batch)
    own_noise = jax.jit(lambda index: jax.random.normal(jax.random.fold_in(KEY, index), (2, 2, 1)))
    own = [own_noise(index) for index in (5, 3)]
    np.testing.assert_array_equal(noise, np.stack(own))
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[500]
    expected = np.sqrt(signal) * batch.images.astype(np.float64) + np.sqrt(1 - signal) * np.stack(own)
    np.testing.assert_allclose(x_t, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(t, [500, 500])


def test_a_batch_without_rows_is_all_of_a_timestep():
    batch = EvalSet(np.zeros((4, 8, 8, 3), np.float32), [10, 500], KEY).batch(0)
    assert batch.images.shape == (4, 8, 8, 3) and batch.t == 10 and batch.condition is None
