"""What a block of the decoder computes of its skip alone: rows with equal skips share it.

Such a block normalizes and convolves the stream and a skip as one map of more channels. Groups of channels
that lie within the skip are normalized without the stream, and a convolution of both is the sum of one of
each. In a sweep most rows have the skip of the clean pass, for which this is computed once.
"""

from typing import NamedTuple

import jax.numpy as jnp

from mechdiff.core.types import Features, PyTree
from mechdiff.models.convolution import convolve
from mechdiff.models.group_norm import group_norm
from mechdiff.models.layers import ACTIVATIONS


class PrecomputedSkip(NamedTuple):
    """A skip after its gate has acted, and what a block computes of it without the stream.

    Attributes:
      beside: its first channels, where they share a group with channels of the stream; None: no group is
        shared.
      conv1: what its other channels, normalized, add to the first convolution.
      shortcut: what its channels add to the shortcut.
    """

    beside: Features | None
    conv1: Features
    shortcut: Features


class Division(NamedTuple):
    """How a block's channels, first those of the stream and then those of the skip, are divided.

    Attributes:
      stream: channels of the stream.
      together: channels of all groups that hold a channel of the stream.
      depth: channels of a group.
    """

    stream: int
    together: int
    depth: int


def divide(stream: int, skip: int, groups: int) -> Division:
    """The division of the channels of a stream and a skip into groups.

    Example:
      >>> divide(64, 32, groups=8)
      Division(stream=64, together=72, depth=12)
    """
    depth = (stream + skip) // groups
    return Division(stream, -(-stream // depth) * depth, depth)


def precompute(
    params: PyTree, skip: Features, division: Division, eps: float, activation: str = "silu"
) -> PrecomputedSkip:
    """What a block computes of skips alone, whose gates have acted.

    Args:
      params: of the block.
      eps: of its first normalization.
      activation: as of the block.
    """
    stream, together, depth = division
    scale, bias = (params["norm1"][name][together:] for name in ("scale", "bias"))
    beside, rest = jnp.split(skip, [together - stream], axis=-1)
    h = ACTIVATIONS[activation](group_norm(rest, scale, bias, rest.shape[-1] // depth, eps))
    conv1 = convolve(h, params["conv1"]["kernel"][:, :, together:], 1, ((1, 1), (1, 1)))
    shortcut = convolve(skip, params["shortcut"]["kernel"][:, :, stream:], 1, ((0, 0), (0, 0)))
    return PrecomputedSkip(beside if beside.shape[-1] else None, conv1, shortcut)


def params_without_skip(params: PyTree, division: Division) -> PyTree:
    """The parameters of a block that is given a precomputed skip: those of all other channels."""
    stream, together, _ = division
    norm1, conv1, shortcut = params["norm1"], params["conv1"], params["shortcut"]
    return params | {
        "norm1": {name: leaf[:together] for name, leaf in norm1.items()},
        "conv1": conv1 | {"kernel": conv1["kernel"][:, :, :together]},
        "shortcut": shortcut | {"kernel": shortcut["kernel"][:, :, :stream]},
    }
