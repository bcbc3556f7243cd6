"""Gaussian images have the spectrum that is stated, and the best denoiser of them the loss that is stated."""

import jax
import numpy as np
import pytest

from mechdiff.core.config import DataConfig, Preprocessing
from mechdiff.core.errors import ConfigError
from mechdiff.data import gaussian, load
from mechdiff.data.dataset import to_float
from mechdiff.diffusion.closed_form import stationary_denoiser
from mechdiff.diffusion.schedules import cosine_schedule

SIZE, COUNT = 8, 3000


@pytest.fixture(scope="module")
def drawn():
    return gaussian.render_bytes(0, 0, COUNT, SIZE)


def stated_losses(schedule, timesteps):
    best = stationary_denoiser(schedule, gaussian.spectrum(SIZE), gaussian.COLORS)
    return np.asarray(jax.jit(type(best).loss)(best, timesteps))


def test_variances_of_coefficients_are_the_spectrum(drawn):
    colors = to_float(drawn).astype(np.float64) @ gaussian.COLORS.T
    coefficients = np.fft.fft2(colors, axes=(1, 2), norm="ortho")
    ratio = (np.abs(coefficients) ** 2).mean(0) / gaussian.spectrum(SIZE)
    assert abs(ratio.mean() - 1) < 0.01  # of 192 ratios, each with a standard error of 2 to 3 %
    assert np.abs(ratio - 1).max() < 0.12
    np.testing.assert_allclose(gaussian.spectrum(SIZE).mean(), gaussian.DEVIATION**2, rtol=1e-3)


def test_rounding_and_range_leave_the_stated_loss(drawn):
    """Loss of the closed form's denoiser on bytes, by an FFT in float64, against the stated expectation."""
    schedule = cosine_schedule(1000)
    timesteps = np.array([0, 5, 50, 400, 900])
    stated = stated_losses(schedule, timesteps)
    rng = np.random.default_rng(1)
    x0 = to_float(drawn).astype(np.float64)
    for t, expected in zip(timesteps, stated, strict=True):
        a, s = (
            float(np.asarray(v)[t]) for v in (schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar)
        )
        noise = rng.standard_normal(x0.shape)
        colors = np.fft.fft2((a * x0 + s * noise) @ gaussian.COLORS.T, axes=(1, 2))
        eps = np.fft.ifft2(colors * s / (a**2 * gaussian.spectrum(SIZE) + s**2), axes=(1, 2)).real
        losses = ((eps @ gaussian.COLORS - noise) ** 2).mean((1, 2, 3))
        assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(COUNT) + 1e-3 * expected


def test_an_image_depends_on_seed_and_index_alone():
    some = gaussian.images(3, 10, 4, SIZE)
    np.testing.assert_array_equal(gaussian.images(3, 12, 2, SIZE), some[2:])
    assert (gaussian.images(4, 10, 4, SIZE) != some).any()
    with pytest.raises(ConfigError, match="size=2"):
        gaussian.images(0, 0, 1, 2)


def test_splits_are_kept_and_have_no_image_in_common(tmp_path):
    config = DataConfig(name="gaussian", n_train=20, n_test=10)
    train, test = (load(config, SIZE, split, 0, tmp_path) for split in ("train", "test"))
    assert train.images.shape == (20, SIZE, SIZE, 3) and train.name == "gaussian"
    assert len({image.tobytes() for split in (train, test) for image in split.images}) == 30
    again = load(config, SIZE, "train", 0, tmp_path)
    np.testing.assert_array_equal(again.images, train.images)
    assert len(list(tmp_path.glob("gaussian-*.npy"))) == 2
    with pytest.raises(ConfigError, match=r"no effect on data\.name=gaussian"):
        load(DataConfig(name="gaussian", preprocessing=Preprocessing(phases="random")), SIZE, "test", 0, None)


def test_a_denoiser_that_was_fitted_is_above_the_floor_on_other_images_alone(drawn):
    """Least squares for every pixel: what a network can at best learn of so many images at one timestep."""
    schedule, t = cosine_schedule(1000), np.array([400])
    stated = float(stated_losses(schedule, t)[0])
    a, s = (
        float(np.asarray(v)[t[0]]) for v in (schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar)
    )
    rng = np.random.default_rng(2)
    x0 = to_float(drawn).reshape(COUNT, -1).astype(np.float64)
    noise = rng.standard_normal(x0.shape)
    seen, other = slice(2000), slice(2000, None)
    x_t = a * x0 + s * noise
    weights = np.linalg.lstsq(x_t[seen], noise[seen], rcond=None)[0]
    loss = {
        name: ((x_t[rows] @ weights - noise[rows]) ** 2).mean()
        for name, rows in (("seen", seen), ("other", other))
    }
    assert loss["seen"] < stated < loss["other"] < 1.25 * stated
