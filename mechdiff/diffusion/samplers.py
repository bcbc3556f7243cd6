"""Ancestral (DDPM) and implicit (DDIM) sampling with any denoiser function.

Image i of a sample depends on the key and on its index alone, and the noise of a step on its t: samples don't
move with the batch size, and rows with equal indices (one image under several interventions) share all noise.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mechdiff.core import keys
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, Images, PRNGKey, PyTree, StepFn, Timesteps
from mechdiff.diffusion.process import image_noise, log_alpha_bar, posterior, predict_eps, predict_x0
from mechdiff.diffusion.schedules import NoiseSchedule

DenoiseFn = Callable[[Images, Timesteps], Images]  # a `types.DenoiseFn`
Levels = Sequence[int] | Int[np.ndarray, " n"]


def ddpm_step(
    schedule: NoiseSchedule, x_t: Images, x0: Images, t: Timesteps, t_prev: Timesteps, noise: Images
) -> Images:
    """x_prev from the posterior q(x_prev | x_t, x_0 = x0): Ho et al. 2020, algorithm 2, posterior variance.

    Any -1 <= t_prev < t will do; t_prev = -1 returns `x0`.
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

    Song et al. 2021, eq. 12, sigma being `eta` times the posterior's (eq. 16): eta = 0 is deterministic, 1
    is `ddpm_step`; set it with `functools.partial`. `eps` is the noise that belongs to `x0`, so that the two
    agree where `x0` was clipped too.
    """
    prev_noise = -jnp.expm1(log_alpha_bar(schedule, t_prev))[:, None, None, None]
    signal = jnp.sqrt(1 - prev_noise)
    eps = predict_eps(schedule, x_t, t, x0)
    if eta == 0:
        return signal * x0 + jnp.sqrt(prev_noise) * eps
    variance = eta**2 * posterior(schedule, x0, x_t, t, t_prev)[1]
    direction = jnp.sqrt(jnp.maximum(prev_noise - variance, 0))
    return signal * x0 + direction * eps + jnp.sqrt(variance) * noise


def guided(
    predict: Callable[[Images, Timesteps, PyTree], Images], condition: PyTree, null: PyTree, scale: float
) -> DenoiseFn:
    """Classifier-free guidance (Ho & Salimans 2022): the noise eps_null + scale (eps_condition - eps_null).

    Scale 0 is the network without condition and 1 the network under it, each in one row an image and bitwise
    what `predict` gives; any other scale takes two rows an image.

    Args:
      predict: `(x_t, t, condition) -> noise`, each row by itself.
      condition, null: leaves `(batch, ...)`.
      scale: 1 + w of the paper, as in Imagen and diffusers.
    """
    if scale in (0, 1):
        told = condition if scale else null
        return lambda x_t, t: predict(x_t, t, told)

    def denoise_fn(x_t: Images, t: Timesteps) -> Images:
        twice = lambda first, second: jnp.concatenate([first, second])
        both = jax.tree.map(twice, null, condition)
        without, under = jnp.split(predict(twice(x_t, x_t), twice(t, t), both), 2)
        return without + scale * (under - without)

    return denoise_fn


def sample(
    denoise_fn: DenoiseFn,
    schedule: NoiseSchedule,
    key: PRNGKey,
    shape: tuple[int, int, int, int],
    step_fn: StepFn = ddim_step,
    timesteps: Levels | None = None,
    clip: bool | float = True,
    noise: Images | None = None,
    indices: Int[Array, " batch"] | None = None,
) -> Images:
    """Images x_0 of `shape` (NHWC), drawn from noise by `denoise_fn`.

    Args:
      denoise_fn: predicts the noise in x_t; called with `t` int of shape (batch,).
      schedule: the noise levels it was trained with.
      key: of all randomness.
      shape: (batch, height, width, channels).
      step_fn: `(schedule, x_t, x0, t, t_prev, noise) -> x_prev`, where `x0` is the prediction after clipping.
      timesteps: levels visited, concrete, increasing, in [0, T); all if None. See `schedules.ddim_timesteps`.
      clip: each prediction of x_0 is clipped to [-clip, clip]; True is 1, the range of images; False or 0:
        not at all.
      noise: x_T, standard normal; drawn from `key` if None.
      indices: index of each image; 0, 1, ... if None. Equal indices share their noise.

    Returns:
      The images; within [-clip, clip] unless `clip` is 0.

    Raises:
      ConfigError: timesteps that are not increasing or outside [0, T).
    """
    return sample_path(denoise_fn, schedule, key, shape, (), step_fn, timesteps, clip, noise, indices)[0]


def sample_path(
    denoise_fn: DenoiseFn,
    schedule: NoiseSchedule,
    key: PRNGKey,
    shape: tuple[int, int, int, int],
    keep: Levels,
    step_fn: StepFn = ddim_step,
    timesteps: Levels | None = None,
    clip: bool | float = True,
    noise: Images | None = None,
    indices: Int[Array, " batch"] | None = None,
) -> tuple[Images, Float[Array, "kept batch height width channels"]]:
    """`sample`, and with it the predictions of x_0 (after clipping) at the timesteps `keep`, in that order.

    Raises:
      ConfigError: as `sample`, and a timestep to keep that is not visited or is named twice.
    """
    levels, slots = _plan(schedule.steps, timesteps, keep)
    indices = jnp.arange(shape[0]) if indices is None else indices
    noise = initial_noise(key, indices, shape[1:]) if noise is None else noise
    step_keys = keys_of_steps(key, levels)

    def step(carry, inputs):
        x_t, kept = carry
        level, level_prev, slot, step_key = inputs
        x_prev, x0 = one_step(denoise_fn, schedule, step_key, x_t, level, level_prev, indices, step_fn, clip)
        kept = kept.at[slot].set(x0, mode="drop") if len(keep) else kept
        return (x_prev, kept), None

    inputs = (levels, np.append(levels[1:], -1).astype(np.int32), slots, step_keys)
    start = (noise, jnp.zeros((len(keep), *shape), noise.dtype))
    return jax.lax.scan(step, start, inputs)[0]


def initial_noise(key: PRNGKey, indices: Int[AnyArray, " batch"], shape: tuple[int, ...]) -> Images:
    """The x_T that `sample` begins with."""
    return image_noise(keys.stream(key, "initial"), indices, shape)


def keys_of_steps(key: PRNGKey, levels: Int[AnyArray, " steps"]) -> Key[Array, " steps"]:
    """The key of the noise that `sample` adds at each level."""
    return keys.per_image(keys.stream(key, "steps"), jnp.asarray(levels))


def one_step(
    denoise_fn: DenoiseFn,
    schedule: NoiseSchedule,
    step_key: PRNGKey,
    x_t: Images,
    level: Int[AnyArray, ""],
    level_prev: Int[AnyArray, ""],
    indices: Int[AnyArray, " batch"],
    step_fn: StepFn,
    clip: bool | float,
) -> tuple[Images, Images]:
    """One step of `sample`: x at `level_prev`, and the prediction of x_0 that it went by.

    Args:
      step_key: of `keys_of_steps`.
      level, level_prev: where `x_t` is and where it goes; -1 is clean data.
    """
    batch = x_t.shape[0]
    t, t_prev = jnp.full(batch, level), jnp.full(batch, level_prev)
    x0 = predict_x0(schedule, x_t, t, denoise_fn(x_t, t))
    x0 = jnp.clip(x0, -clip, clip) if clip else x0
    return step_fn(schedule, x_t, x0, t, t_prev, image_noise(step_key, indices, x_t.shape[1:])), x0


def _plan(steps: int, timesteps: Levels | None, keep: Levels) -> tuple[np.ndarray, np.ndarray]:
    """The levels in the order of the visit, and the place of each in `keep` (len(keep): not kept)."""
    levels = np.asarray(range(steps) if timesteps is None else timesteps, np.int32)
    if levels.size == 0 or levels[0] < 0 or levels[-1] >= steps or np.any(np.diff(levels) <= 0):
        raise ConfigError(f"timesteps={levels.tolist()}: need increasing levels in [0, {steps})")
    place = {int(level): slot for slot, level in enumerate(keep)}
    if len(place) < len(keep) or not place.keys() <= set(levels.tolist()):
        raise ConfigError(f"keep={list(keep)}: need distinct levels among the {levels.size} that are visited")
    levels = levels[::-1]
    return levels, np.array([place.get(int(level), len(keep)) for level in levels], np.int32)
