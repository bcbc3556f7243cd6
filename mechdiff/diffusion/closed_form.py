"""Exact denoisers: the posterior mean of the noise for data of known distribution.

With x_t = a x_0 + s eps (a = sqrt(abar_t), s = sqrt(1 - abar_t)) the prediction of least squared error is
E[eps | x_t]; no network has a smaller denoising loss. Three kinds of data have it in closed form:
  Gaussian N(m, C)                   s (a^2 C + s^2 I)^-1 (x_t - a m)
  stationary N(m, C), C diagonal in a Fourier basis: the same, frequency by frequency, at any size
  mixture sum_k w_k N(m_k, d_k^2 I)  sum_k r_k s (x_t - a m_k) / (a^2 d_k^2 + s^2), with the posterior weights
                                     r_k ~ w_k N(x_t; a m_k, (a^2 d_k^2 + s^2) I)
A mixture at the training images with d = 0 is the optimal denoiser of the training set: it memorizes it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechdiff.core import devices
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, Images, Timesteps
from mechdiff.diffusion.schedules import NoiseSchedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianDenoiser:
    """The best denoiser of Gaussian images, a `types.DenoiseFn`; made by `gaussian_denoiser`.

    The covariance is stored as its eigenvalues, `spread`, and its eigenvectors, the columns of `basis`.
    """

    schedule: NoiseSchedule
    mean: Float[AnyArray, "height width channels"]
    spread: Float[AnyArray, " pixels"]
    basis: Float[AnyArray, "pixels pixels"]

    def __call__(self, x_t: Images, t: Timesteps) -> Images:
        """E[eps | x_t], shaped as `x_t`."""
        a, s = (values[t][:, None] for values in _scales(self.schedule))
        away = x_t.reshape(len(x_t), -1) - a * self.mean.reshape(-1)
        with jax.default_matmul_precision(devices.precision()):
            eps = s * ((away @ self.basis) / (a**2 * self.spread + s**2)) @ self.basis.T
        return eps.reshape(x_t.shape)

    def loss(self, t: Timesteps) -> Float[Array, " batch"]:
        """Expected denoising loss at `t`, the smallest possible: tr(a^2 C (a^2 C + s^2 I)^-1) / pixels."""
        a, s = (values[t][:, None] for values in _scales(self.schedule))
        signal = a**2 * self.spread
        return jnp.mean(signal / (signal + s**2), axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StationaryDenoiser:
    """The best denoiser of stationary Gaussian images on a torus, a `types.DenoiseFn`: the Wiener filter.

    Attributes:
      mean: of every value.
      spectrum: variance of each Fourier coefficient (orthonormal transform) of each color.
      colors: orthonormal rows, the combinations of channels that are independent of each other.
    """

    schedule: NoiseSchedule
    mean: Float[AnyArray, ""]
    spectrum: Float[AnyArray, "height width channels"]
    colors: Float[AnyArray, "channels channels"]

    def __call__(self, x_t: Images, t: Timesteps) -> Images:
        """E[eps | x_t]."""
        a, s = (values[t][:, None, None, None] for values in _scales(self.schedule))
        with jax.default_matmul_precision(devices.precision()):
            away = jnp.fft.fft2((x_t - a * self.mean) @ self.colors.T, axes=(1, 2))
            filtered = jnp.fft.ifft2(away * s / (a**2 * self.spectrum + s**2), axes=(1, 2))
            return filtered.real @ self.colors

    def loss(self, t: Timesteps) -> Float[Array, " batch"]:
        """Expected denoising loss at `t`, the smallest possible; as `GaussianDenoiser.loss`."""
        a, s = (values[t][:, None, None, None] for values in _scales(self.schedule))
        signal = a**2 * self.spectrum
        return jnp.mean(signal / (signal + s**2), axis=(1, 2, 3))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixtureDenoiser:
    """The best denoiser of a mixture of Gaussians, a `types.DenoiseFn`; made by `mixture_denoiser`."""

    schedule: NoiseSchedule
    log_weights: Float[AnyArray, " modes"]
    means: Float[AnyArray, "modes height width channels"]
    deviations: Float[AnyArray, " modes"]

    def __call__(self, x_t: Images, t: Timesteps) -> Images:
        """E[eps | x_t]."""
        a, s = (values[t][:, None] for values in _scales(self.schedule))
        variance = a**2 * self.deviations**2 + s**2  # (batch, modes)
        away = x_t.reshape(len(x_t), 1, -1) - a[:, :, None] * self.means.reshape(len(self.means), -1)
        pixels = away.shape[-1]
        log_likelihood = -0.5 * ((away**2).sum(-1) / variance + pixels * jnp.log(variance))
        share = jax.nn.softmax(self.log_weights + log_likelihood, axis=1)
        eps = jnp.einsum("bk,bkd->bd", share * s / variance, away, precision=devices.precision())
        return eps.reshape(x_t.shape)


def gaussian_denoiser(
    schedule: NoiseSchedule,
    mean: Float[np.ndarray, "height width channels"],
    covariance: Float[np.ndarray, "pixels pixels"],
) -> GaussianDenoiser:
    """The best denoiser of images drawn from N(mean, covariance).

    Args:
      covariance: of the values in the order of `mean.reshape(-1)`; symmetric, positive semidefinite.
    Raises:
      ConfigError: a covariance of another size, or one that is not symmetric and positive semidefinite.
    """
    covariance = np.asarray(covariance, np.float64)
    if covariance.shape != (mean.size, mean.size) or not np.allclose(covariance, covariance.T):
        raise ConfigError(
            f"covariance of shape {covariance.shape}: a symmetric {mean.size} x {mean.size} is needed"
        )
    spread, basis = np.linalg.eigh(covariance)
    if spread.min() < -1e-6 * max(spread.max(), 1e-30):
        raise ConfigError(f"covariance has the eigenvalue {spread.min():.3g}; none may be negative")
    arrays = (np.asarray(a, np.float32) for a in (mean, np.maximum(spread, 0), basis))
    return GaussianDenoiser(schedule, *arrays)


def stationary_denoiser(
    schedule: NoiseSchedule,
    spectrum: Float[np.ndarray, "height width channels"],
    colors: Float[np.ndarray, "channels channels"],
    mean: float = 0.0,
) -> StationaryDenoiser:
    """The best denoiser of stationary Gaussian images, such as `data.gaussian` draws.

    Args:
      spectrum: variances of Fourier coefficients, orthonormal transform; equal at opposite frequencies.
      colors: rows are the independent combinations of channels; orthonormal.

    Raises:
      ConfigError: a spectrum that is negative or differs at opposite frequencies, or colors that are not
        orthonormal.
    """
    spectrum, colors = np.asarray(spectrum, np.float64), np.asarray(colors, np.float64)
    opposite = np.roll(spectrum[::-1, ::-1], 1, axis=(0, 1))
    if not (spectrum >= 0).all() or not np.allclose(spectrum, opposite):
        raise ConfigError("a spectrum must be 0 or more, and equal at opposite frequencies")
    if not np.allclose(colors @ colors.T, np.eye(spectrum.shape[-1])):
        raise ConfigError(f"colors of shape {colors.shape} must be orthonormal rows, one for each channel")
    return StationaryDenoiser(schedule, *(np.asarray(a, np.float32) for a in (mean, spectrum, colors)))


def mixture_denoiser(
    schedule: NoiseSchedule,
    weights: Float[np.ndarray, " modes"],
    means: Float[np.ndarray, "modes height width channels"],
    deviations: Float[np.ndarray, " modes"],
) -> MixtureDenoiser:
    """The best denoiser of images drawn from a mixture of isotropic Gaussians.

    Args:
      weights: positive; normalized to sum to 1.
      means: image at the center of each mode.
      deviations: standard deviation of every value around the mean of its mode, 0 or more.
    Raises:
      ConfigError: weights or deviations out of range.
    """
    weights, deviations = np.asarray(weights, np.float64), np.asarray(deviations, np.float64)
    if not (weights > 0).all() or not (deviations >= 0).all():
        raise ConfigError("weights of a mixture must be above 0 and deviations at least 0")
    logs = np.log(weights / weights.sum())
    arrays = (np.asarray(a, np.float32) for a in (logs, means, deviations))
    return MixtureDenoiser(schedule, *arrays)


def _scales(schedule: NoiseSchedule) -> tuple[Array, Array]:
    return jnp.asarray(schedule.sqrt_alphas_bar), jnp.asarray(schedule.sqrt_one_minus_alphas_bar)
