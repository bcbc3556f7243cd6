"""Sparse autoencoders: their features as units of a new site.

At a named value a, features f = encode(a) are named `<site>.feature`, and the network continues with
a + (f' - f) W_dec, f' being the features after their gates. That is decode(f') plus the autoencoder's error,
as in Marks et al. 2024 (sparse feature circuits, section 3), written so that f' = f gives a itself, bit by
bit.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float
from safetensors.numpy import load_file

from mechdiff.core.errors import CheckpointError, ConfigError, unknown
from mechdiff.core.types import PyTree
from mechdiff.models.traced.denoiser import Function
from mechdiff.models.traced.interpreter import Plan, evaluate
from mechdiff.models.traced.programs import walk

KEYS = ("W_enc", "b_enc", "W_dec", "b_dec")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """f = activation((a - b_dec) W_enc + b_enc), decoded as f W_dec + b_dec; along the last axis of a.

    Attributes:
      W_enc, W_dec: `(width, features)` and `(features, width)`.
      b_enc, b_dec: `(features,)` and `(width,)`.
      threshold: `(features,)`, of a JumpReLU: smaller pre-activations give 0. Zeros: a ReLU.
      top: keep this many of the largest features at each position, TopK; 0: all.
    Leaves are arrays, or whatever a transformation puts in their place.
    """

    W_enc: PyTree
    b_enc: PyTree
    W_dec: PyTree
    b_dec: PyTree
    threshold: PyTree
    top: int = dataclasses.field(default=0, metadata={"static": True})

    def encode(self, a: Float[Array, "*positions width"]) -> Float[Array, "*positions features"]:
        """Features of activations."""
        before = (a - self.b_dec) @ self.W_enc + self.b_enc
        features = jnp.where(before > self.threshold, jax.nn.relu(before), 0)
        if not self.top:
            return features
        least = jax.lax.top_k(features, self.top)[0][..., -1:]
        return jnp.where(features >= least, features, 0)

    def decode(self, features: Float[Array, "*positions features"]) -> Float[Array, "*positions width"]:
        """Activations of features."""
        return features @ self.W_dec + self.b_dec


def load_autoencoder(path: Path | str, *, top: int = 0) -> Autoencoder:
    """Weights from a safetensors file, by the names of SAELens: `W_enc`, `b_enc`, `W_dec`, `b_dec` and, of a
    JumpReLU, `threshold`.

    Args:
      top: of a TopK autoencoder, its k, which files of weights don't hold.
    Raises:
      CheckpointError: an absent or foreign file, or shapes that don't belong together.
    """
    try:
        tensors = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} can't be read as safetensors: {error}") from None
    missing = [key for key in KEYS if key not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {missing[0]!r}; it holds {', '.join(sorted(tensors)[:8])}")
    width, count = tensors["W_enc"].shape[0], tensors["b_enc"].shape[0]
    shapes = {"W_enc": (width, count), "b_enc": (count,), "W_dec": (count, width), "b_dec": (width,)}
    for key, shape in shapes.items():
        if tensors[key].shape != shape:
            raise CheckpointError(
                f"{path}: {key} has shape {tensors[key].shape}, its neighbours need {shape}"
            )
    threshold = tensors.get("threshold", np.zeros(count, np.float32))
    return Autoencoder(*(tensors[key] for key in KEYS), threshold, top)


def with_features(fn: Function, autoencoders: Mapping[str, Autoencoder]) -> Function:
    """`fn` with the features of autoencoders named, `<site>.feature`; its own names stay.

    Args:
      fn: as `wrap` takes it.
      autoencoders: name, as it stands in the program -> autoencoder along the last axis of its value; one for
        each turn of a scan, stacked, where the value stands in one.
    Raises:
      ConfigError: when called: a name that is not there, or a width that does not fit.

    Example:
      >>> features = with_features(fn, {"block0.mlp": load_autoencoder("sae.safetensors")})  # doctest: +SKIP
      >>> denoiser = wrap(features, params, schedule=schedule, example=(x, t))  # doctest: +SKIP
      >>> gone = ablate(denoiser.identity, ["block0.mlp.feature17"])  # doctest: +SKIP
    """

    def with_names(*args):
        program, shape = jax.make_jaxpr(jax.jit(fn), return_shape=True)(*args)
        tags = [naming.name for naming in walk(program)]
        for tag in autoencoders:
            if tag not in tags:
                raise ConfigError(unknown("site of an autoencoder", tag, tags))
        outputs, _ = evaluate(program, jax.tree.leaves(args), autoencoders, Plan(_splice))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    with_names.__name__ = getattr(fn, "__name__", "fn")
    return with_names


def _splice(tag: str, value: Array, autoencoder: Autoencoder) -> Array:
    width = autoencoder.W_enc.shape[-2]
    if value.shape[-1] != width:
        raise ConfigError(
            f"the autoencoder of {tag!r} has width {width}, the value {value.shape[-1]} along its last axis"
        )
    features = autoencoder.encode(value)
    changed = checkpoint_name(features, f"{tag.split('@')[0]}.feature")
    return value + ((changed - features) @ autoencoder.W_dec).astype(value.dtype)
