"""Layers of foreign networks as plain functions of their tensors: kernels OIHW as in PyTorch,
images NHWC."""

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


def enlarged(x: Features) -> Features:
    """Twice the sides, every pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
