"""Noise schedules of the forward process, as tables over t in [0, T).

Tables are computed in float64 on the host and cast to float32 once, so that 1 - abar_t keeps its digits at
small t, where abar_t is close to 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.core.ranges import MAX_COUNT
from mechdiff.core.types import AnyArray

SAMPLE_STEPS = 50  # of DDIM, unless said otherwise


class NoiseSchedule(NamedTuple):
    """Tables of q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), Ho et al. 2020, eq. 4; a pytree."""

    betas: Float[Array, " steps"]  # variance added at step t, in (0, 1)
    alphas_bar: Float[Array, " steps"]  # abar_t = prod_{s <= t} (1 - beta_s), decreasing in t
    log_alphas_bar: Float[Array, " steps"]  # exact where abar_t is close to 1
    sqrt_alphas_bar: Float[Array, " steps"]  # scale of the signal
    sqrt_one_minus_alphas_bar: Float[Array, " steps"]  # scale of the noise
    log_snr: Float[Array, " steps"]  # ln(abar_t / (1 - abar_t)), decreasing in t

    @property
    def steps(self) -> int:
        """T, the number of noise levels."""
        return self.betas.shape[-1]


def linear_schedule(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """Betas linear in t, from `beta_start` to `beta_end` whatever `steps` is (Ho et al. 2020, section 4)."""
    return _from_betas(_linear_betas(steps, beta_start, beta_end))


def scaled_linear_schedule(
    steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """Square roots of the betas linear in t (Rombach et al. 2022's code; `scaled_linear` in diffusers)."""
    return _from_betas(_scaled_linear_betas(steps, beta_start, beta_end))


def cosine_schedule(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """abar_t = f(t) / f(0), f(t) = cos^2(pi/2 (t/T + s) / (1 + s)); Nichol & Dhariwal 2021, eq. 17.

    Betas are clipped at `max_beta`, as in the paper, which changes only the last step or two.
    """
    return _from_betas(_cosine_betas(steps, s, max_beta))


def schedule_from_betas(betas: Sequence[float]) -> NoiseSchedule:
    """The schedule whose variances are `betas`, one per step.

    Example:
      >>> round(float(schedule_from_betas([0.1, 0.2]).alphas_bar[1]), 2)
      0.72

    Raises:
      ConfigError: a beta outside (0, 1).
    """
    return _from_betas(np.asarray(betas, np.float64))


def make_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The schedule of a config. Raises ConfigError for an unknown name.

    Example:
      >>> schedule = make_schedule(DiffusionConfig(steps=1000, schedule="cosine"))
      >>> schedule.steps
      1000
    """
    return _from_betas(betas_of(config))


def betas_of(config: DiffusionConfig) -> Float[np.ndarray, " steps"]:
    """Betas of a config, in float64, which `make_schedule` rounds. Raises ConfigError for an unknown name."""
    if config.schedule == "linear":
        return _linear_betas(config.steps, config.beta_start, config.beta_end)
    if config.schedule == "scaled_linear":
        return _scaled_linear_betas(config.steps, config.beta_start, config.beta_end)
    if config.schedule == "cosine":
        return _cosine_betas(config.steps)
    if config.schedule == "betas":
        return np.asarray(config.betas, np.float64)
    raise ConfigError(unknown("schedule", config.schedule, ("linear", "scaled_linear", "cosine", "betas")))


def timesteps_by_log_snr(schedule: NoiseSchedule, n: int) -> Int[np.ndarray, " n"]:
    """`n` distinct timesteps, increasing, evenly spaced in log-SNR.

    The grid covers the inner 98 % of t (from 0.01 (T-1) to 0.99 (T-1)): log-SNR changes steeply at both ends
    of a schedule, so that the outermost steps would otherwise take a large part of an even grid. Where the
    grid is finer than the timesteps, neighbors are moved apart to keep every t distinct.
    The schedule must be concrete (not traced). Raises ConfigError unless 1 <= n <= T.
    """
    steps = _check_count(schedule.steps, n)
    noise = -np.asarray(schedule.log_snr, np.float64)  # increasing, as np.interp needs
    first, last = np.interp([0.01 * (steps - 1), 0.99 * (steps - 1)], np.arange(steps), noise)
    grid = np.linspace(first, last, n) if n > 1 else np.array([(first + last) / 2])
    nearest = np.rint(np.interp(grid, noise, np.arange(steps))).astype(np.int64)
    rank = np.arange(n)
    distinct = np.maximum.accumulate(nearest - rank) + rank
    return np.minimum(distinct, steps - n + rank).astype(np.int32)


def ddim_timesteps(steps: int, n: int) -> Int[np.ndarray, " n"]:
    """`n` distinct timesteps of T = `steps`, increasing, evenly spaced in t, the last one T - 1.

    With the last one T - 1, sampling starts at the noise level that the denoiser was trained with ("trailing"
    in Lin et al. 2024, table 2). Raises ConfigError unless 1 <= n <= T.
    """
    steps = _check_count(steps, n)
    return (np.arange(1, n + 1) * steps // n - 1).astype(np.int32)


def increasing_timesteps(timesteps: Sequence[int] | AnyArray, steps: int) -> Int[np.ndarray, " n"]:
    """The timesteps that a sampler visits, as an array. Raises ConfigError unless they are integers in
    [0, `steps`) that increase."""
    values = timestep_array(timesteps)
    if values[-1] >= steps or (np.diff(values) <= 0).any():
        raise ConfigError(f"timesteps={shorten(values.tolist())}: need increasing timesteps in [0, {steps})")
    return values


def timestep_array(timesteps: Any) -> Int[np.ndarray, " n"]:
    """One timestep or several as an array. Raises ConfigError unless they are integers from 0 on."""
    values = np.asarray(timesteps)
    whole = np.issubdtype(values.dtype, np.integer) and values.ndim < 2 and values.size > 0
    if not whole or values.min() < 0 or values.max() > MAX_COUNT:
        raise ConfigError(f"timesteps={shorten(values.tolist())}: expected integers in [0, T), one at least")
    return values.reshape(-1).astype(np.int32)


def _linear_betas(steps: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start, end, steps, dtype=np.float64)


def _scaled_linear_betas(steps: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2


def _cosine_betas(steps: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    fraction = np.arange(steps + 1, dtype=np.float64) / steps
    signal = np.cos(0.5 * np.pi * (fraction + s) / (1 + s)) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], max_beta)


def _from_betas(betas: np.ndarray) -> NoiseSchedule:
    if not betas.size:
        raise ConfigError("a schedule needs one beta at least")
    if not np.all((betas > 0) & (betas < 1)):
        raise ConfigError(f"betas from {betas.min()} to {betas.max()}: need 0 < beta < 1 at every t")
    log_bar = np.cumsum(np.log1p(-betas))
    noise = -np.expm1(log_bar)  # 1 - abar without cancellation
    tables = NoiseSchedule(
        betas=betas,
        alphas_bar=np.exp(log_bar),
        log_alphas_bar=log_bar,
        sqrt_alphas_bar=np.exp(log_bar / 2),
        sqrt_one_minus_alphas_bar=np.sqrt(noise),
        log_snr=log_bar - np.log(noise),
    )
    return jax.device_put(jax.tree.map(np.float32, tables))  # nothing is compiled


def _check_count(steps: int, n: int) -> int:
    if not 1 <= n <= steps:
        raise ConfigError(f"{n} timesteps wanted of a schedule with {steps}; choose 1 to {steps}")
    return steps
