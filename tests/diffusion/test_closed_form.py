"""Closed-form denoisers against float64 quadrature, each other, and the loss of sampled data."""

import jax
import numpy as np
import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.closed_form import gaussian_denoiser, mixture_denoiser, stationary_denoiser
from mechdiff.diffusion.process import denoising_loss
from mechdiff.diffusion.schedules import cosine_schedule

SCHEDULE = cosine_schedule(50)
T = np.array([2, 25, 45], np.int32)
RNG = np.random.default_rng(0)
noise_in = jax.jit(lambda denoiser, x_t, t: denoiser(x_t, t))  # one program instead of one for each operation
least_loss = jax.jit(lambda denoiser, t: denoiser.loss(t))
loss_of = jax.jit(lambda denoiser, x0, t, eps: denoising_loss(denoiser, SCHEDULE, x0, t, eps).mean())


def scales(t):
    return float(SCHEDULE.sqrt_alphas_bar[t]), float(SCHEDULE.sqrt_one_minus_alphas_bar[t])


def by_quadrature(x, t, density):
    """E[eps | x_t = x] of one pixel, x_0 on a fine grid, in float64."""
    a, s = scales(t)
    grid = np.linspace(-8, 8, 400001)
    eps = (x - a * grid) / s
    posterior = density(grid) * np.exp(-0.5 * eps**2)
    return (posterior * eps).sum() / posterior.sum()


def normal(x, mean, deviation):
    return np.exp(-0.5 * ((x - mean) / deviation) ** 2) / deviation


@pytest.mark.parametrize("x", [-1.5, 0.2, 2.0])
def test_one_pixel_equals_quadrature(x):
    pictures = np.full((3, 1, 1, 1), x, np.float32)
    mixture = mixture_denoiser(
        SCHEDULE, np.array([1.0, 3.0]), np.array([-1.0, 0.5]).reshape(2, 1, 1, 1), np.array([0.1, 0.4])
    )
    single = gaussian_denoiser(SCHEDULE, np.full((1, 1, 1), 0.3), np.array([[0.25]]))
    two = lambda y: normal(y, -1, 0.1) + 3 * normal(y, 0.5, 0.4)
    for i, t in enumerate(T):
        np.testing.assert_allclose(
            noise_in(mixture, pictures, T)[i], by_quadrature(x, t, two), rtol=2e-4, atol=2e-5
        )
        expected = by_quadrature(x, t, lambda y: normal(y, 0.3, 0.5))
        np.testing.assert_allclose(noise_in(single, pictures, T)[i], expected, rtol=2e-4, atol=2e-5)


def test_a_gaussian_of_many_pixels_is_the_linear_solve_in_float64():
    root = RNG.normal(size=(12, 12))
    mean, covariance = RNG.normal(size=(2, 2, 3)), root @ root.T / 12
    x = RNG.normal(size=(3, 2, 2, 3)).astype(np.float32)
    result = noise_in(gaussian_denoiser(SCHEDULE, mean, covariance), x, T)
    for i, t in enumerate(T):
        a, s = scales(t)
        away = x[i].reshape(-1) - a * mean.reshape(-1)
        expected = s * np.linalg.solve(a**2 * covariance + s**2 * np.eye(12), away)
        np.testing.assert_allclose(result[i].reshape(-1), expected, rtol=2e-4, atol=2e-5)


def test_a_mixture_of_one_part_is_the_gaussian_and_of_points_remembers_them():
    mean = RNG.normal(size=(2, 2, 3))
    x = RNG.normal(size=(3, 2, 2, 3)).astype(np.float32)
    single = mixture_denoiser(SCHEDULE, np.ones(1), mean[None], np.array([0.7]))
    same = gaussian_denoiser(SCHEDULE, mean, 0.49 * np.eye(12))
    np.testing.assert_allclose(noise_in(single, x, T), noise_in(same, x, T), rtol=1e-4, atol=1e-5)

    points = RNG.normal(size=(4, 2, 2, 3)).astype(np.float32)
    remembered = mixture_denoiser(SCHEDULE, np.ones(4), points, np.zeros(4))
    noise = RNG.normal(size=(4, 2, 2, 3)).astype(np.float32)
    a, s = scales(2)
    np.testing.assert_allclose(noise_in(remembered, a * points + s * noise, np.full(4, 2)), noise, atol=1e-3)


def test_the_loss_of_the_gaussian_is_the_least_and_as_computed():
    root = RNG.normal(size=(12, 12))
    mean, covariance = RNG.normal(size=(2, 2, 3)), root @ root.T / 12
    best = gaussian_denoiser(SCHEDULE, mean, covariance)
    x0 = RNG.multivariate_normal(mean.reshape(-1), covariance, 20000).reshape(-1, 2, 2, 3)
    x0, noise = x0.astype(np.float32), RNG.normal(size=(20000, 2, 2, 3)).astype(np.float32)
    for t in T:
        least = float(loss_of(best, x0, np.full(20000, t), noise))
        assert least == pytest.approx(float(least_loss(best, np.array([t]))[0]), rel=0.02)
        moved = gaussian_denoiser(SCHEDULE, mean + 0.3, covariance)
        assert loss_of(moved, x0, np.full(20000, t), noise) > least


def test_what_is_no_distribution_is_refused():
    with pytest.raises(ConfigError, match="negative"):
        gaussian_denoiser(SCHEDULE, np.zeros((1, 1, 2)), np.diag([1.0, -1.0]))
    with pytest.raises(ConfigError, match="2 x 2"):
        gaussian_denoiser(SCHEDULE, np.zeros((1, 1, 2)), np.eye(3))
    with pytest.raises(ConfigError, match="above 0"):
        mixture_denoiser(SCHEDULE, np.array([1.0, 0.0]), np.zeros((2, 1, 1, 1)), np.ones(2))


def test_a_stationary_denoiser_is_the_gaussian_one_of_its_covariance():
    rng, size = np.random.default_rng(5), 4
    colors = np.linalg.qr(rng.normal(size=(3, 3)))[0].T
    spectrum = rng.uniform(0.01, 2, (size, size, 3))
    spectrum = (spectrum + np.roll(spectrum[::-1, ::-1], 1, axis=(0, 1))) / 2
    pixels = np.eye(size * size * 3).reshape(-1, size, size, 3)  # the covariance, a pixel at a time
    filtered = np.fft.ifft2(np.fft.fft2(pixels @ colors.T, axes=(1, 2)) * spectrum, axes=(1, 2)).real @ colors
    covariance = filtered.reshape(len(pixels), -1)
    mean = 0.2
    plain = gaussian_denoiser(SCHEDULE, np.full((size, size, 3), mean), (covariance + covariance.T) / 2)
    fast = stationary_denoiser(SCHEDULE, spectrum, colors, mean)
    x_t = rng.normal(size=(3, size, size, 3)).astype(np.float32)
    np.testing.assert_allclose(noise_in(fast, x_t, T), noise_in(plain, x_t, T), atol=1e-5)
    np.testing.assert_allclose(least_loss(fast, T), least_loss(plain, T), rtol=1e-5)


def test_a_spectrum_of_no_real_image_is_refused():
    flat = np.ones((4, 4, 3))
    lopsided = flat.copy()
    lopsided[1, 0, 0] = 2
    for spectrum in (lopsided, -flat):
        with pytest.raises(ConfigError, match="opposite frequencies"):
            stationary_denoiser(SCHEDULE, spectrum, np.eye(3))
    with pytest.raises(ConfigError, match="orthonormal"):
        stationary_denoiser(SCHEDULE, flat, 2 * np.eye(3))
