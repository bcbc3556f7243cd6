"""The forward process, its inverse, its posterior, and the denoising losses.

Images are NHWC float in [-1, 1]; `t` is int in [0, T), one per image.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechdiff.core import keys
from mechdiff.core.config import Prediction
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import AnyArray, ExaminedImages, Images, PRNGKey, Timesteps
from mechdiff.diffusion.schedules import NoiseSchedule

WEIGHTINGS = ("uniform", "min_snr")


def image_noise(
    key: PRNGKey, indices: Int[AnyArray, " batch"], shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """Standard normal noise, `shape` per image, from `fold_in(key, index)`.

    Equal indices give equal noise: rows that hold one image under several interventions share it
    (common random numbers), and an image's noise does not depend on its batch.
    """
    return jax.vmap(lambda image_key: jax.random.normal(image_key, shape))(keys.per_image(key, indices))


def images_at(images: ExaminedImages, t_index: int) -> tuple[Images, Int[np.ndarray, " images"]]:
    """The images that a sweep uses at its timestep number `t_index`, and the indices of their noise.

    Args:
      images: crossed with the timesteps, `(images, height, width, channels)`: all are used at every
        timestep, each with one noise. Or nested in them, `(timesteps, images, ...)`: different images and
        noise at every timestep. A nested set covers `timesteps` times as many images with equally many runs;
        its index i stands for a bundle of independent images, one per timestep, and bundles are resampled
        where images would be.
    """
    if images.ndim == 4:
        return images, np.arange(len(images))
    return images[t_index], t_index * images.shape[1] + np.arange(images.shape[1])


def q_sample(schedule: NoiseSchedule, x0: Images, t: Timesteps, noise: Images) -> Images:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4); NaN where t is T or above."""
    signal, rest = jnp.asarray(schedule.sqrt_alphas_bar), jnp.asarray(schedule.sqrt_one_minus_alphas_bar)
    # An index of JAX would be cut to the last one in silence.
    return _rows(jnp.take(signal, t, mode="fill")) * x0 + _rows(jnp.take(rest, t, mode="fill")) * noise


class Noised(NamedTuple):
    """Noised images `x_t`, with the timestep `t` and the `noise` of each."""

    x_t: Images
    t: Timesteps
    noise: Images


def noised(
    schedule: NoiseSchedule,
    x0: Images,
    t: Int[AnyArray, ""] | int,
    key: PRNGKey,
    indices: Int[AnyArray, " batch"],
) -> Noised:
    """Images noised to timestep `t`, image i with the noise of `image_noise(key, indices[i])`."""
    timesteps, noise = jnp.full(len(x0), t), image_noise(key, indices, x0.shape[1:])
    return Noised(q_sample(schedule, x0, timesteps, noise), timesteps, noise)


def predict_x0(schedule: NoiseSchedule, x_t: Images, t: Timesteps, eps: Images) -> Images:
    """x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t): `q_sample` solved for the clean image."""
    noise = _rows(schedule.sqrt_one_minus_alphas_bar[t]) * eps
    return (x_t - noise) / _rows(schedule.sqrt_alphas_bar[t])


def predict_eps(schedule: NoiseSchedule, x_t: Images, t: Timesteps, x0: Images) -> Images:
    """eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t): `q_sample` solved for the noise."""
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


def prediction_target(
    prediction: Prediction, schedule: NoiseSchedule, x0: Images, t: Timesteps, noise: Images
) -> Images:
    """The target of a network's output: the noise, v = sqrt(abar) noise - sqrt(1 - abar) x_0 (Salimans & Ho
    2022, section 4), or the clean image, as `prediction` says."""
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        signal, scale = _rows(schedule.sqrt_alphas_bar[t]), _rows(schedule.sqrt_one_minus_alphas_bar[t])
        return signal * noise - scale * x0
    return x0


def to_eps(
    prediction: Prediction, schedule: NoiseSchedule, x_t: Images, t: Timesteps, output: Images
) -> Images:
    """The noise in `x_t` that a network's output implies: `prediction_target` solved for the noise."""
    if prediction == "epsilon":
        return output
    if prediction == "v_prediction":
        signal, scale = _rows(schedule.sqrt_alphas_bar[t]), _rows(schedule.sqrt_one_minus_alphas_bar[t])
        return signal * output + scale * x_t
    return predict_eps(schedule, x_t, t, output)


def loss_weights(
    schedule: NoiseSchedule,
    t: Timesteps,
    weighting: Literal["uniform", "min_snr"] = "uniform",
    gamma: float = 5.0,
    prediction: Prediction = "epsilon",
) -> Float[Array, " batch"]:
    """Weight of each image's squared error: 1, or that of min-SNR (Hang et al. 2023).

    Under min-SNR the squared error of x_0 has the weight min(SNR_t, gamma); the weight returned is that of
    the error of `prediction`, which is SNR_t (epsilon) or SNR_t + 1 (v) times the error of x_0.

    Raises:
      ConfigError: an unknown weighting, or gamma <= 0.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(unknown("weighting", weighting, WEIGHTINGS))
    if gamma <= 0:
        raise ConfigError(f"min_snr_gamma={gamma} must be positive; 5 is usual")
    if weighting == "uniform":
        return jnp.ones(t.shape)
    log_snr = schedule.log_snr[t]
    # Squared errors of the noise and of v are SNR and SNR + 1 times that of x_0.
    per_x0 = {"epsilon": log_snr, "v_prediction": jnp.logaddexp(log_snr, 0.0), "sample": 0.0}[prediction]
    return jnp.exp(jnp.minimum(log_snr, math.log(gamma)) - per_x0)


def denoising_loss(
    denoise_fn: Callable[[Images, Timesteps], Images],
    schedule: NoiseSchedule,
    x0: Images,
    t: Timesteps,
    noise: Images,
) -> Float[Array, " batch"]:
    """Mean squared error of the predicted noise, per image (Ho et al. 2020, eq. 14).

    `denoise_fn` is any `types.DenoiseFn`; it is called once, as `denoise_fn(x_t, t)`.
    """
    return _mean_square(denoise_fn(q_sample(schedule, x0, t, noise), t) - noise)


def training_loss(
    network: Callable[[Images, Timesteps], Images],
    schedule: NoiseSchedule,
    x0: Images,
    t: Timesteps,
    noise: Images,
    prediction: Prediction = "epsilon",
    weighting: Literal["uniform", "min_snr"] = "uniform",
    gamma: float = 5.0,
) -> Float[Array, " batch"]:
    """Weighted mean squared error of `network`'s output against `prediction_target`, per image.

    With `epsilon` and uniform weights this is `denoising_loss`.
    """
    error = network(q_sample(schedule, x0, t, noise), t) - prediction_target(
        prediction, schedule, x0, t, noise
    )
    return loss_weights(schedule, t, weighting, gamma, prediction) * _mean_square(error)


def _mean_square(x: Images) -> Float[Array, " batch"]:
    return jnp.mean(x * x, axis=(1, 2, 3))


def _rows(values: Float[Array, " batch"]) -> Float[Array, "batch 1 1 1"]:
    return values[:, None, None, None]
