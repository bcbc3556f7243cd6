"""Fills of kind `optimal`: the constants that hurt least (Li & Janson 2024, arXiv 2409.09951).

Zero and mean ablation put wrong information in a component's place, and part of their damage is due to that;
the constant that minimises the loss of the ablated network puts the least. Ours is, per timestep and part,
  fill = u * mean + v,
with `mean` the map of kind `mean`, and one u and one v per channel (per channel of a head), sought by Adam on
reference images. The family holds mean (u 1, v 0) and zero ablation (0, 0), and every constant that is alike
at all positions. Each component keeps the best of mean, zero and what Adam found, so that neither of the two
does less damage on the reference images; on other images the loss is a fair held-out number.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mechdiff.core import keys
from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component, site_type
from mechdiff.interventions.record import Intervention
from mechdiff.models.unet import components
from mechdiff.sweeps.activations import activation_moments, replacements_at
from mechdiff.sweeps.execution import shared_prefix
from mechdiff.sweeps.execution.engine import Engine

RATE = 0.05  # of Adam at first, falling to 0 by a cosine; v is in units of the channel's deviation


def optimal_replacements(
    unet: UNetConfig,
    params: PyTree,
    identity: Intervention,
    schedule: NoiseSchedule,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    *,
    chosen: Sequence[Component] | None = None,
    steps: int = 32,
    batch: int = 8,
) -> dict[str, np.ndarray]:
    """Fills of kind `optimal` for leaving out the `chosen` components one at a time.

    All components are optimized at once: they share one array of fills, in which each has its own part.

    Args:
      images: reference images in [-1, 1]; take others than those that are scored.
      key: of the noise, fresh in every step; the choice between candidates is made under one draw per image,
        that of `activation_means`.
      chosen: components that don't overlap; all of the network if None.
      steps: of Adam, each on the next `batch` images; all in one program, which keeps what the gradient
        needs of (components + 1) x batch forward passes.
    Returns:
      site -> `(levels, *site)`; the mean where nothing was chosen.
    Raises:
      ConfigError: components that overlap.
    """
    chosen = tuple(chosen or components(unet))
    _check_apart(chosen)
    stacked = leave_one_out(identity, chosen)[1]
    network = unet, params, identity, schedule
    means, deviations = activation_moments(*network, images, timesteps, key)
    engine = Engine(unet, schedule, params)
    found = []
    for level, t in enumerate(timesteps):
        mean, deviation = replacements_at(means, level), replacements_at(deviations, level)
        scale = {site: _scale(site, mean[site], deviation[site]) for site in mean}
        start = {site: np.stack([np.ones_like(s), np.zeros_like(s)]) for site, s in scale.items()}
        zero = jax.tree.map(np.zeros_like, start)
        sought = _descend(
            unet, params, schedule, stacked, mean, scale, start, images, int(t), key, steps, batch
        )
        best = _best(engine, stacked, chosen, mean, scale, (start, zero, sought), images, int(t), key)
        found.append(_fill(mean, scale, best))
    return {site: np.stack([np.asarray(level[site]) for level in found]) for site in means}


def _check_apart(chosen: Sequence[Component]) -> None:
    taken: dict[tuple[str, int], str] = {}
    for component in chosen:
        for unit in range(*component.index):
            other = taken.setdefault((component.site, unit), component.name)
            if other != component.name:
                raise ConfigError(
                    f"{component.name!r} and {other!r} overlap; kind 'optimal' needs components that don't"
                )


def _positions(site: str, ndim: int) -> tuple[int, ...]:
    """Axes of a site's row that are neither heads nor channels."""
    return tuple(range(ndim - (2 if site_type(site) == "head" else 1)))


def _scale(site: str, mean: np.ndarray, deviation: np.ndarray) -> Float[np.ndarray, "..."]:
    """Root mean square deviation of each channel; where it does not vary, a thousandth of its size."""
    rms = lambda a: np.sqrt(np.mean(a * a, axis=_positions(site, a.ndim)))
    return np.maximum(rms(deviation), 1e-3 * rms(mean)) + np.float32(1e-12)


def _fill(mean: PyTree, scale: PyTree, point: PyTree) -> PyTree:
    """`u * mean + v` of every site; a point holds u and v / scale along its first axis."""
    return {site: point[site][0] * mean[site] + point[site][1] * scale[site] for site in mean}


@functools.partial(jax.jit, static_argnames=("unet", "joins"))
def _slopes(
    unet: UNetConfig,
    joins: tuple[int, ...],
    schedule: NoiseSchedule,
    params: PyTree,
    stacked: Intervention,
    mean: PyTree,
    scale: PyTree,
    point: PyTree,
    x0: Images,
    t: Int[Array, ""],
    indices: Int[Array, " batch"],
    key: PRNGKey,
) -> PyTree:
    """Gradient of the sum over components of their mean losses; each part of a fill serves one alone."""
    noise = image_noise(key, indices, x0.shape[1:])
    x_t = q_sample(schedule, x0, jnp.full(len(x0), t), noise)

    def loss(point):
        filled = dataclasses.replace(stacked, replacement=_fill(mean, scale, point))
        eps = shared_prefix.forward(unet, joins, schedule, params, filled, x_t, t)[1]
        return jnp.sum((eps - noise) ** 2) / noise.size

    return jax.grad(loss)(point)


def _descend(unet, params, schedule, stacked, mean, scale, point, images, t, key, steps, batch) -> PyTree:
    """`steps` of Adam from `point`, over the images in turn, each time with new noise."""
    wave = shared_prefix.plan_passes(unet, stacked, sum(map(len, stacked.gate.values())))
    ordered = dataclasses.replace(
        stacked, gate={site: gate[wave.order[0]] for site, gate in stacked.gate.items()}, replacement=None
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    state = optimizer.init(point)
    advance = jax.jit(optimizer.update)
    for step in range(steps):
        index = (step * batch + np.arange(batch)) % len(images)
        fresh = jax.random.fold_in(keys.stream(key, "optimal"), step)
        network = unet, wave.joins, schedule, params, ordered
        slope = _slopes(*network, mean, scale, point, images[index], t, index, fresh)
        update, state = advance(slope, state)
        point = optax.apply_updates(point, update)
    return jax.tree.map(np.asarray, point)


def _best(engine, stacked, chosen, mean, scale, points, images, t, key) -> PyTree:
    """For every component the point with the least mean loss, the first of equals."""
    index, losses = np.arange(len(images)), []
    for point in points:
        filled = dataclasses.replace(stacked, replacement=_fill(mean, scale, point))
        losses.append(engine.measure(filled, images, index, t, key).loss.mean(axis=1, dtype=np.float64))
    best = jax.tree.map(np.copy, points[0])
    for component, which in zip(chosen, np.argmin(losses, axis=0)):
        units = slice(*component.index)
        best[component.site][:, units] = points[which][component.site][:, units]
    return best
