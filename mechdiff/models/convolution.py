"""Two-dimensional convolution whose gradients are also fast on a CPU.

XLA computes a weight gradient as a convolution with a window as large as the feature map. On one CPU core the
matrix products below were 1.5 to 2 times as fast at 16x16 and 32x32 (equally fast at 8x8); inside a loop,
gradients of `lax.conv` are several times slower still, and these are not. They process a few images at a
time, so that the patches (im2col's nine copies) stay in cache: all images at once lost most of the gain to
page faults. On accelerators XLA's own gradients are used.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mechdiff.core import devices
from mechdiff.core.types import AnyArray, Features

Sides = tuple[tuple[int, int], tuple[int, int]]  # padding before and after, of height and width
# XLA's faster convolutions on CPUs are those of more than 16 channels, in or out (its `ynn_support.cc`). Some
# zeros beside fewer channels get them too: 16 in and out, 3x3, then take three quarters of the time.
FASTER_ABOVE, ZEROS_UP_TO, WORTH_ABOVE = 16, 20, 8
POSITIONS = 1024  # output pixels in one step of the loop; 256 to 1024 were equally fast, 4096 1.2x slower


def convolve(
    x: Features, kernel: Float[AnyArray, "h w inputs outputs"], stride: int, padding: Sides
) -> Features:
    """Cross-correlation of NHWC feature maps.

    On a CPU it has gradients of any order but no forward mode (`jax.jvp` refuses); elsewhere both.

    Args:
      stride: of both axes.
      padding: zeros before and after, of height and width.
    """
    on_cpu = jax.default_backend() == "cpu"
    return (_convolve_cpu if on_cpu else _convolve)(x, kernel, stride, padding)


def convolve_doubled(x: Features, kernel: Float[AnyArray, "3 3 inputs outputs"]) -> Features:
    """`convolve` by a window of 3x3, zero-padded by one, of `x` at twice its resolution (nearest neighbor).

    Of the doubled pixels under the window, those that are one pixel of `x` are the same: on a CPU each of the
    four kinds of output pixel is a convolution of `x` by a window of 2x2 whose weights are sums of the
    kernel's. That is 4/9 of the arithmetic, and `x` is not written out doubled.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> convolve_doubled(x, jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
      [[0.0, 2.0, 4.0, 4.0], [4.0, 9.0, 12.0, 10.0], [8.0, 15.0, 18.0, 14.0], [8.0, 14.0, 16.0, 12.0]]
    """
    if jax.default_backend() != "cpu":
        return convolve(double(x), kernel, 1, ((1, 1), (1, 1)))
    rows = []
    for of_rows, high in _halves(kernel, 0):
        columns = [convolve(x, sums, 1, (high, wide)) for sums, wide in _halves(of_rows, 1)]
        rows.append(jnp.stack(columns, axis=3))  # batch, height, width, 2, outputs
    both = jnp.stack(rows, axis=2)  # batch, height, 2, width, 2, outputs
    return both.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], -1)


def double(x: Features) -> Features:
    """`x` at twice its resolution, by nearest neighbor."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _halves(kernel: AnyArray, axis: int) -> list[tuple[Array, tuple[int, int]]]:
    """Of three weights along an axis the two that the first, and the second, of the two pixels that one
    becomes sees of the pixels before; with the padding that each needs."""
    before, at, after = jnp.split(jnp.asarray(kernel), 3, axis)
    first = jnp.concatenate([before, at + after], axis)
    second = jnp.concatenate([before + at, after], axis)
    return [(first, (1, 0)), (second, (0, 1))]


def _correlate(x: Features, kernel: AnyArray, stride: int, padding: Sides, dilation: int) -> Features:
    product = functools.partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=padding,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    chosen = devices.precision() if x.dtype == jnp.float32 else ""
    if dilation == 1 and _is_slow(kernel):
        x, kernel = _with_zeros(x, 3), _with_zeros(kernel, 2)
    if chosen == devices.THREE_TF32:
        return three_products(functools.partial(product, precision=lax.Precision.HIGH), x, kernel)
    if chosen == devices.ROUNDED and jax.default_backend() == "cpu":
        return lax.reduce_precision(product(*(lax.reduce_precision(a, 8, 7) for a in (x, kernel))), 8, 7)
    if chosen == devices.ROUNDED:
        # The result is bfloat16 too: of a float32 one XLA drops the casts, and multiplies in float32.
        x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        return product(x, kernel, precision=lax.Precision.DEFAULT).astype(jnp.float32)
    return product(x, kernel)


def _is_slow(kernel: AnyArray) -> bool:
    """Whether a convolution by `kernel` is faster with zeros beside its input's channels."""
    height, width, inputs, outputs = kernel.shape
    narrow = inputs > WORTH_ABOVE and max(inputs, outputs) <= FASTER_ABOVE
    return narrow and height * width > 1 and jax.default_backend() == "cpu"


