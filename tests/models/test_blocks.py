"""Blocks of the UNet against float64 numpy."""

import jax
import jax.extend
import numpy as np
import pytest
from reference.in_float64 import applied, double, random, softmax_attention

from mechdiff.interventions import gates
from mechdiff.models import blocks


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.5, 4.0)])
def test_attention_block_equals_a_plain_implementation_with_temperatures(temperatures):
    heads, channels = 2, 8
    x, module = random(2, 4, 4, channels), blocks.Attention(heads, groups=2, eps=1e-5)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    keys = iter(range(100))
    params = jax.tree.map(lambda p: random(*p.shape, seed=next(keys)) * 0.5, variables["params"])
    temperature = np.array(temperatures, np.float32)
    variables = {**variables, "params": params, "temperature": {"pattern": {"value": temperature}}}
    result = jax.jit(module.apply)(variables, x)
    with gates.named("mid.attn0"):  # as consistency models are examined: by named values, patterns too
        named = jax.make_jaxpr(lambda x: module.apply(variables, x))(x)
    names = {eqn.params["name"] for eqn in named.eqns if eqn.primitive.name == "name"}
    assert names == {"mid.attn0.pattern@1", "mid.attn0.head@-2"}
    (again,) = jax.jit(jax.extend.core.jaxpr_as_fun(named))(x)
    np.testing.assert_allclose(again, result, atol=1e-6)

    p = jax.tree.map(double, params)
    groups = double(x).reshape(2, 16, 2, 4)
    groups = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    h = groups.reshape(2, 16, channels) * p["norm"]["scale"] + p["norm"]["bias"]
    split = lambda a: a.reshape(2, 16, heads, -1).swapaxes(1, 2)
    q, k, v = (split(h @ p[n]["kernel"] + p[n]["bias"]) for n in "qkv")
    z = softmax_attention(q / (4**0.5 * np.reshape(temperatures, (1, -1, 1, 1))), k, v)
    z = z.swapaxes(1, 2).reshape(2, 16, channels) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(result, x + z.reshape(x.shape), atol=2e-4)


def test_upsampling_repeats_and_pooling_averages():
    x = random(2, 4, 6, 3)
    up = applied(blocks.Upsample(conv=False), {}, x)
    np.testing.assert_array_equal(up, np.kron(double(x), np.ones((1, 2, 2, 1))))
    down = applied(blocks.Downsample(conv=False), {}, x)
    np.testing.assert_allclose(down, x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4)), atol=1e-6)


@pytest.mark.parametrize("padding", [0, 1])
def test_strided_downsampling_halves_any_padding(padding):
    x = random(1, 4, 4, 2)
    module = blocks.Downsample(padding)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: random(*leaf.shape, seed=1), shapes)
    low = padding
    padded = np.pad(double(x), ((0, 0), (low, 1), (low, 1), (0, 0)))
    kernel = double(params["conv"]["kernel"])
    expected = np.stack(
        [[np.einsum("hwc,hwco->o", padded[0, i : i + 3, j : j + 3], kernel) for j in (0, 2)] for i in (0, 2)]
    )
    expected = expected + params["conv"]["bias"]
    np.testing.assert_allclose(applied(module, params, x)[0], expected, atol=1e-5)
