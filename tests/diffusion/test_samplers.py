"""Samplers against Gaussians of known score, a hand trajectory, and another implementation's steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion import process
from mechdiff.diffusion.samplers import Sampler, ddim_step, ddpm_step, sample, take_steps
from mechdiff.diffusion.schedules import ddim_timesteps, linear_schedule

STEPS = {"ddpm": ddpm_step, "ddim": ddim_step, "ddim eta=1": partial(ddim_step, eta=1.0)}
SCHEDULE = linear_schedule(200, 5e-4, 0.1)  # as noisy at its end as the usual 1000 steps
BAR = np.cumprod(1 - np.linspace(5e-4, 0.1, 200))
MEAN = np.array([0.4, -0.7])
COVARIANCES = {"diagonal": np.diag([0.5, 0.05]), "full": np.array([[0.4, -0.15], [-0.15, 0.2]])}
N = 8192

stepped = jax.jit(
    lambda step, *args: step(*args), static_argnums=0
)  # one program, not one for each operation


def drawn(start, denoise, sampler):
    """Images of a sampler from the noise `start`, by one program."""
    run = jax.jit(lambda start, key: sample(denoise, sampler, key, start.shape, noise=start))
    return run(start, jax.random.key(0))


def gaussian_denoiser(covariance):
    """The exact noise prediction E[eps | x_t] for data N(MEAN, covariance), two pixels to an image.

    x_t ~ N(sqrt(abar) m, S_t) with S_t = abar C + (1 - abar) I, and
    E[eps | x_t] = sqrt(1 - abar) S_t^-1 (x_t - sqrt(abar) m).
    """
    marginal = BAR[:, None, None] * covariance + (1 - BAR)[:, None, None] * np.eye(2)
    gains = (np.sqrt(1 - BAR)[:, None, None] * np.linalg.inv(marginal)).astype(np.float32)
    centers = (np.sqrt(BAR)[:, None] * MEAN).astype(np.float32)

    def denoise(x_t, t):
        gain, center = jnp.asarray(gains), jnp.asarray(centers)
        residual = x_t[:, 0, 0, :] - center[t]
        return jnp.einsum("bij,bj->bi", gain[t], residual)[:, None, None, :]

    return denoise


@pytest.fixture(scope="module", params=COVARIANCES)
def covariance(request):
    return COVARIANCES[request.param]


@pytest.fixture(scope="module")
def draws(covariance):
    """Samples of every step function, from one program."""
    denoise = gaussian_denoiser(covariance)

    @jax.jit
    def all_samplers(key):
        samplers = {name: Sampler(SCHEDULE, step, clip=False) for name, step in STEPS.items()}
        return {name: sample(denoise, sampler, key, (N, 1, 1, 2)) for name, sampler in samplers.items()}

    return {name: np.asarray(x, np.float64)[:, 0, 0] for name, x in all_samplers(jax.random.key(1)).items()}


@pytest.mark.parametrize("name", STEPS)
def test_samplers_reproduce_the_mean_and_covariance_of_gaussian_data(draws, covariance, name):
    """Monte Carlo: 4 standard errors. Discretisation at 200 steps: 2 % of the largest variance."""
    x = draws[name]
    spread = np.diag(covariance)
    assert np.all(np.abs(x.mean(axis=0) - MEAN) < 4 * np.sqrt(spread / N) + 0.01)
    error = np.sqrt((np.outer(spread, spread) + covariance**2) / N)  # of a Gaussian's sample covariance
    assert np.all(np.abs(np.cov(x.T) - covariance) < 4 * error + 0.02 * spread.max())


def test_deterministic_ddim_follows_the_probability_flow_of_gaussian_data(covariance):
    """The flow maps x_T to m + C^1/2 S_T^-1/2 (x_T - sqrt(abar_T) m), as C and S_T commute."""
    start = np.random.default_rng(0).normal(size=(16, 1, 1, 2)).astype(np.float32)
    got = drawn(start, gaussian_denoiser(covariance), Sampler(SCHEDULE, clip=False))
    values, vectors = np.linalg.eigh(covariance)
    scale = np.sqrt(values / (BAR[-1] * values + 1 - BAR[-1]))
    flow = vectors @ np.diag(scale) @ vectors.T
    expected = MEAN + (start[:, 0, 0] - np.sqrt(BAR[-1]) * MEAN) @ flow
    np.testing.assert_allclose(np.asarray(got)[:, 0, 0], expected, atol=0.03)  # 200 Euler steps


def test_predicted_x0_of_the_exact_denoiser_is_the_posterior_mean(covariance):
    """E[x_0 | x_t] = m + sqrt(abar) C S_t^-1 (x_t - sqrt(abar) m): x_0 and x_t are jointly Gaussian."""
    t = np.array([0, 3, 60, 199])
    x_t = np.random.default_rng(1).normal(size=(4, 2))
    bar = BAR[t][:, None]
    marginal = bar[..., None] * covariance + (1 - bar[..., None]) * np.eye(2)
    residual = np.linalg.solve(marginal, (x_t - np.sqrt(bar) * MEAN)[..., None])[..., 0]
    expected = MEAN + np.sqrt(bar) * residual @ covariance
    images = x_t.astype(np.float32)[:, None, None]
    denoise = gaussian_denoiser(covariance)
    got = jax.jit(lambda x, t: process.predict_x0(SCHEDULE, x, t, denoise(x, t)))(images, t)
    np.testing.assert_allclose(np.asarray(got)[:, 0, 0], expected, atol=2e-5)


def test_strided_ancestral_sampling_has_the_mean_and_variance_of_its_theory():
    """With the exact denoiser every step is linear and Gaussian: its variance is propagated in float64."""
    levels = ddim_timesteps(200, 20)
    spread = 0.3
    denoise = gaussian_denoiser(spread * np.eye(2))
    variance = 1.0
    for t, t_prev in zip(levels[::-1], np.append(levels[-2::-1], -1), strict=True):
        bar, prev = BAR[t], (BAR[t_prev] if t_prev >= 0 else 1.0)
        pull = np.sqrt(bar) * spread / (bar * spread + 1 - bar)  # of x_0 on x_t
        alpha = bar / prev
        slope = (np.sqrt(prev) * (1 - alpha) * pull + np.sqrt(alpha) * (1 - prev)) / (1 - bar)
        variance = slope**2 * variance + (1 - prev) * (1 - alpha) / (1 - bar)
    sampler = Sampler(SCHEDULE, ddpm_step, levels, clip=False)
    run = jax.jit(lambda key: sample(denoise, sampler, key, (N, 1, 1, 2)))
    x = np.asarray(run(jax.random.key(2)))[:, 0, 0]
    assert np.all(np.abs(x.mean(axis=0) - MEAN) < 4 * np.sqrt(spread / N) + 0.02)
    np.testing.assert_allclose(x.var(axis=0), variance, rtol=4 * np.sqrt(2 / N))


@pytest.mark.parametrize("t, t_prev", [(0, -1), (1, 0), (100, 99), (199, 150), (199, -1)])
def test_ddim_with_eta_one_is_the_ancestral_step(t, t_prev):
    x_t, x0, noise = np.random.default_rng(2).normal(size=(3, 5, 2, 2, 1)).astype(np.float32)
    at = (np.full(5, t, np.int32), np.full(5, t_prev, np.int32))
    implicit, ancestral = (
        stepped(STEPS[name], SCHEDULE, x_t, x0, *at, noise) for name in ("ddim eta=1", "ddpm")
    )
    np.testing.assert_allclose(implicit, ancestral, atol=2e-5)


def test_two_step_trajectory_by_hand():
    """T = 2, betas 0.1 and 0.3, eps(x, t) = x / 2 + t / 10, from x_T = 1; every number in float64."""
    bar = np.array([0.9, 0.63])

    def by_hand(x, clip):
        states = []
        for t, prev in ((1, 0.9), (0, 1.0)):
            eps = x / 2 + t / 10
            x0 = (x - np.sqrt(1 - bar[t]) * eps) / np.sqrt(bar[t])
            if clip:
                x0 = np.clip(x0, -1, 1)
                eps = (x - np.sqrt(bar[t]) * x0) / np.sqrt(1 - bar[t])
            x = np.sqrt(prev) * x0 + np.sqrt(1 - prev) * eps
            states.append(x)
        return states

    schedule = linear_schedule(2, 0.1, 0.3)
    start = np.array([1.0, -3.0], np.float32).reshape(2, 1, 1, 1)
    denoise = lambda x, t: x / 2 + t[:, None, None, None] / 10
    for clip in (False, True):
        sampler, down, images = Sampler(schedule, clip=clip), np.array([1, 0]), np.arange(2)
        run = jax.jit(partial(take_steps, lambda i: denoise, sampler, jax.random.key(0)))
        states = [run(start, down, images, span) for span in ((0, 1), (0, 2))]
        expected = by_hand(np.array([1.0, -3.0]), clip)
        np.testing.assert_allclose(np.reshape(states, (2, 2)), expected, atol=2e-6)
        np.testing.assert_array_equal(run(states[0], down, images, (1, 2)), states[1])
    assert np.abs(by_hand(np.array([1.0, -3.0]), False)[-1]).max() > 1  # so that clipping mattered


# Frozen from diffusers 0.42.1: DDIMScheduler (use_clipped_model_output=True) and DDPMScheduler (fixed_small),
# 1000 linear steps, 10 inference steps, in float64, for the x_t, eps and noise below.
X_T, EPS, NOISE = [0.8, -1.3, 0.1, 2.0], [0.5, -0.9, -0.4, 1.1], [0.3, 1.2, -0.7, 0.2]
REFERENCE = [
    ("ddim 0.0", False, 900, [1.208339, -1.844351, 0.781101, 3.225191]),
    ("ddim 0.5", False, 900, [1.289934, -1.203538, 0.507587, 3.196462]),
    ("ddpm", False, 900, [1.191739, -0.239102, 0.377905, 2.772194]),
    ("ddim 0.0", False, 500, [0.953526, -1.495511, 0.404453, 2.476332]),
    ("ddim 0.5", False, 500, [1.023996, -0.993176, 0.181742, 2.46503]),
    ("ddpm", False, 500, [0.987662, -0.298594, 0.044474, 2.21876]),
    ("ddim 0.0", False, 0, [0.795039, -1.291064, 0.104006, 1.989099]),
    ("ddim 0.5", False, 0, [0.795039, -1.291064, 0.104006, 1.989099]),
    ("ddpm", False, 0, [0.795039, -1.291064, 0.104006, 1.989099]),
    ("ddim 0.0", True, 900, [0.821903, -1.321593, 0.122336, 2.02116]),
    ("ddim 0.5", True, 900, [0.872741, -0.639174, -0.20361, 1.896602]),
    ("ddpm", True, 900, [0.641788, 0.504852, -0.559606, 1.058696]),
    ("ddim 0.0", True, 500, [0.927242, -1.394805, 0.272655, 2.049392]),
    ("ddim 0.5", True, 500, [0.994473, -0.880058, 0.0337, 1.98547]),
    ("ddpm", True, 500, [0.945797, -0.138186, -0.165457, 1.538719]),
    ("ddim 0.0", True, 0, [0.795039, -1.0, 0.104006, 1.0]),
    ("ddim 0.5", True, 0, [0.795039, -1.0, 0.104006, 1.0]),
    ("ddpm", True, 0, [0.795039, -1.0, 0.104006, 1.0]),
]


OTHERS = {"ddpm": ddpm_step, "ddim 0.0": ddim_step, "ddim 0.5": partial(ddim_step, eta=0.5)}


@pytest.mark.parametrize("name, clip, t, expected", REFERENCE)
def test_steps_agree_with_another_implementation(name, clip, t, expected):
    schedule = linear_schedule()
    x_t, eps, noise = (np.array(values, np.float32).reshape(4, 1, 1, 1) for values in (X_T, EPS, NOISE))
    at, at_prev = np.full(4, t, np.int32), np.full(4, max(t - 100, -1), np.int32)
    x0 = np.asarray(jax.jit(process.predict_x0)(schedule, x_t, at, eps))
    got = stepped(OTHERS[name], schedule, x_t, np.clip(x0, -1, 1) if clip else x0, at, at_prev, noise)
    np.testing.assert_allclose(np.ravel(got), expected, rtol=1e-4, atol=2e-5)


SMALL = linear_schedule(8, 0.01, 0.4)


def small_denoiser(x_t, t):
    return jnp.tanh(x_t) * (1 + t[:, None, None, None] / 8)


@pytest.fixture(scope="module")
def five_images():
    """`(key) -> x0` of ancestral sampling, compiled once."""
    return jax.jit(lambda key: sample(small_denoiser, Sampler(SMALL, ddpm_step), key, (5, 2, 2, 1)))


def test_an_image_depends_on_key_and_index_but_not_on_its_batch(five_images):
    five, other = (five_images(jax.random.key(seed)) for seed in range(2))
    again, five = np.array([3, 3]), np.asarray(five)
    sampler = Sampler(SMALL, ddpm_step)
    rows = jax.jit(lambda key, at: sample(small_denoiser, sampler, key, (2, 2, 2, 1), indices=at))
    two = rows(jax.random.key(0), again)
    np.testing.assert_allclose(two, five[again], atol=1e-6)
    assert np.abs(np.asarray(other) - five).max(axis=(1, 2, 3)).min() > 0.01


def test_given_noise_fixes_deterministic_samples_whatever_the_key():
    start = np.random.default_rng(5).normal(size=(2, 2, 2, 1)).astype(np.float32)
    run = jax.jit(lambda key: sample(small_denoiser, Sampler(SMALL), key, start.shape, noise=start))
    first, second = (run(jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(first, second)


def largest_prediction(schedule, x_t, x0, t, t_prev, noise):
    return jnp.maximum(x_t, jnp.abs(x0))


@pytest.mark.parametrize("step", [ddim_step, largest_prediction])
def test_clip_keeps_predictions_and_samples_inside_the_range_of_images(step):
    start = np.full((1, 1, 1, 1), 0.5, np.float32)
    clipped, unclipped = (
        drawn(start, lambda x, t: -3 * x, Sampler(SMALL, step, clip=clip)).item() for clip in (True, False)
    )
    assert clipped == 1 < unclipped


def test_steps_visit_the_levels_downwards_and_end_at_clean_data():
    def spy(schedule, x_t, x0, t, t_prev, noise):
        return 10 * x_t + jnp.stack([t, t_prev], axis=-1).astype(jnp.float32)[:, None, None, :]

    got = drawn(np.zeros((1, 1, 1, 2), np.float32), lambda x, t: x, Sampler(SMALL, spy, [1, 4, 6]))
    np.testing.assert_allclose(np.ravel(got), [641, 409])  # digits: t is 6, 4, 1 and t_prev is 4, 1, -1


def test_every_step_has_fresh_noise():
    def record(schedule, x_t, x0, t, t_prev, noise):
        return jnp.concatenate([x_t[..., 1:], noise[..., :1]], axis=-1)

    got = drawn(np.zeros((2, 1, 1, 3), np.float32), lambda x, t: x, Sampler(SMALL, record, [1, 4, 6]))
    assert len(np.unique(got)) == 6


def test_one_level_is_enough_and_returns_its_prediction():
    start = np.full((1, 1, 1, 1), 0.5, np.float32)
    got = drawn(start, lambda x, t: 0 * x, Sampler(SMALL, timesteps=[3]))
    np.testing.assert_allclose(got.item(), 0.5 / np.asarray(SMALL.sqrt_alphas_bar)[3], rtol=1e-6)


@pytest.mark.parametrize("timesteps", [[], [3, 2], [2, 2], [0, 8], [-1, 3]])
def test_levels_that_are_not_increasing_or_out_of_range_are_refused(timesteps):
    with pytest.raises(ConfigError, match="timesteps="):
        sample(small_denoiser, Sampler(SMALL, timesteps=timesteps), jax.random.key(0), (1, 1, 1, 1))
