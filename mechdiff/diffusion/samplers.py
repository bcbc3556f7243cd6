"""Ancestral (DDPM) and implicit (DDIM) sampling with any denoiser function.

All noise of image i depends only on the key, on i, and on the t of the step. So samples do not depend on the
batch size, and rows with equal indices (one image under several interventions) share all noise.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from mechdiff.core import keys
from mechdiff.core.errors import ConfigError, shorten
from mechdiff.core.types import AnyArray, DenoiseFn, Images, PRNGKey, PyTree, StepFn, Timesteps
from mechdiff.diffusion.process import image_noise, log_alpha_bar, posterior, predict_eps, predict_x0
from mechdiff.diffusion.schedules import NoiseSchedule, increasing_timesteps

TimestepSequence = Sequence[int] | Int[np.ndarray, " n"]


def ddpm_step(
    schedule: NoiseSchedule, x_t: Images, x0: Images, t: Timesteps, t_prev: Timesteps, noise: Images
) -> Images:
    """x_prev from the posterior q(x_prev | x_t, x_0 = x0): Ho et al. 2020, algorithm 2, posterior variance.

    Any -1 <= t_prev < t is allowed; t_prev = -1 is clean data and returns `x0`.
    """
    mean, variance = posterior(schedule, x0, x_t, t, t_prev)
    return mean + jnp.sqrt(variance) * noise


def ddim_step(
    schedule: NoiseSchedule,
    x_t: Images,
    x0: Images,
    t: Timesteps,
    t_prev: Timesteps,
    noise: Images,
    eta: float = 0.0,
) -> Images:
    """x_prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma^2) eps + sigma noise.

    Song et al. 2021, eq. 12, with sigma = `eta` times the posterior's (eq. 16): 0 is deterministic, 1 is
    `ddpm_step`; set it with `functools.partial`. `eps` is computed from `x0`, so that the two agree also
    where `x0` was clipped.
    """
    noise_variance = -jnp.expm1(log_alpha_bar(schedule, t_prev))[:, None, None, None]  # 1 - abar_prev
    signal = jnp.sqrt(1 - noise_variance)
    eps = predict_eps(schedule, x_t, t, x0)
    if eta == 0:
        return signal * x0 + jnp.sqrt(noise_variance) * eps
    variance = eta**2 * posterior(schedule, x0, x_t, t, t_prev)[1]
    direction = jnp.sqrt(jnp.maximum(noise_variance - variance, 0))
    return signal * x0 + direction * eps + jnp.sqrt(variance) * noise


def guided(
    predict: Callable[[Images, Timesteps, PyTree], Images], condition: PyTree, null: PyTree, scale: float
) -> DenoiseFn:
    """Classifier-free guidance (Ho & Salimans 2022): the noise eps_null + scale (eps_condition - eps_null).

    Scale 0 is the network without condition and 1 the network with it, each with one row per image and
    bitwise equal to `predict`; any other scale takes two rows per image.

    Args:
      predict: `(x_t, t, condition) -> noise`, row by row.
      condition, null: conditions with leaves `(batch, ...)`.
      scale: 1 + w of the paper, as in Imagen and diffusers.
    """
    if scale in (0, 1):
        return lambda x_t, t: predict(x_t, t, condition if scale else null)

    def denoise_fn(x_t: Images, t: Timesteps) -> Images:
        both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), null, condition)
        eps = predict(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        eps_null, eps_condition = jnp.split(eps, 2)
        return eps_null + scale * (eps_condition - eps_null)

    return denoise_fn


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How images are drawn from noise.

    Attributes:
      schedule: noise schedule that the denoiser was trained with.
      step_fn: `(schedule, x_t, x0, t, t_prev, noise) -> x_prev`, where `x0` is the prediction after clipping.
      timesteps: those visited, increasing, in [0, T), concrete; None: all. See `schedules.ddim_timesteps`.
      clip: each prediction of x_0 is clipped to [-clip, clip]; True is 1, the range of images; False or 0:
        not at all.

    Raises:
      ConfigError: a clip below 0, with which all images would be the same, or one that is not finite.
    """

    schedule: NoiseSchedule
    step_fn: StepFn = ddim_step
    timesteps: TimestepSequence | None = None
    clip: bool | float = True

    def __post_init__(self):
        check_clip(self.clip)


def check_clip(clip: float) -> None:
    """Refuses a clip that is not finite or below 0; ConfigError."""
    try:
        value = float(clip)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"clip={shorten(clip)}: expected True, False or a number that is not below 0")


