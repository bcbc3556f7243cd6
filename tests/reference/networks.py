"""Small networks for tests, made by shape alone: nothing is compiled, and no parameter is zero."""

import functools

import jax
import numpy as np

from mechdiff.core.config import ExperimentConfig, UNetConfig
from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.unet import init_shapes
from mechdiff.training import step

# One level, attention down and in the middle: half as long to compile as preset `tiny`.
SMALL = UNetConfig(
    image_size=8, widths=(8,), down_attention=(True,), up_attention=(False,), heads=(2,), norm_groups=4
)


@functools.cache
def shapes(config: UNetConfig):
    """Shapes of the parameters and of the identity intervention."""
    return init_shapes(config)


def identity_of(config: UNetConfig) -> Intervention:
    """The identity intervention, in NumPy."""
    result = shapes(config)[1]
    replacement = lambda leaves, value: {k: np.full(a.shape, value, np.float32) for k, a in leaves.items()}
    return Intervention(
        replacement(result.gate, 1),
        replacement(result.replacement, 0),
        replacement(result.temperature, 1),
        ALWAYS,
    )


def random_params(config: UNetConfig, seed: int = 0) -> dict:
    """Parameters of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        if path[-1].key == "kernel":
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values = 0.2 * values + (path[-1].key == "scale")
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(config)[0])


def fresh_state(config: ExperimentConfig, params: dict | None = None) -> step.TrainState:
    """The state before the first step, with random parameters: to draw them as training does is compiled.

    Args:
      params: of another network.
    """
    params = random_params(config.unet) if params is None else params
    moments = jax.eval_shape(step.make_optimizer(config.train).init, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), moments)  # with which Adam begins
    return step.TrainState(np.int32(0), params, params, zeros)
