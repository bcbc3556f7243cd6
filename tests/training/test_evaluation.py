"""Losses by level and memorization, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.training import evaluation


def test_predicting_no_noise_costs_the_noise_itself():
    schedule, images = cosine_schedule(20), jnp.zeros((16, 8, 8, 3))
    result = evaluation.losses(lambda x, t: 0 * x, schedule, jax.random.key(0), images, jnp.array([2, 9]))
    assert result.shape == (2, 16)
    np.testing.assert_array_equal(result[0], result[1])  # the same noise at every level
    np.testing.assert_allclose(result.mean(), 1, atol=0.05)


def test_the_true_noise_of_black_pictures_costs_nothing():
    schedule, images = cosine_schedule(20), jnp.zeros((4, 8, 8, 3))
    scale = schedule.sqrt_one_minus_alphas_bar
    exact = lambda x, t: x / scale[t][:, None, None, None]
    result = evaluation.losses(exact, schedule, jax.random.key(0), images, jnp.array([2, 9]))
    np.testing.assert_allclose(result, 0, atol=1e-10)


def test_nearest_distance_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    queries, references = (rng.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8) for n in (7, 23))
    difference = (queries[:, None].astype(float) - references[None]) / 127.5
    expected = np.sqrt((difference**2).mean((2, 3, 4)))
    distance, where = evaluation.nearest_distances(queries, references, block=5)
    np.testing.assert_allclose(distance, expected.min(1), rtol=1e-4)
    np.testing.assert_array_equal(where, expected.argmin(1))


def test_copies_are_seen_and_fresh_pictures_are_not():
    rng = np.random.default_rng(0)
    train, held_out, fresh = (rng.integers(0, 256, (200, 4, 4, 3)).astype(np.uint8) for _ in range(3))
    remembered = evaluation.memorization(train[:50], train, held_out)
    honest = evaluation.memorization(fresh, train, held_out)
    exact = scipy.stats.binomtest(50, 50).proportion_ci()
    assert (remembered["copies_low"], remembered["copies_high"]) == (pytest.approx(exact.low), 1)
    assert honest["copies_low"] <= 0.01 <= honest["copies_high"]
    assert remembered["copies"] == 1 and remembered["ratio"] < 0.01
    assert honest["copies"] < 0.06 and 0.9 < honest["ratio"] < 1.1
    assert honest["ratio_low"] < 1 < honest["ratio_high"] and remembered["ratio_high"] < 0.01
    assert honest["copies_expected"] == pytest.approx(0.0149, abs=1e-4)
    mirror_images = train[:50, :, ::-1]
    assert evaluation.memorization(mirror_images, train, held_out)["copies"] < 0.1
    seen = evaluation.memorization(mirror_images, train, held_out, mirrored=True)
    assert seen["copies"] == 1 and seen["held_out_nearest"] <= honest["held_out_nearest"]


def test_of_few_held_out_images_more_samples_are_closer_than_their_1st_percentile():
    """Distances of gray pixels from black: .068 of samples lie below the least of 16, not .01."""
    gray = np.random.default_rng(1).integers(1, 256, (80, 64, 1, 1, 1)).astype(np.uint8)
    black = np.zeros((1, 1, 1, 1), np.uint8)
    figures = [evaluation.memorization(side[:48], black, side[48:]) for side in gray]
    assert 0.04 < np.mean([each["copies"] for each in figures]) < 0.09
    assert figures[0]["copies_expected"] == pytest.approx(0.0676, abs=1e-4)
    assert np.mean([each["ratio_low"] <= 1 <= each["ratio_high"] for each in figures]) > 0.9
