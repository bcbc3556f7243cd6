"""First and second moments of activations over channels, per site, timestep and group of images.

Covariance is over (image, position), after subtracting the mean of every position if it is given: otherwise
what all images have in common, such as a face in the middle, counts as variance. Moments are stored per group
of images, so that intervals can resample groups; a site costs one small matrix per group however many images
and positions there are.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechdiff.core.batches import batches
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.interventions.components import VECTORS, site_type
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable


class Moments(NamedTuple):
    """Moments of the activations `a` of one site; rows are (image, position).

    Attributes:
      first: sum of a over rows.
      second: sum of a a^T over rows.
      rows: number of rows in each group.
    """

    first: Float[np.ndarray, "t group channel"]
    second: Float[np.ndarray, "t group channel channel"]
    rows: Int[np.ndarray, " group"]


def as_rows(a: Float[Array, "batch ..."], site: str) -> Float[Array, "batch position channel"]:
    """An activation as rows of channels, those of all heads side by side."""
    if site_type(site) == "head":  # (image, token, head, depth)
        return a.reshape(*a.shape[:2], -1)
    return a.reshape(a.shape[0], -1, a.shape[-1])


@functools.partial(jax.jit, static_argnames=("groups",))
def _sums(
    denoiser: Examinable, batch: EvalBatch, means: PyTree, groups: int
) -> dict[str, tuple[Float[Array, "group channel"], Float[Array, "group channel channel"]]]:
    """Sums of a and of a a^T for every site, in consecutive groups of the batch."""
    x_t, t, _ = batch.noised(denoiser.schedule)
    values = denoiser.captured(denoiser.identity, x_t, t, batch.condition)[1]

    def of_site(site, a):
        a = as_rows(a - means[site] if site in means else a, site)
        a = a.reshape(groups, -1, a.shape[-1])
        return a.sum(1), jnp.einsum("grc,grd->gcd", a, a)

    return {site: of_site(site, a) for site, a in values.items() if site_type(site) not in VECTORS}


def channel_moments(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    means: Mapping[str, np.ndarray] | None = None,
    groups: int = 32,
) -> dict[str, Moments]:
    """Moments of every site with feature maps or heads (not of time or class embeddings).

    Args:
      eval_set: images in [-1, 1]; the last few are left out so that groups have one size. Each image has one
        noise for all timesteps.
      means: to be subtracted at every position, as of `activations.activation_means` at the same timesteps
        on other images; None: only each channel's mean over positions and images is (in `covariance`).
      groups: number of groups of consecutive images, the units of resampling; at most one per image.
    Returns:
      site -> its moments.
    Raises:
      ConfigError: fewer than 2 groups.
    """
    groups = min(groups, eval_set.count)
    if groups < 2:
        raise ConfigError(f"{eval_set.count} images in {groups} group(s): at least 2 are needed")
    size = eval_set.count // groups
    block = max(1, 16 // size)  # groups in one pass
    images = np.arange(groups * size).reshape(groups, size)
    by_timestep = []  # site -> (first, second)
    for t_index in range(len(eval_set.timesteps)):
        at_t = {site: value[t_index] for site, value in (means or {}).items()}
        blocks = [
            _sums(denoiser, eval_set.batch(t_index, images[batch.indices].ravel()), at_t, groups=block)
            for batch in batches(groups, block)
        ]
        by_timestep.append(
            jax.tree.map(lambda *sums: np.concatenate([np.asarray(s) for s in sums])[:groups], *blocks)
        )
    shapes = _positions(denoiser, eval_set)
    return {
        site: Moments(
            np.stack([at_t[site][0] for at_t in by_timestep]).astype(np.float64),
            np.stack([at_t[site][1] for at_t in by_timestep]).astype(np.float64),
            np.full(groups, size * shapes[site]),
        )
        for site in by_timestep[0]
    }


def _positions(denoiser: Examinable, eval_set: EvalSet) -> dict[str, int]:
    """Site -> number of positions, by shapes alone."""
    x = jax.ShapeDtypeStruct((1, *denoiser.image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    condition = conditions.at(eval_set.condition, slice(1))

    def values(denoiser, x, t, condition):
        return denoiser.captured(denoiser.identity, x, t, condition)[1]

    shapes = jax.eval_shape(values, denoiser, x, t, condition)
    rows = {site: jax.eval_shape(functools.partial(as_rows, site=site), a) for site, a in shapes.items()}
    return {site: a.shape[1] for site, a in rows.items()}


def covariance(
    moments: Moments, weights: Float[np.ndarray, "m group"]
) -> Float[np.ndarray, "m t channel channel"]:
    """Covariance over (image, position) under each weighting of the groups.

    Args:
      weights: one weighting per row, each with sum 1.
    """
    share = weights / (weights @ moments.rows)[:, None]
    mean = np.einsum("mg,tgc->mtc", share, moments.first)
    second = np.einsum("mg,tgcd->mtcd", share, moments.second, optimize=True)
    return second - mean[..., :, None] * mean[..., None, :]


def participation_ratio(covariance: Float[np.ndarray, "*cells c c"]) -> Float[np.ndarray, " *cells"]:
    """(sum of eigenvalues)^2 / sum of their squares, in [1, channels] (Gao et al. 2017); NaN if all are 0."""
    trace = np.trace(covariance, axis1=-2, axis2=-1)
    squares = (covariance**2).sum((-2, -1))  # the trace of the square, as it is symmetric
    return np.where(squares > 0, trace**2 / np.where(squares > 0, squares, 1), np.nan)


def effective_rank(covariance: Float[np.ndarray, "*cells c c"]) -> Float[np.ndarray, " *cells"]:
    """exp of the entropy of the eigenvalues as shares, in [1, channels] (Roy & Vetterli 2007)."""
    values = np.maximum(np.linalg.eigvalsh(covariance), 0)
    total = values.sum(-1, keepdims=True)
    p = values / np.where(total > 0, total, 1)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), np.nan)


def variance(covariance: Float[np.ndarray, "*cells c c"]) -> Float[np.ndarray, " *cells"]:
    """Mean variance of a channel; unlike the others it depends on the scale of the weights."""
    return np.asarray(np.trace(covariance, axis1=-2, axis2=-1) / covariance.shape[-1])
