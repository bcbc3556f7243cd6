"""Inputs and outputs of networks: noise, v, clean image, EDM's F or D, flow matching's velocity.

All noised images are the same up to a scale. This package's x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
(variance preserving) is EDM's x_0 + sigma noise times sqrt(abar_t), with sigma = sqrt((1 - abar_t) / abar_t),
and flow matching's (1 - s) x_0 + s noise times sqrt(abar_t) / (1 - s), with s = sigma / (1 + sigma). So a
parameterization is four numbers at each t: the scale of the network's input, the time that it is given, and
the weights of x_t and of its output in the predicted noise. Sources: Ho et al. 2020 (epsilon,
sample); Salimans & Ho 2022 (v); Karras et al. 2022, table 1 (EDM); Lipman et al. 2023 and Liu et al. 2023
(flow); Song et al. 2023 (consistency).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import AnyArray, Timesteps
from mechdiff.diffusion.schedules import NoiseSchedule

Rows = Float[AnyArray, "batch *rest"]
KINDS = ("epsilon", "v_prediction", "sample", "edm", "edm_denoised", "consistency", "flow")


class Coefficients(NamedTuple):
    """A parameterization at given timesteps, one number per row.

    The network is called as `network(input_scale * x_t, time)`; the predicted noise is from_x * x_t +
    from_output * output; the target of its output is of_x0 * x_0 + of_noise * noise.
    """

    input_scale: Float[Array, " batch"]
    time: AnyArray  # that the network is given, `(batch,)`
    from_x: Float[Array, " batch"]
    from_output: Float[Array, " batch"]
    of_x0: Float[Array, " batch"]
    of_noise: Float[Array, " batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameterization:
    """Input and output of a network.

    Attributes:
      output: `epsilon` (the noise), `v_prediction` (sqrt(abar) noise - sqrt(1 - abar) x_0), `sample` (x_0):
        the network takes x_t and t. `edm`: F(c_in x, ln(sigma) / 4), with x = x_0 + sigma noise and D
        = c_skip x + c_out F. `edm_denoised`: D(x, sigma) itself. `consistency`: as `edm`, with the c_skip and
        c_out that make D(x, sigma_min) = x (Song et al. 2023, appendix C). `flow`: the velocity noise - x_0
        at (1 - s) x_0 + s noise, with the time s in [0, 1].
      sigma_data: of `edm` and `consistency`, the data's standard deviation in c_skip, c_out and c_in.
      sigma_min: of `consistency`, the noise level at which it returns its input.
      noise_at: of `flow`, the time of pure noise, 1 or 0; 0 is the convention in which the velocity is
        x_0 - noise and time 1 - s.
      time_scale: factor of the time above in what the network is given (Stable Diffusion 3 takes 1000 s,
        consistency models 1000 ln(sigma) / 4).
    Raises:
      ConfigError: an unknown output, or numbers out of range.

    Example:
      >>> Parameterization(output="flow", time_scale=1000.0)
      Parameterization(output='flow', sigma_data=0.5, sigma_min=0.002, noise_at=1, time_scale=1000.0)
    """

    output: str = "epsilon"
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    noise_at: int = 1
    time_scale: float = 1.0

    def __post_init__(self):
        if self.output not in KINDS:
            raise ConfigError(unknown("parameterization", self.output, KINDS))
        if not self.sigma_data > 0:
            raise ConfigError(f"sigma_data={self.sigma_data} must be above 0; EDM's is 0.5")
        if not self.sigma_min >= 0:
            raise ConfigError(f"sigma_min={self.sigma_min} must be at least 0; 0.002 is usual")
        if self.noise_at not in (0, 1):
            raise ConfigError(f"noise_at={self.noise_at} must be 1 (x_0 at time 0) or 0 (noise at time 0)")
        if not self.time_scale > 0:
            raise ConfigError(f"time_scale={self.time_scale} must be above 0; 1 is usual")

    def decisive(self) -> dict[str, str | float]:
        """The fields, JSON-ready, for a digest; `sigma_min`, added later, only where it has an effect."""
        fields = dataclasses.asdict(self)
        if self.output != "consistency":
            del fields["sigma_min"]
        return fields

    def coefficients(self, schedule: NoiseSchedule, t: Timesteps) -> Coefficients:
        """Scales and weights at `t`, int in [0, T), `(batch,)`."""
        signal, noise = schedule.sqrt_alphas_bar[t], schedule.sqrt_one_minus_alphas_bar[t]
        sigma = jnp.exp(-schedule.log_snr[t] / 2)
        ones, zeros = jnp.ones_like(signal), jnp.zeros_like(signal)
        match self.output:
            case "epsilon":
                values = Coefficients(ones, t, zeros, ones, zeros, ones)
            case "v_prediction":
                values = Coefficients(ones, t, noise, signal, -noise, signal)
            case "sample":
                values = Coefficients(ones, t, 1 / noise, -1 / sigma, ones, zeros)
            case "edm":
                values = self._edm(signal, sigma)
            case "consistency":
                values = self._consistency(signal, sigma)
            case "edm_denoised":
                values = Coefficients(1 / signal, sigma, 1 / noise, -1 / sigma, ones, zeros)
            case _:
                values = self._flow(signal, noise)
        return values if self.time_scale == 1 else values._replace(time=self.time_scale * values.time)

    def _edm(self, signal: Array, sigma: Array) -> Coefficients:
        norm = jnp.sqrt(sigma**2 + self.sigma_data**2)
        return Coefficients(
            input_scale=1 / (norm * signal),
            time=jnp.log(sigma) / 4,
            from_x=sigma / norm**2 / signal,
            from_output=-self.sigma_data / norm,
            of_x0=sigma / (self.sigma_data * norm),
            of_noise=-self.sigma_data / norm,
        )

    def _consistency(self, signal: Array, sigma: Array) -> Coefficients:
        norm, above = jnp.sqrt(sigma**2 + self.sigma_data**2), sigma - self.sigma_min
        kept = above**2 / (above**2 + self.sigma_data**2)  # 1 - c_skip
        scale = self.sigma_data * above / norm  # c_out
        solved = jnp.where(scale == 0, 1, scale)  # at sigma_min the output has no effect: any target will do
        return Coefficients(
            input_scale=1 / (norm * signal),
            time=jnp.log(sigma) / 4,
            from_x=kept / sigma / signal,
            from_output=-scale / sigma,
            of_x0=kept / solved,
            of_noise=-(1 - kept) * sigma / solved,
        )

    def _flow(self, signal: Array, noise: Array) -> Coefficients:
        to_path = 1 / (signal + noise)  # (1 - s) / sqrt(abar), with s = noise / (signal + noise)
        sign = 1 if self.noise_at == 1 else -1
        return Coefficients(
            input_scale=to_path,
            time=(noise if self.noise_at == 1 else signal) * to_path,
            from_x=to_path,
            from_output=sign * signal * to_path,
            of_x0=jnp.full_like(signal, -sign),
            of_noise=jnp.full_like(signal, sign),
        )

    def inputs(self, schedule: NoiseSchedule, x_t: Rows, t: Timesteps) -> tuple[Rows, AnyArray]:
        """The network's arguments: the scaled input, and the time, `(batch,)`."""
        if self.output in ("epsilon", "v_prediction", "sample") and self.time_scale == 1:
            return x_t, t
        scales = self.coefficients(schedule, t)
        return _rows(scales.input_scale, x_t) * x_t, scales.time

    def to_eps(self, schedule: NoiseSchedule, x_t: Rows, t: Timesteps, output: Rows) -> Rows:
        """The noise in `x_t` that the network's output implies; in float32 where that is of fewer digits."""
        output = jnp.asarray(output, jnp.promote_types(output.dtype, jnp.float32))
        if self.output == "epsilon":
            return output
        scales = self.coefficients(schedule, t)
        return _rows(scales.from_x, x_t) * x_t + _rows(scales.from_output, x_t) * output

    def target(self, schedule: NoiseSchedule, x0: Rows, t: Timesteps, noise: Rows) -> Rows:
        """The target of the network's output, for `x0` with this noise: `to_eps` solved for the output."""
        scales = self.coefficients(schedule, t)
        return _rows(scales.of_x0, x0) * x0 + _rows(scales.of_noise, x0) * noise

    def training_loss(
        self,
        network: Callable[[Rows, Array], Rows],
        schedule: NoiseSchedule,
        x0: Rows,
        t: Timesteps,
        noise: Rows,
    ) -> Float[Array, " batch"]:
        """Mean squared error of the network's output against its `target`, per row.

        The denoising loss (of the noise) is `from_output ** 2` times it. For `edm` it equals EDM's loss with
        the weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, for `flow` the loss of flow matching.
        """
        x_t = _rows(schedule.sqrt_alphas_bar[t], x0) * x0
        x_t = x_t + _rows(schedule.sqrt_one_minus_alphas_bar[t], x0) * noise
        error = network(*self.inputs(schedule, x_t, t)) - self.target(schedule, x0, t, noise)
        return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def schedule_from_sigmas(sigmas: Sequence[float] | np.ndarray) -> NoiseSchedule:
    """The schedule whose timestep i has the noise-to-signal ratio `sigmas[i]`: abar = 1 / (1 + sigma^2).

    `schedules.timesteps_by_log_snr` then spreads evenly in ln(sigma), as log-SNR is -2 ln(sigma).

    Args:
      sigmas: above 0, increasing with t (the reverse of the order of sampling).
    Raises:
      ConfigError: sigmas that don't increase, or are not above 0 and finite.

    Example:
      >>> schedule_from_sigmas([0.5, 1.0, 2.0]).alphas_bar.tolist()
      [0.800000011920929, 0.5, 0.20000000298023224]
    """
    sigma = np.asarray(sigmas, np.float64)
    if sigma.ndim != 1 or len(sigma) < 2 or not np.all(np.isfinite(sigma)) or not sigma[0] > 0:
        raise ConfigError("sigmas must be two or more finite numbers above 0, smallest first")
    if not np.all(np.diff(sigma) > 0):
        raise ConfigError(
            f"sigmas must increase with t; they go from {sigma[0]} to {sigma[-1]}, reverse them"
        )
    log_bar = -np.log1p(sigma**2)
    tables = NoiseSchedule(
        betas=-np.expm1(np.diff(log_bar, prepend=0.0)),
        alphas_bar=np.exp(log_bar),
        log_alphas_bar=log_bar,
        sqrt_alphas_bar=np.exp(log_bar / 2),
        sqrt_one_minus_alphas_bar=sigma * np.exp(log_bar / 2),
        log_snr=-2 * np.log(sigma),
    )
    return jax.tree.map(lambda table: jnp.asarray(table, jnp.float32), tables)


def edm_schedule(
    steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> NoiseSchedule:
    """The noise levels of Karras et al. 2022, eq. 5, smallest first. Raises ConfigError as the above."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return schedule_from_sigmas((low + ramp * (high - low)) ** rho)


def flow_schedule(steps: int = 1000) -> NoiseSchedule:
    """The schedule of flow matching: timestep i of T is s = (i + 1/2) / T, midpoints of [0, 1] in T parts."""
    time = (np.arange(steps) + 0.5) / steps
    return schedule_from_sigmas(time / (1 - time))


def _rows(values: Float[Array, " batch"], like: Rows) -> Array:
    return values.reshape(values.shape + (1,) * (like.ndim - 1))
