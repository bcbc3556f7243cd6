"""The forward process against float64 NumPy and Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion import process
from mechdiff.diffusion.schedules import cosine_schedule, linear_schedule

SCHEDULE = linear_schedule()
BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
T = np.array([0, 1, 250, 999], np.int32)
SHAPE = (4, 2, 3, 1)

# Compiled as a whole: operation by operation, each would be a program of its own.
q_sample, predict_x0, predict_eps, posterior = map(
    jax.jit, (process.q_sample, process.predict_x0, process.predict_eps, process.posterior)
)
prediction_target, to_eps, denoising_loss = (
    jax.jit(fn, static_argnums=0)
    for fn in (process.prediction_target, process.to_eps, process.denoising_loss)
)
loss_weights = jax.jit(process.loss_weights, static_argnums=(2, 3), static_argnames="gamma")
image_noise = jax.jit(process.image_noise, static_argnums=2)


def column(values):
    return np.asarray(values, np.float64)[:, None, None, None]


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(2)]


def test_q_sample_mixes_signal_and_noise_as_the_closed_form_does(pictures):
    x0, noise = pictures
    bar = column(BAR[T])
    expected = np.sqrt(bar) * x0 + np.sqrt(1 - bar) * noise
    np.testing.assert_allclose(q_sample(SCHEDULE, x0, T, noise), expected, atol=1e-6)


def test_x0_and_noise_predictions_invert_q_sample(pictures):
    x0, noise = pictures
    x_t = q_sample(SCHEDULE, x0, T, noise)
    # Rounding of x_t is magnified by 157 = 1 / sqrt(abar) at the last t, by 100 in the noise at the first.
    np.testing.assert_allclose(predict_x0(SCHEDULE, x_t, T, noise), x0, atol=1e-4)
    np.testing.assert_allclose(predict_eps(SCHEDULE, x_t, T, x0), noise, atol=1e-4)


@pytest.mark.parametrize("t, t_prev", [(1, 0), (250, 249), (250, 100), (999, 998), (999, 0)])
def test_posterior_follows_bayes_rule(pictures, t, t_prev):
    """Precision-weighted product of q(x_prev | x_0) and q(x_t | x_prev), in float64."""
    x0, x_t = (np.asarray(picture, np.float64)[:1] for picture in pictures)
    alpha = BAR[t] / BAR[t_prev]
    prior, likelihood = 1 / (1 - BAR[t_prev]), alpha / (1 - alpha)
    mean = (prior * np.sqrt(BAR[t_prev]) * x0 + likelihood * x_t / np.sqrt(alpha)) / (prior + likelihood)
    got_mean, got_variance = posterior(
        SCHEDULE, np.float32(x0), np.float32(x_t), np.array([t], np.int32), np.array([t_prev], np.int32)
    )
    np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.ravel(got_variance), 1 / (prior + likelihood), rtol=2e-4)


def test_posterior_of_the_last_step_is_the_clean_image(pictures):
    x0, x_t = pictures
    mean, variance = posterior(SCHEDULE, x0, x_t, T, np.full(4, -1, np.int32))
    np.testing.assert_allclose(mean, x0, atol=1e-6)
    np.testing.assert_array_equal(variance, 0)


def test_min_snr_weights_are_capped_snr_over_snr():
    snr = BAR / (1 - BAR)
    got = np.asarray(loss_weights(SCHEDULE, T, "min_snr", gamma=3.0))
    np.testing.assert_allclose(got, np.minimum(snr, 3.0)[T] / snr[T], rtol=1e-5)
    assert got[0] < 1e-3 and got[-1] == 1


def test_uniform_weights_are_ones():
    np.testing.assert_array_equal(loss_weights(SCHEDULE, T), np.ones(4))


@pytest.mark.parametrize("weighting, gamma", [("min_snr", 0.0), ("min_snr", -1.0)])
def test_a_gamma_that_is_not_positive_is_refused(weighting, gamma):
    with pytest.raises(ConfigError, match="gamma"):
        process.loss_weights(SCHEDULE, T, weighting, gamma)


def test_loss_of_a_denoiser_that_knows_the_noise_is_zero_and_of_silence_its_power(pictures):
    x0, noise = pictures
    exact = denoising_loss(lambda x, t: noise, SCHEDULE, x0, T, noise)
    silent = denoising_loss(lambda x, t: jnp.zeros_like(x), SCHEDULE, x0, T, noise)
    np.testing.assert_array_equal(exact, np.zeros(4))
    np.testing.assert_allclose(silent, np.mean(np.asarray(noise, np.float64) ** 2, axis=(1, 2, 3)), rtol=1e-6)


def test_loss_is_seen_at_x_t_and_weighted(pictures):
    x0, noise = pictures

    @jax.jit
    def inputs_and_loss(x0, noise):
        inputs = []

        def denoise(x_t, t):
            inputs.extend((x_t, t))
            return noise + 2.0

        loss = process.training_loss(denoise, SCHEDULE, x0, T, noise, "epsilon", "min_snr", 5.0)
        return *inputs, loss

    x_t, t, loss = inputs_and_loss(x0, noise)
    np.testing.assert_allclose(loss, 4 * np.asarray(loss_weights(SCHEDULE, T, "min_snr")), rtol=1e-5)
    np.testing.assert_array_equal(x_t, q_sample(SCHEDULE, x0, T, noise))
    np.testing.assert_array_equal(t, T)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_noise_is_read_back_from_what_a_network_should_output(pictures, prediction):
    x0, noise = pictures
    schedule = cosine_schedule(100)
    t = np.array([1, 30, 60, 97], np.int32)
    x_t = q_sample(schedule, x0, t, noise)
    output = prediction_target(prediction, schedule, x0, t, noise)
    np.testing.assert_allclose(to_eps(prediction, schedule, x_t, t, output), noise, atol=2e-5)


def test_v_is_the_rotation_of_signal_and_noise_by_a_quarter_turn(pictures):
    """(x_t, v) is (x_0, noise) turned by the angle phi with cos phi = sqrt(abar): v = d x_t / d phi."""
    x0, noise = (np.asarray(picture, np.float64) for picture in pictures)
    angle = np.arccos(np.sqrt(column(BAR[T])))
    h = 1e-5
    x_t = lambda phi: np.cos(phi) * x0 + np.sin(phi) * noise
    slope = (x_t(angle + h) - x_t(angle - h)) / (2 * h)
    v = prediction_target("v_prediction", SCHEDULE, np.float32(x0), T, np.float32(noise))
    np.testing.assert_allclose(v, slope, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_clean_image_alike_for_every_prediction(pictures, prediction):
    """One error of x_0, told as each kind of output, costs min(SNR, gamma) |error|^2."""
    x0, noise = pictures
    wrong = np.full(SHAPE, 0.1, np.float32)
    x_t = q_sample(SCHEDULE, x0, T, noise)
    eps = predict_eps(SCHEDULE, x_t, T, x0 + wrong)
    output = prediction_target(prediction, SCHEDULE, x0 + wrong, T, eps)
    loss = jax.jit(
        lambda *pairs: process.training_loss(
            lambda x, t: output, SCHEDULE, *pairs, prediction, "min_snr", 5.0
        )
    )(x0, T, noise)
    snr = (BAR / (1 - BAR))[T]
    np.testing.assert_allclose(loss, np.minimum(snr, 5.0) * 0.01, rtol=2e-3)


def test_loss_has_a_finite_gradient_at_every_noise_level_of_the_cosine_schedule():
    schedule = cosine_schedule()
    t = np.array([0, 500, 999], np.int32)
    x0 = np.ones((3, 1, 1, 1), np.float32)

    def total(scale):
        return process.training_loss(
            lambda x, t: scale * x, schedule, x0, t, 0.5 * x0, "epsilon", "min_snr"
        ).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(0.3))


def test_an_images_noise_depends_on_its_index_alone():
    key = jax.random.key(3)
    many = image_noise(key, np.arange(5), (2, 2, 1))
    few = image_noise(key, np.array([4, 1, 4]), (2, 2, 1))
    np.testing.assert_array_equal(few, np.asarray(many)[[4, 1, 4]])
    assert len(np.unique(many)) == many.size


def test_image_noise_is_standard_normal():
    noise = np.asarray(image_noise(jax.random.key(0), np.arange(400), (5, 5, 1)))
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)
