"""The forward process, its inversions and its posterior, and the denoising loss.

Images are NHWC float in [-1, 1]; `t` is int in [0, T), one per image.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mechdiff import keys
from mechdiff.errors import ConfigError, unknown
from mechdiff.schedules import NoiseSchedule
from mechdiff.types import AnyArray, Images, PRNGKey, Timesteps

WEIGHTINGS = ("uniform", "min_snr")


def image_noise(
    key: PRNGKey, indices: Int[AnyArray, " batch"], shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """Standard normal noise, `shape` per image, from `fold_in(key, index)`.

    Equal indices give equal noise: rows that hold one image under several interventions share it
    (common random numbers), and an image's noise does not move with its batch.
    """
    return jax.vmap(lambda image_key: jax.random.normal(image_key, shape))(keys.per_image(key, indices))


def q_sample(schedule: NoiseSchedule, x0: Images, t: Timesteps, noise: Images) -> Images:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4)."""
    return _rows(schedule.sqrt_alphas_bar[t]) * x0 + _rows(schedule.sqrt_one_minus_alphas_bar[t]) * noise


def predict_x0(schedule: NoiseSchedule, x_t: Images, t: Timesteps, eps: Images) -> Images:
    """The clean image that `x_t` holds if its noise is `eps`: q_sample solved for x_0."""
    noise = _rows(schedule.sqrt_one_minus_alphas_bar[t]) * eps
    return (x_t - noise) / _rows(schedule.sqrt_alphas_bar[t])


def predict_eps(schedule: NoiseSchedule, x_t: Images, t: Timesteps, x0: Images) -> Images:
    """The noise that `x_t` holds if its clean image is `x0`: q_sample solved for the noise."""
    return (x_t - _rows(schedule.sqrt_alphas_bar[t]) * x0) / _rows(schedule.sqrt_one_minus_alphas_bar[t])


def posterior(
    schedule: NoiseSchedule, x0: Images, x_t: Images, t: Timesteps, t_prev: Timesteps
) -> tuple[Images, Float[Array, "batch 1 1 1"]]:
    """Mean and variance of q(x_prev | x_t, x_0) (Ho et al. 2020, eq. 6 and 7), for any -1 <= t_prev < t.

    With alpha = abar_t / abar_prev, the step's own signal scale, it is
    mean = [sqrt(abar_prev) (1 - alpha) x_0 + sqrt(alpha) (1 - abar_prev) x_t] / (1 - abar_t) and
    variance = (1 - abar_prev) (1 - alpha) / (1 - abar_t). t_prev = -1 means clean data: mean x_0, variance 0.
    """
    log_bar, log_prev = log_alpha_bar(schedule, t), log_alpha_bar(schedule, t_prev)
    step_noise, prev_noise = -jnp.expm1(log_bar - log_prev), -jnp.expm1(log_prev)
    noise = -jnp.expm1(log_bar)
    x0_weight = jnp.exp(log_prev / 2) * step_noise / noise
    x_t_weight = jnp.exp((log_bar - log_prev) / 2) * prev_noise / noise
    return _rows(x0_weight) * x0 + _rows(x_t_weight) * x_t, _rows(prev_noise * step_noise / noise)


def log_alpha_bar(schedule: NoiseSchedule, t: Timesteps) -> Float[Array, " batch"]:
    """ln abar_t, with t = -1 for clean data (abar = 1)."""
    return jnp.where(t < 0, 0.0, schedule.log_alphas_bar[jnp.maximum(t, 0)])


def loss_weights(
    schedule: NoiseSchedule,
    t: Timesteps,
    weighting: Literal["uniform", "min_snr"] = "uniform",
    gamma: float = 5.0,
) -> Float[Array, " batch"]:
    """Weight of each image's loss: 1, or min(SNR_t, gamma) / SNR_t (min-SNR, Hang et al. 2023).

    Raises:
      ConfigError: an unknown weighting, or gamma <= 0.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(unknown("weighting", weighting, WEIGHTINGS))
    if gamma <= 0:
        raise ConfigError(f"min_snr_gamma={gamma} must be positive; 5 is usual")
    if weighting == "uniform":
        return jnp.ones(t.shape)
    return jnp.exp(jnp.minimum(0.0, math.log(gamma) - schedule.log_snr[t]))


def denoising_loss(
    denoise_fn: Callable[[Images, Timesteps], Images],
    schedule: NoiseSchedule,
    x0: Images,
    t: Timesteps,
    noise: Images,
    weighting: Literal["uniform", "min_snr"] = "uniform",
    gamma: float = 5.0,
) -> Float[Array, " batch"]:
    """Each image's weighted mean squared error of the predicted noise (Ho et al. 2020, eq. 14).

    `denoise_fn` is any `types.DenoiseFn`; it is called once, as `denoise_fn(x_t, t)`.
    """
    eps = denoise_fn(q_sample(schedule, x0, t, noise), t)
    return loss_weights(schedule, t, weighting, gamma) * jnp.mean((eps - noise) ** 2, axis=(1, 2, 3))


def _rows(values: Float[Array, " batch"]) -> Float[Array, "batch 1 1 1"]:
    return values[:, None, None, None]
