"""Gradients of group normalization, of first order against finite differences in float64, and of second."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechdiff.models import group_norm

GROUPS, EPS = 3, 1e-5
RNG = np.random.default_rng(0)
SHAPE = (2, 4, 4, 12)
SCALE, BIAS = RNG.normal(1, 0.3, 12), RNG.normal(size=12)
WEIGHTS = RNG.normal(size=SHAPE)


def loss_in_float64(x, scale, bias):
    grouped = x.reshape(2, 16, GROUPS, 4)
    centered = grouped - grouped.mean((1, 3), keepdims=True)
    normed = centered / np.sqrt((centered**2).mean((1, 3), keepdims=True) + EPS)
    return (WEIGHTS * np.sin(normed.reshape(SHAPE) * scale + bias)).sum()


def loss(x, scale, bias):
    return (WEIGHTS.astype(np.float32) * jnp.sin(group_norm.group_norm(x, scale, bias, GROUPS, EPS))).sum()


@pytest.mark.parametrize("mean", [0, 100])
def test_gradients_are_slopes_in_float64(mean):
    point = RNG.normal(mean, 2, SHAPE), SCALE, BIAS
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*(a.astype(np.float32) for a in point))
    for place, gradient in enumerate(gradients):
        direction = RNG.normal(size=gradient.shape)
        ahead, behind = (
            tuple(a + h * direction if i == place else a for i, a in enumerate(point)) for h in (1e-5, -1e-5)
        )
        slope = (loss_in_float64(*ahead) - loss_in_float64(*behind)) / 2e-5
        assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_a_gradient_of_the_gradient_is_that_of_jax():
    x, along = RNG.normal(1, 2, SHAPE).astype(np.float32), RNG.normal(size=SHAPE).astype(np.float32)
    scale, bias = SCALE.astype(np.float32), BIAS.astype(np.float32)

    def curvature(norm):
        summed = lambda x: jnp.sin(norm(x, scale, bias, GROUPS, EPS)).sum()
        return jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(summed)(x), along)))(x)

    ours, theirs = curvature(group_norm.group_norm), curvature(group_norm._normed)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_values_are_those_of_the_plain_formula_to_the_bit():
    """What frozen numbers rest on: spreading by a product of zeros and ones rounds nothing."""
    values = RNG.normal(size=(5, GROUPS)).astype(np.float32)
    spread = jax.jit(group_norm._to_channels, static_argnums=1)(values, 4)
    np.testing.assert_array_equal(spread, np.repeat(values, 4, axis=1))
