"""Layers of the UNet against float64 numpy, and fast gradients against XLA's own."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference.in_float64 import applied, double, random, softmax_attention

from mechdiff.models import attention, layers
from mechdiff.models.convolution import convolve, convolve_doubled
from mechdiff.models.pretrained import plain_layers


def plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def value_and_gradients(conv, x, kernel, stride, padding):
    def loss(x, kernel):
        return jnp.sin(conv(x, kernel, stride, padding)).sum()

    return conv(x, kernel, stride, padding), *jax.grad(loss, argnums=(0, 1))(x, kernel)


CONVOLUTIONS = [  # batch, side, inputs, outputs, window, stride, padding of an axis
    (2, 8, 3, 5, 3, 1, (1, 1)),
    (3, 7, 6, 2, 3, 1, (1, 1)),  # fewer outputs: patches of the cotangent
    (2, 6, 4, 3, 3, 1, (0, 1)),  # unlike sides, mirrored
    (3, 8, 4, 4, 3, 2, (1, 1)),
    (2, 8, 4, 4, 3, 2, (0, 1)),
    (2, 7, 4, 2, 3, 2, (1, 1)),  # odd side
    (5, 4, 6, 3, 1, 1, (0, 0)),
    (6, 24, 2, 3, 3, 1, (1, 1)),  # several turns of the loop
]


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 2), (3, 8, 8, 1)])
def test_a_convolution_of_doubled_pixels_is_that_of_the_pixels_written_out(shape):
    """In whole numbers, which float32 adds in any order alike: outputs and both gradients to the bit."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.integers(-8, 9, s).astype(np.float32) for s in (shape, (3, 3, shape[-1], 6)))
    cotangent = rng.integers(-8, 9, (shape[0], 2 * shape[1], 2 * shape[2], 6)).astype(np.float32)

    def written_out(x, kernel):
        return plain(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel, 1, ((1, 1), (1, 1)))

    def both(conv):
        outputs, pull = jax.vjp(conv, x, kernel)
        return outputs, *pull(cotangent)

    for ours, expected in zip(both(convolve_doubled), both(written_out), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_and_its_gradients_are_those_of_xla(case):
    batch, side, inputs, outputs, window, stride, pad = case
    x, kernel = random(batch, side, side, inputs), random(window, window, inputs, outputs, seed=1)
    both = jax.jit(
        lambda *arrays: [value_and_gradients(conv, *arrays, stride, (pad, pad)) for conv in (convolve, plain)]
    )
    ours, theirs = jax.tree.map(np.asarray, both(x, kernel))
    np.testing.assert_array_equal(ours[0], theirs[0])
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * abs(b).max())