def sample(
    denoise_fn: DenoiseFn,
    sampler: Sampler,
    key: PRNGKey,
    shape: tuple[int, int, int, int],
    *,
    noise: Images | None = None,
    indices: Int[Array, " batch"] | None = None,
) -> Images:
    """Images x_0 of `shape` (NHWC), drawn from noise by `denoise_fn`.

    Args:
      denoise_fn: predicts the noise in x_t; called with `t` int of shape (batch,).
      sampler: schedule, steps and clipping.
      key: of all randomness.
      shape: (batch, height, width, channels).
      noise: x_T, standard normal; drawn from `key` if None.
      indices: index of each image; 0, 1, ... if None. Equal indices share their noise.

    Returns:
      The images; within [-clip, clip] unless `sampler.clip` is 0.

    Raises:
      ConfigError: timesteps that are not increasing or outside [0, T).

    Example:
      >>> from mechdiff.diffusion.schedules import linear_schedule
      >>> predict = lambda x_t, t: x_t  # all of it is noise
      >>> sampler = Sampler(linear_schedule(), timesteps=[0, 500, 999])
      >>> sample(predict, sampler, jax.random.key(0), (2, 8, 8, 3)).shape
      (2, 8, 8, 3)
    """
    timesteps = _descending(sampler)
    indices = jnp.arange(shape[0]) if indices is None else indices
    noise = initial_noise(key, indices, shape[1:]) if noise is None else noise
    return take_steps(lambda i: denoise_fn, sampler, key, noise, timesteps, indices)


def take_steps(
    denoise_at: Callable[[Int[Array, ""]], DenoiseFn],
    sampler: Sampler,
    key: PRNGKey,
    x_t: Images,
    timesteps: Int[AnyArray, " steps"],
    indices: Int[AnyArray, " batch"],
    span: tuple[int | Int[Array, ""], int | Int[Array, ""]] | None = None,
) -> Images:
    """The states after some of the steps of a sampling: the one loop that all samplings run.

    Args:
      denoise_at: number of a step (traced) -> the denoiser at it; under an intervention it may differ from
        step to step.
      sampler: schedule, step and clipping; its timesteps are not read.
      key: of the noise that steps add.
      x_t: states before the first step that is taken.
      timesteps: of all steps, descending; the last step ends at clean data. If they are traced, samplings of
        equally many steps share one program.
      indices: of the images, for their noise.
      span: number of the first step taken, and of the first one that is not; None: all are taken.

    Example:
      >>> from mechdiff.diffusion.schedules import linear_schedule
      >>> sampler, down, x = Sampler(linear_schedule()), np.array([999, 500, 0]), np.ones((2, 8, 8, 3))
      >>> all_noise = lambda i: lambda x_t, t: x_t
      >>> take_steps(all_noise, sampler, jax.random.key(0), x, down, np.arange(2), (0, 2)).shape
      (2, 8, 8, 3)
    """
    timesteps = jnp.asarray(timesteps)
    previous = jnp.append(timesteps[1:], -1)
    step_keys = keys_of_steps(key, timesteps)

    def step(i, x_t):
        return one_step(denoise_at(i), sampler, step_keys[i], x_t, timesteps[i], previous[i], indices)

    start, stop = span or (0, len(timesteps))
    return jax.lax.fori_loop(start, stop, step, x_t)


def initial_noise(key: PRNGKey, indices: Int[AnyArray, " batch"], shape: tuple[int, ...]) -> Images:
    """The x_T from which `sample` starts, `(batch, *shape)`."""
    return image_noise(keys.stream(key, "initial"), indices, shape)


def keys_of_steps(key: PRNGKey, timesteps: Int[AnyArray, " steps"]) -> Key[Array, " steps"]:
    """The key of the noise that `sample` adds at each of these timesteps."""
    return keys.per_image(keys.stream(key, "steps"), jnp.asarray(timesteps))


def one_step(
    denoise_fn: DenoiseFn,
    sampler: Sampler,
    step_key: PRNGKey,
    x_t: Images,
    t: Int[AnyArray, ""],
    t_prev: Int[AnyArray, ""],
    indices: Int[AnyArray, " batch"],
) -> Images:
    """One step of `sample`: x at `t_prev`.

    Args:
      step_key: one of `keys_of_steps`.
      t, t_prev: timesteps before and after the step; -1 is clean data.
    """
    batch = x_t.shape[0]
    t, t_prev = jnp.full(batch, t), jnp.full(batch, t_prev)
    x0 = predict_x0(sampler.schedule, x_t, t, denoise_fn(x_t, t))
    x0 = jnp.clip(x0, -sampler.clip, sampler.clip) if sampler.clip else x0
    noise = image_noise(step_key, indices, x_t.shape[1:])
    return sampler.step_fn(sampler.schedule, x_t, x0, t, t_prev, noise)


def _descending(sampler: Sampler) -> Int[np.ndarray, " steps"]:
    """The timesteps in the order of sampling, checked."""
    steps = sampler.schedule.steps
    timesteps = np.arange(steps) if sampler.timesteps is None else sampler.timesteps
    return increasing_timesteps(timesteps, steps)[::-1]
