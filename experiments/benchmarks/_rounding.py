"""Products as reduced precisions of accelerators make them, on a CPU: to rehearse accuracy, not time.

A card rounds what enters a product (TF32: 10 bits of fraction, bfloat16: 7) and adds up in float32. Here the
inputs of every convolution and matrix product are rounded so, to the nearest, before XLA multiplies in
float32, and so is what leaves a convolution in bfloat16, whose maps have two bytes a number there. What is
not played: a card's own order of adding up, and that some cards cut instead of rounding.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p

from mechdiff.core.config import Precision
from mechdiff.models.convolution import three_products

FRACTION_BITS = {"tf32": 10, "3xtf32": 10, "bfloat16": 7}
EXPONENT_BITS = 8


def rounded(x: jax.Array, setting: Precision) -> jax.Array:
    """To the nearest float of this precision's inputs."""
    return lax.reduce_precision(x, EXPONENT_BITS, FRACTION_BITS[setting])


@contextlib.contextmanager
def rounding_products(setting: Precision) -> Iterator[None]:
    """Every product of float32 arrays that is traced inside of the block has its inputs rounded. Programs
    that JAX has traced are forgotten at both ends, so that none is used on the other side."""
    if setting == "float32":
        yield
        return
    primitives = (dot_general_p, conv_general_dilated_p)
    jax.clear_caches()
    for primitive in primitives:
        narrow = primitive is conv_general_dilated_p and setting == "bfloat16"
        primitive.bind = _with_rounding(primitive.bind, setting, narrow)
    try:
        yield
    finally:
        for primitive in primitives:
            del primitive.bind  # the class's own again
        jax.clear_caches()


def _with_rounding(bind: Callable, setting: Precision, narrow: bool) -> Callable:
    """`bind` of a product whose inputs are rounded, and where `narrow` its result."""

    def bind_rounded(a: jax.Array, b: jax.Array, **params: object) -> jax.Array:
        def product(a: jax.Array, b: jax.Array) -> jax.Array:
            result = bind(rounded(a, setting), rounded(b, setting), **params)
            return rounded(result, setting) if narrow else result

        if a.dtype != jnp.float32 or b.dtype != jnp.float32:
            return bind(a, b, **params)
        return three_products(product, a, b) if setting == "3xtf32" else product(a, b)

    return bind_rounded
