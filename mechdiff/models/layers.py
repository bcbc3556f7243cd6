"""Layers that the blocks of the UNet are made of.

They are written as measured fastest on a CPU: one-pass GroupNorm in float32, SiLU through tanh, NHWC
convolutions (of pixels that are to be doubled, without doubling them).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from mechdiff.core.types import AnyArray, Features
from mechdiff.models.attention import project
from mechdiff.models.convolution import convolve, convolve_doubled
from mechdiff.models.group_norm import group_norm

Times = Real[AnyArray, " batch"]  # integer or real
_zeros = nn.initializers.zeros_init()


def silu(x: Array) -> Array:
    """`x * sigmoid(x)`; through tanh, which XLA vectorizes better on CPU."""
    return 0.5 * x * (1 + jnp.tanh(0.5 * x))


ACTIVATIONS = {  # by `UNetConfig.activation`
    "silu": silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
}


def time_features(
    t: Times, width: int, flip_sin_to_cos: bool, shift: float, scale: float = 1.0
) -> Float[Array, "batch width"]:
    """Sinusoidal features of `scale * t` (Ho et al. 2020), sines first unless flipped.

    Feature i of a half has the frequency 10000^(-i / (half - shift)); odd widths are padded with a zero.
    """
    half = width // 2
    # Rounded where PyTorch's programs round: a unit in the last place of an exponent turns angles of late
    # timesteps by up to 5e-5, with which their networks were trained.
    exponents = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (t.astype(jnp.float32) * scale)[:, None] * frequencies
    waves = [jnp.sin(angles), jnp.cos(angles)]
    features = jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2)))


class Layer(nn.Module):
    """A module that reads its parameters as they are.

    `nn.Module.param` compares the shape of each with what its initializer would make, which is traced anew
    for that, and took two fifths of the time to trace a UNet.
    """

    def param(self, name: str, *args, **kwargs) -> Any:
        """As `nn.Module.param`, but a parameter that is there is returned unchecked."""
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return super().param(name, *args, **kwargs)


class Dense(Layer):
    """A product over the last axis, with bias; parameters named and initialized as those of `nn.Dense`."""

    width: int
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*rows inputs"]) -> Float[Array, "*rows width"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.width))
        bias = self.param("bias", _zeros, (self.width,))
        x, kernel, bias = (jnp.asarray(a, self.dtype) for a in (x, kernel, bias))
        return project(x, kernel) + bias


class GroupNorm(Layer):
    """`group_norm` with a scale and a bias for each channel."""

    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space width"]) -> Float[Array, "batch *space width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", _zeros, (x.shape[-1],))
        return group_norm(x, scale, bias, self.groups, self.eps)


class Conv(Layer):
    """A convolution with bias; parameters named and initialized as those of `nn.Conv`.

    Attributes:
      doubled: of the input at twice its resolution, see `convolve_doubled`: window 3, stride 1, padding 1.
    """

    width: int
    window: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    doubled: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        kernel = self.param("kernel", self.kernel_init, (self.window, self.window, x.shape[-1], self.width))
        bias = self.param("bias", _zeros, (self.width,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.doubled:
            return convolve_doubled(x, kernel) + bias
        return convolve(x, kernel, self.stride, (self.padding, self.padding)) + bias


def conv3(width: int, dtype: Any, name: str, **kwargs) -> Conv:
    """A 3x3 convolution."""
    return Conv(width, dtype=dtype, name=name, **kwargs)
