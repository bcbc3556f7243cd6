"""Statistics of attention patterns; each reduces a whole map to one number, so that no map is stored.

The definitions are this package's: the formula of arXiv 2506.17237 for head entropy is not known.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Float


class AttentionStatistics(NamedTuple):
    """Statistics of a pattern A (queries q, keys k), per row and head: `(batch, heads)`.

    Attributes:
      entropy: `-mean_q sum_k A ln A`, nats, in [0, ln keys].
      normalized_entropy: entropy / ln keys, in [0, 1]; comparable across resolutions.
      effective_keys: `exp(entropy)`, in [1, keys].
      mutual_information: `H(mean_q A) - mean_q H(A_q)`, nats; 0 if all queries attend to the same keys.
      distance: mean attended distance, in units of the feature map's side.
      identity_mass: mean weight of a position on itself, in [0, 1].
    """

    entropy: Float[Array, "batch heads"]
    normalized_entropy: Float[Array, "batch heads"]
    effective_keys: Float[Array, "batch heads"]
    mutual_information: Float[Array, "batch heads"]
    distance: Float[Array, "batch heads"]
    identity_mass: Float[Array, "batch heads"]


def attention_statistics(
    pattern: Float[Array, "batch heads tokens keys"], grid: tuple[int, int]
) -> AttentionStatistics:
    """Statistics of row-stochastic patterns over the positions of a `grid` (height, width).

    Keys after those of the positions are memory tokens, which have no position. They count in all statistics
    but the distance, which is the mean over the weight on positions.
    """
    tokens = pattern.shape[-1]
    placed = pattern[..., : pattern.shape[-2]]
    if placed.shape != pattern.shape:
        placed = placed / placed.sum(-1, keepdims=True)
    row_entropy = -xlogy(pattern, pattern).sum(-1).mean(-1)
    average = pattern.mean(-2)
    mutual = -xlogy(average, average).sum(-1) - row_entropy
    return AttentionStatistics(
        entropy=row_entropy,
        normalized_entropy=row_entropy / max(np.log(tokens), 1e-12),
        effective_keys=jnp.exp(row_entropy),
        mutual_information=jnp.maximum(mutual, 0),
        distance=(placed * _distances(grid)).sum(-1).mean(-1),
        identity_mass=jnp.diagonal(pattern, axis1=-2, axis2=-1).mean(-1),
    )


def _distances(grid: tuple[int, int]) -> Float[np.ndarray, "tokens tokens"]:
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return (np.hypot(y[:, None] - y, x[:, None] - x) / max(grid)).astype(np.float32)
