"""Layers of foreign networks as plain functions of their tensors: kernels OIHW as in PyTorch,
images NHWC.

A layer's `name` is that of its tensors in the state dict, without `.weight` and `.bias`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mechdiff.core.types import AnyArray, Features

Tensors = Mapping[str, AnyArray]


def convolve(params: Tensors, name: str, x: Features) -> Features:
    """A convolution of stride 1 that keeps the sides, with bias if `NAME.bias` is there."""
    kernel = params[f"{name}.weight"]
    pad = kernel.shape[-1] // 2
    h = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    bias = f"{name}.bias"
    return h + params[bias] if bias in params else h


def linear(params: Tensors, name: str, x: Float[AnyArray, "*rows _"]) -> Float[Array, "*rows _"]:
    """A dense layer, with bias if `NAME.bias` is there."""
    h = x @ params[f"{name}.weight"].T
    bias = f"{name}.bias"
    return h + params[bias] if bias in params else h


def group_norm(params: Tensors, name: str, x: Features, groups: int, eps: float = 1e-5) -> Features:
    """Normalizes each group of consecutive channels; `groups` divides their number; `eps` as torch has it."""
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    grouped = grouped - grouped[:, :1, :, :1]  # a mean far above the spread would cost digits
    mean = grouped.mean((1, 3), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
    normed = ((grouped - mean) * jax.lax.rsqrt(variance + eps)).reshape(x.shape)
    return normed * params[f"{name}.weight"] + params[f"{name}.bias"]
