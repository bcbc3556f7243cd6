"""Parameters of lucidrains' `Unet` before training, for untrained controls: PyTorch's own initialization."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mechdiff.core.types import AnyArray, PRNGKey

NORMAL = ("mem_kv", "time_mlp.0.weights")  # memory, random or learned frequencies


@dataclasses.dataclass(frozen=True)
class Initializer:
    """`init(key)`, which draws tensors of given names and shapes as `Unet()` does.

    Kernels and their biases are uniform within 1 / sqrt(fan-in), gains of norms 1 and their biases 0, memory
    and frequencies standard normal.

    Attributes:
      shapes: names of tensors and their shapes, sorted. Networks of equal shapes have equal initializers, so
        that they share compiled programs.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, key: PRNGKey) -> dict[str, AnyArray]:
        shapes, keys = dict(self.shapes), jax.random.split(key, len(self.shapes))
        return {name: _drawn(name, shapes, key) for name, key in zip(shapes, keys, strict=True)}


def initializer(params: Mapping[str, AnyArray]) -> Initializer:
    """That of networks with tensors of these names and shapes."""
    return Initializer(tuple(sorted((name, jnp.shape(value)) for name, value in params.items())))


def _drawn(name: str, shapes: Mapping[str, tuple[int, ...]], key: PRNGKey) -> AnyArray:
    layer, _, kind = name.rpartition(".")
    shape, kernel = shapes[name], shapes.get(f"{layer}.weight", ())
    if name.endswith(NORMAL):
        return jax.random.normal(key, shape)
    if len(kernel) > 1:
        bound = float(1 / np.sqrt(np.prod(kernel[1:])))
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return jnp.zeros(shape) if kind == "bias" else jnp.ones(shape)