def _with_zeros(array: AnyArray, axis: int) -> Array:
    """`array` with zeros after its channels, which are this axis."""
    shape = list(array.shape)
    shape[axis] = ZEROS_UP_TO - shape[axis]
    zeros = lax.optimization_barrier(jnp.zeros(shape, array.dtype))  # or XLA would pad, which is slower
    return jnp.concatenate([array, zeros], axis)


def alone(x: Features) -> Features:
    """`x`, the result of a convolution, without what is added to it next as a part of that convolution.

    On a GPU, XLA lets cuDNN add a map to the result. A vector for each row, such as the embedding of its
    timestep, would be written out as a whole map for that, and read again.
    """
    return x if jax.default_backend() == "cpu" else lax.optimization_barrier(x)


def split(x: Float[AnyArray, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Two float32 arrays whose sum is `x`: its leading 11 bits, as many as TF32 has, and the rest.

    The split is by a bit mask, since XLA would simplify a cast to fewer bits and back to nothing.
    """
    bits = lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32) & jnp.uint32(0xFFFFE000)
    leading = lax.bitcast_convert_type(bits, jnp.float32)
    return leading, x - leading


def three_products(product: Callable[[Array, Array], Array], x: AnyArray, kernel: AnyArray) -> Array:
    """A bilinear product of float32 inputs as three products of TF32 inputs (3xTF32, Ootomo & Yokota 2022).

    It has nearly float32's accuracy on tensor cores: the product of the two rests, which is left out, is
    below float32's rounding.
    """
    (high_x, low_x), (high_kernel, low_kernel) = split(x), split(kernel)
    return product(low_x, high_kernel) + product(high_x, low_kernel) + product(high_x, high_kernel)


def _convolve(x: Features, kernel: AnyArray, stride: int, padding: Sides) -> Features:
    return _correlate(x, kernel, stride, padding, dilation=1)


_convolve_cpu = jax.custom_vjp(_convolve, nondiff_argnums=(2, 3))


def _forward(x: Features, kernel: AnyArray, stride: int, padding: Sides):
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Sides, saved: tuple[Features, AnyArray], g: Features):
    x, kernel = saved
    for_kernel = weight_gradient(x, g, kernel.shape[:2], stride, padding).astype(kernel.dtype)
    return input_gradient(g, kernel, x.shape, stride, padding), for_kernel


_convolve_cpu.defvjp(_forward, _backward)


def input_gradient(
    g: Features,
    kernel: Float[AnyArray, "h w inputs outputs"],
    shape: tuple[int, ...],
    stride: int,
    padding: Sides,
) -> Features:
    """Gradient for the input of `convolve`, of the given shape, from the cotangent `g` of its output."""
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    sides = []
    for size, out, window, (low, _) in zip(shape[1:3], g.shape[1:3], kernel.shape[:2], padding, strict=True):
        before = window - 1 - low
        sides.append((before, size + window - 2 - (out - 1) * stride - before))
    return _correlate(g, flipped, 1, tuple(sides), dilation=stride)


def weight_gradient(
    x: Features, g: Features, window: tuple[int, int], stride: int, padding: Sides
) -> Float[Array, "h w inputs outputs"]:
    """Gradient for the kernel of `convolve` from its input and the cotangent `g` of its output.

    Patches are taken from whichever of the two has fewer channels.
    """
    (batch, *_, inputs), (_, height, width, outputs) = x.shape, g.shape
    if stride == 1 and outputs < inputs:
        mirrored = tuple((w - 1 - low, w - 1 - high) for w, (low, high) in zip(window, padding, strict=True))
        return weight_gradient(g, x, window, 1, mirrored)[::-1, ::-1].swapaxes(2, 3)
    patches = functools.partial(_patches, window=window, stride=stride, padding=padding, out=(height, width))
    most = max(1, POSITIONS // (height * width))
    images = max(n for n in range(1, most + 1) if batch % n == 0)

    chunks = jax.tree.map(lambda a: a.reshape(-1, images, *a.shape[1:]), (x, g))
    total, _ = lax.scan(
        functools.partial(_add_chunk, patches=patches),
        jnp.zeros((outputs, window[0] * window[1] * inputs), jnp.float32),
        chunks,
    )
    return total.reshape(outputs, *window, inputs).transpose(1, 2, 3, 0)


def _add_chunk(
    total: Array, chunk: tuple[Features, Features], patches: Callable[[Features], Array]
) -> tuple[Array, None]:
    """The sum so far plus that over the images of one chunk."""
    rows, cotangent = patches(chunk[0]), chunk[1].reshape(-1, total.shape[0])
    contract = (((0,), (0,)), ((), ()))
    return total + lax.dot_general(cotangent, rows, contract, preferred_element_type=jnp.float32), None


def _patches(
    x: Features, window: tuple[int, int], stride: int, padding: Sides, out: tuple[int, int]
) -> Float[Array, "positions values"]:
    """The input window of each output pixel, one row per pixel, channels fastest (im2col)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    last = [(n - 1) * stride + 1 for n in out]
    offsets = itertools.product(range(window[0]), range(window[1]))
    shifted = [x[:, i : i + last[0] : stride, j : j + last[1] : stride] for i, j in offsets]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, window[0] * window[1] * x.shape[-1])
