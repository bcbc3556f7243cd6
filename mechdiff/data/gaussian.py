"""Gaussian images with a spectrum like that of faces, for which the best denoiser is known exactly.

They are stationary on a torus and real, mean 0. Power falls with frequency f (cycles an image) as f^-3, for
the mean as if f were 0.6, and is shared out over gray, red against green, and yellow against blue as .94, .02
and .04: about what 2,000 images of CelebA have at 16x16 (exponents 2.9 to 3.0, shares .942, .022, .035).
The standard deviation of a value is 1/4, not CelebA's 1/2, so that of all values only 6e-5 lie outside
[-1, 1] and are cut off.

Images are bytes like all others. Rounding adds noise of variance STEP^2 / 12, which `spectrum` includes: the
images' distribution is that of the closed form as far as rounding errors are independent, and these are where
the noise of a timestep is not much smaller than STEP. Measured on 3,000 images of 16x16 at 5 of 24 timesteps
of the cosine schedule: 5.9e-5 of values are cut off; rounding raises the loss of the best denoiser by 0.29 %
at the cleanest timestep (closed form: 0.30 %) and by less elsewhere; its loss on bytes is the stated one to
within two standard errors, which are 0.1 % at the cleanest timestep and 1 % at the noisiest.
"""

import numpy as np
import scipy.fft
from jaxtyping import Float, UInt8

from mechdiff.core.errors import ConfigError
from mechdiff.data.dataset import to_bytes

EXPONENT = 3.0
MIN_FREQUENCY = 0.6  # that the mean counts as
COLORS = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])  # rows; orthonormal
SHARES = (0.94, 0.02, 0.04)  # of the variance, of each color
DEVIATION = 0.25  # of a value, in [-1, 1]
STEP = 2 / 255  # between bytes


def spectrum(size: int, rounded: bool = True) -> Float[np.ndarray, "{size} {size} 3"]:
    """Variance of each Fourier coefficient (orthonormal transform) of each of `COLORS`.

    The mean over frequencies and colors is the variance of a value.

    Args:
      rounded: of images as bytes: with the variance that rounding adds.
    """
    frequency = np.fft.fftfreq(size, 1 / size)
    radius = np.maximum(np.hypot(frequency[:, None], frequency[None]), MIN_FREQUENCY)
    power = radius[..., None] ** -EXPONENT * np.array(SHARES)
    power *= DEVIATION**2 / power.mean()
    return power + (STEP**2 / 12 if rounded else 0)


def images(seed: int, start: int, count: int, size: int) -> Float[np.ndarray, "{count} {size} {size} 3"]:
    """Images `start .. start + count - 1` before clipping and rounding; each depends on the seed and on its
    index only.

    Raises:
      ConfigError: a negative start or count, or a size that is not 4 to 256.
    """
    if start < 0 or count < 0 or not 4 <= size <= 256:
        raise ConfigError(f"start={start}, count={count} must be 0 or more, and size={size} must be 4 to 256")
    shape = (size, size, 3)
    indices = range(start, start + count)
    white = [np.random.default_rng([seed, index]).standard_normal(shape) for index in indices]
    white = np.reshape(white, (count, *shape))
    scale = np.sqrt(spectrum(size, rounded=False))
    filtered = scipy.fft.ifft2(scipy.fft.fft2(white, axes=(1, 2)) * scale, axes=(1, 2)).real
    return filtered @ COLORS


def render_bytes(
    seed: int, start: int, count: int, size: int
) -> UInt8[np.ndarray, "{count} {size} {size} 3"]:
    """`images` as bytes."""
    return to_bytes(images(seed, start, count, size))
