"""First and second moments of activations over channels, per site, noise level and group of images.

Covariance is taken over (image, position), after the mean of every position was taken away if it is given:
otherwise what is alike in all images, such as a face in the middle, counts as variance. Channels are few, so
that a site costs one small matrix however many images and positions there are; images are kept apart in
groups, so that intervals can resample them.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.components import VECTORS, site_type
from mechdiff.models.denoiser import Examinable


class Moments(NamedTuple):
    """Of the activations `a` of one site, rows being (image, position).

    Attributes:
      first: sum of a, `[t, group, channel]`.
      second: sum of a a', `[t, group, channel, channel]`.
      rows: in each group, `[group]`.
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
def _sums(denoiser, x0, t, key, indices, condition, means, groups):
    rows = jnp.full(x0.shape[0], t)
    x_t = q_sample(denoiser.schedule, x0, rows, image_noise(key, indices, x0.shape[1:]))
    values = denoiser.captured(denoiser.identity, x_t, rows, condition)[1]

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
    """Moments of every site of heads' outputs, residual branches and skips; time injections don't vary.

    Args:
      denoiser.identity: the identity for the plain network.
      images: in [-1, 1]; the last few are left out so that groups are of one size.
      key: of the noise, one draw per image, shared by all timesteps.
      means: of `activations.activation_means` at the same timesteps, from other images; None: nothing is
        taken away but each channel's mean over positions and images.
      groups: of consecutive images, at most as many as there are images: the units of resampling.
    Returns:
      site -> its moments.
    Raises:
      ConfigError: fewer than 2 groups.
    """
    images, timesteps, key = eval_set.images, eval_set.timesteps, eval_set.key
    groups = min(groups, len(images))
    if groups < 2:
        raise ConfigError(f"{len(images)} images in {groups} group(s): at least 2 are needed")
    size = len(images) // groups
    block = max(1, 16 // size)  # groups in one pass
    indices = np.arange(groups * size)
    found: dict[str, list] = {}
    for level, t in enumerate(timesteps):
        at = {site: value[level] for site, value in (means or {}).items()}
        parts = []
        for start in range(0, groups, block):
            # A short last block repeats groups, so that it needs no program of its own.
            some = np.resize(np.arange(start, min(start + block, groups)), block)
            rows = indices.reshape(groups, size)[some].ravel()
            condition = jax.tree.map(lambda leaf, rows=rows: leaf[rows], eval_set.condition)
            part = _sums(denoiser, images[rows], int(t), key, rows, condition, at, groups=block)
            parts.append(jax.tree.map(np.asarray, part))
        for site in parts[0]:
            joined = [np.concatenate([part[site][i] for part in parts])[:groups] for i in range(2)]
            found.setdefault(site, []).append(joined)
    shapes = _positions(denoiser, eval_set)
    return {
        site: Moments(
            np.stack([first for first, _ in levels]).astype(np.float64),
            np.stack([second for _, second in levels]).astype(np.float64),
            np.full(groups, size * shapes[site]),
        )
        for site, levels in found.items()
    }


def _positions(denoiser: Examinable, eval_set: EvalSet) -> dict[str, int]:
    """Rows that each site has for one image, by shape alone."""
    x = jax.ShapeDtypeStruct((1, *denoiser.image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    condition = jax.tree.map(lambda leaf: leaf[:1], eval_set.condition)

    def values(denoiser, x, t, condition):
        return denoiser.captured(denoiser.identity, x, t, condition)[1]

    shapes = jax.eval_shape(values, denoiser, x, t, condition)
    rows = {site: jax.eval_shape(functools.partial(as_rows, site=site), a) for site, a in shapes.items()}
    return {site: a.shape[1] for site, a in rows.items()}


def covariance(
    moments: Moments, weights: Float[np.ndarray, "m group"]
) -> Float[np.ndarray, "m t channel channel"]:
    """Covariance over (image, position) under each weighting of the groups, rows summing to 1."""
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
    """Mean variance of a channel. Depends on the scale of the weights: the weakest measure."""
    return np.asarray(np.trace(covariance, axis1=-2, axis2=-1) / covariance.shape[-1])
