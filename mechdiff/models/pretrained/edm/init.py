"""Parameters of EDM's networks before training, for untrained controls: as NVlabs/edm draws them."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mechdiff.core.types import AnyArray, PRNGKey

LAST = (".conv1", ".proj", "_aux_conv", "out_conv")  # layers that end a branch or the network


@dataclasses.dataclass(frozen=True)
class Initializer:
    """`init(key)`, which draws tensors of given names and shapes as `DhariwalUNet` or `SongUNet` does.

    Kernels and biases of DhariwalUNet are uniform within 1 / sqrt(fan-in), its table of classes standard
    normal. Kernels of SongUNet are uniform within sqrt(6 / (fan-in + fan-out)), those of queries, keys and
    values within sqrt(0.2) of that, and its biases 0.

    Only the kernels that end a branch, or the network, are others: they begin at 0 (DhariwalUNet) or 1e-5 of
    the rest (SongUNet), so that no ablation would change a prediction. They are drawn as `untrained` draws
    such kernels of other networks, normal of variance 1 / fan-in.

    Attributes:
      kind: `DhariwalUNet` or `SongUNet`.
      shapes: names of tensors and their shapes, sorted. Equal networks have equal initializers, so that they
        share compiled programs.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, key: PRNGKey) -> dict[str, AnyArray]:
        shapes, keys = dict(self.shapes), jax.random.split(key, len(self.shapes))
        return {name: self._drawn(name, shapes, key) for name, key in zip(shapes, keys, strict=True)}

    def _drawn(self, name: str, shapes: Mapping[str, tuple[int, ...]], key: PRNGKey) -> AnyArray:
        layer, _, leaf = name.rpartition(".")
        shape, kernel = shapes[name], shapes[f"{layer}.weight"]
        if len(kernel) == 1:  # a norm
            return jnp.ones(shape) if leaf == "weight" else jnp.zeros(shape)
        fan_in, fan_out = float(np.prod(kernel[1:])), float(kernel[0] * np.prod(kernel[2:]))
        if layer.endswith(LAST):
            normal = jax.random.normal(key, shape) / np.sqrt(fan_in)
            return normal if leaf == "weight" else jnp.zeros(shape)
        if self.kind == "DhariwalUNet":
            if layer == "map_label":
                return jax.random.normal(key, shape)
            return _uniform(key, shape, 1 / np.sqrt(fan_in))
        if leaf == "bias":
            return jnp.zeros(shape)
        gain = np.sqrt(0.2) if layer.endswith(".qkv") else 1.0
        return _uniform(key, shape, gain * np.sqrt(6 / (fan_in + fan_out)))


def initializer(kind: str, params: Mapping[str, AnyArray]) -> Initializer:
    """That of networks of `kind` with tensors of these names and shapes."""
    return Initializer(kind, tuple(sorted((name, jnp.shape(value)) for name, value in params.items())))


def _uniform(key: PRNGKey, shape: tuple[int, ...], bound: float) -> AnyArray:
    return jax.random.uniform(key, shape, minval=-float(bound), maxval=float(bound))