@pytest.mark.parametrize("case", [(2, 6, 9, 3, 3, 1), (1, 8, 16, 16, 3, 2), (2, 3, 12, 16, 2, 1)])
def test_zeros_beside_few_channels_change_nothing(case):
    """In whole numbers, to the bit, as above."""
    batch, side, inputs, outputs, window, stride = case
    rng = np.random.default_rng(0)
    shapes = (batch, side, side, inputs), (window, window, inputs, outputs)
    x, kernel = (rng.integers(-8, 9, shape).astype(np.float32) for shape in shapes)

    def both(conv):
        outputs, pull = jax.vjp(lambda *arrays: conv(*arrays, stride, ((1, 0), (0, 1))), x, kernel)
        cotangent = np.random.default_rng(1).integers(-8, 9, outputs.shape).astype(np.float32)
        return outputs, *pull(cotangent)

    for ours, expected in zip(both(convolve), both(plain), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_convolution_gradients_hold_under_vmap_and_inside_scan():
    x, kernel = random(3, 2, 6, 6, 4), random(3, 3, 4, 3, seed=1)
    sides = ((1, 1), (1, 1))
    kernel_gradient = lambda conv: lambda x: value_and_gradients(conv, x, kernel, 1, sides)[2]
    alone = jax.jit(kernel_gradient(plain))
    expected = np.stack([alone(item) for item in x])
    mapped, scanned = (
        jax.jit(partial(mapping, kernel_gradient(convolve)))(x)
        for mapping in (lambda f, x: jax.vmap(f)(x), lax.map)
    )
    np.testing.assert_allclose(mapped, expected, atol=1e-3)
    np.testing.assert_allclose(scanned, expected, atol=1e-3)


def test_conv_keeps_names_shapes_and_initial_values_of_linen():
    x, key = random(1, 4, 4, 3), jax.random.key(0)
    ours, theirs = (jax.jit(module.init)(key, x) for module in (layers.Conv(5), nn.Conv(5, (3, 3))))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_group_norm_matches_float64(mean):
    x = random(2, 4, 4, 12) * 1.5 + mean
    scale, bias = random(12, seed=1), random(12, seed=2)
    result = applied(layers.GroupNorm(groups=3, eps=1e-5), {"scale": scale, "bias": bias}, x)
    grouped = double(x).reshape(2, 16, 3, 4)
    centered = grouped - grouped.mean((1, 3), keepdims=True)
    expected = centered / np.sqrt(centered.var((1, 3), keepdims=True) + 1e-5)
    # one pass loses about mean^2 / variance ulps
    np.testing.assert_allclose(
        result, expected.reshape(x.shape) * scale + bias, atol=1e-5 if mean == 0 else 5e-3
    )


def test_group_norm_of_a_constant_is_its_bias():
    module, x = layers.GroupNorm(groups=2, eps=1e-5), np.full((1, 4, 4, 4), 3, np.float32)
    params = {"scale": np.ones(4, np.float32), "bias": np.arange(4, dtype=np.float32)}
    expected = np.broadcast_to(params["bias"], x.shape)
    np.testing.assert_allclose(applied(module, params, x), expected, atol=1e-5)


def test_silu_is_x_times_sigmoid():
    x = np.linspace(-30, 30, 301)
    exact = x / (1 + np.exp(-x))
    # of 30; XLA without optimization
    np.testing.assert_allclose(jax.jit(layers.silu)(np.float32(x)), exact, atol=1e-5)


def test_frequencies_are_rounded_as_pytorch_rounds_them():
    """Of diffusers' `get_timestep_embedding(957, 128, downscale_freq_shift=1)`, where exact ones differ."""
    indices = [5, 8, 14, 15, 18, 19]
    expected = [0.88134789, 0.96395606, -0.88158274, -0.02404018, -0.23879948, 0.182964]
    features = layers.time_features(jnp.array([957]), 128, False, 1.0)[0]
    np.testing.assert_allclose(features[jnp.array(indices)], expected, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_time_features_are_sines_and_cosines_of_geometric_frequencies(flip):
    t = np.array([0, 1, 17, 999])
    angles = t[:, None] * 10000.0 ** (-np.arange(4) / (4 - 1))
    parts = [np.sin(angles), np.cos(angles)]
    expected = np.pad(np.concatenate(parts[::-1] if flip else parts, -1), ((0, 0), (0, 1)))
    features = jax.jit(lambda t: layers.time_features(t, 9, flip, 1.0))
    np.testing.assert_allclose(features(t.astype(np.int32)), expected, atol=1e-4)


@pytest.mark.parametrize("block", [10**9, 2 * 16**2, 4 * 16**2])  # whole; a remainder; even blocks
def test_attention_in_blocks_is_softmax_attention(block, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    q, k, v = (random(3, 3 if block == 2 * 16**2 else 4, 16, 5, seed=i) for i in range(3))
    attend = jax.jit(
        lambda *arrays: attention.attend(*arrays)
    )  # a program of its own for each size of blocks
    np.testing.assert_allclose(attend(q, k, v), softmax_attention(q, k, v), atol=2e-5)


@pytest.mark.parametrize("block", [10**9, 2 * 16**2])
def test_attention_has_the_gradients_of_the_plain_product(block, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    q, k, v, weight = (random(3, 3, 16, 5, seed=i) for i in range(4))
    plain = lambda q, k, v: attention.attention_pattern(q, k) @ v

    def slopes_and_curvature(f):
        slopes = jax.grad(lambda *a: (f(*a) * weight).sum(), argnums=(0, 1, 2))
        curved = jax.grad(lambda q: (slopes(q, k, v)[1] ** 2).sum())
        return jax.jit(lambda *a: (slopes(*a), curved(a[0])))(q, k, v)

    (ours, curved), (expected, expected_curved) = map(slopes_and_curvature, (attention.attend, plain))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(curved, expected_curved, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("mean", "spread"), [(1, 1), (100, 1), (30, 0.01), (100, 0.01), (-1000, 1)])
def test_group_norm_keeps_the_variance_under_an_offset(mean, spread):
    """Against float64 on the same float32 numbers; mean of squares less squared mean was off by up to 7. The
    norm of foreign networks takes an element away where it normalizes too, and is exact."""
    x = (mean + spread * np.random.default_rng(0).standard_normal((2, 16, 16, 16))).astype(np.float32)
    params = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    named = {"norm.weight": params["scale"], "norm.bias": params["bias"]}
    plain = jax.jit(lambda x: plain_layers.group_norm(named, "norm", x, 4, 1e-6))
    groups = x.astype(np.float64).reshape(2, -1, 4, 4)
    centered = groups - groups.mean((1, 3), keepdims=True)
    right = (centered / np.sqrt((centered**2).mean((1, 3), keepdims=True) + 1e-6)).reshape(x.shape)
    for normed, error in ((applied(layers.GroupNorm(4, 1e-6), params, x), 1e-2), (plain(x), 2e-6)):
        assert np.sqrt(np.mean((double(normed) - right) ** 2)) < error * right.std()


def test_the_gradient_of_group_norm_knows_nothing_of_the_element_taken_away():
    """Against finite differences in the direction of that element alone (the middle one)."""
    x = (3 + np.random.default_rng(0).standard_normal((1, 4, 4, 4))).astype(np.float32)
    norm = layers.GroupNorm(2, 1e-6)
    params = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}

    @jax.jit
    @jax.value_and_grad
    def cubed(x):
        return (norm.apply({"params": params}, x) ** 3).sum()

    step = np.zeros_like(x)
    step[0, 2, 2, 0] = 1e-2
    slope = (float(cubed(x + step)[0]) - float(cubed(x - step)[0])) / 2e-2
    assert np.asarray(cubed(x)[1])[0, 2, 2, 0] == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("shape", [(3, 5, 4), (5, 4)])
def test_projections_and_their_gradients_are_those_of_one_product(shape):
    x, kernel = random(*shape), random(4, 6, seed=1)

    def gradients_of(product, *arrays):
        return jax.grad(lambda x, kernel: jnp.sin(product(x, kernel)).sum(), argnums=(0, 1))(*arrays)

    both = jax.jit(lambda *a: [gradients_of(product, *a) for product in (attention.project, jnp.matmul)])
    ours, theirs = both(x, kernel)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_activations_are_those_of_their_formulas():
    x = np.linspace(-4, 4, 33)
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x])
    expected = {
        "silu": x / (1 + np.exp(-x)),
        "relu": np.maximum(x, 0),
        "gelu": x * (1 + erf) / 2,
        "mish": x * np.tanh(np.log1p(np.exp(x))),
    }
    assert expected.keys() == layers.ACTIVATIONS.keys()
    for name, function in layers.ACTIVATIONS.items():
        np.testing.assert_allclose(function(jnp.float32(x)), expected[name], atol=2e-6)
