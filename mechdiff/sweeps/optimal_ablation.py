"""Replacements of `optimal` ablation: the constants that hurt least (Li & Janson 2024, arXiv 2409.09951).

Zero and mean ablation put wrong information in a component's place, and part of the loss increase is due to
that; the constant that minimizes the loss of the ablated network puts the least. Ours is, per timestep and
component,
  replacement = u * mean + v,
with `mean` the map of `mean` ablation, and one u and one v per channel (per channel of a head), sought
by Adam on reference images. The family holds mean (u 1, v 0) and zero ablation (0, 0), and every constant
that is alike at all positions. Each component keeps the best of mean, zero and what Adam found, so that
neither of the two raises the loss less on the reference images; on other images the loss is a fair
held-out number.
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
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.activations import activation_moments, replacements_at
from mechdiff.sweeps.execution import shared_prefix
from mechdiff.sweeps.execution.engine import Engine

RATE = 0.05  # of Adam at first, falling to 0 by a cosine; v is in units of the channel's deviation


def optimal_replacements(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    chosen: Sequence[Component] | None = None,
    steps: int = 32,
    batch: int = 8,
) -> dict[str, np.ndarray]:
    """Replacements of `optimal` ablation for leaving out the `chosen` components one at a time.

    All components are optimized at once: they share one array of replacements; each has its own part.

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
    chosen = tuple(chosen or denoiser.components())
    _check_apart(chosen)
    stacked = leave_one_out(denoiser.identity, chosen)[1]
    means, deviations = activation_moments(denoiser, eval_set)
    engine = Engine(denoiser)
    best_by_timestep = []
    for t_index, t in enumerate(eval_set.timesteps):
        mean, deviation = replacements_at(means, t_index), replacements_at(deviations, t_index)
        scale = {site: _scale(denoiser.unit_axis(site), mean[site], deviation[site]) for site in mean}
        start = {site: np.stack([np.ones_like(s), np.zeros_like(s)]) for site, s in scale.items()}
        zero = jax.tree.map(np.zeros_like, start)
        descended = _descend(denoiser, stacked, mean, scale, start, eval_set, int(t), steps, batch)
        points = start, zero, descended
        best = _best(engine, stacked, chosen, mean, scale, points, eval_set.batch(t_index))
        best_by_timestep.append(_replacement(mean, scale, best))
    return {site: np.stack([np.asarray(best[site]) for best in best_by_timestep]) for site in means}


def _check_apart(chosen: Sequence[Component]) -> None:
    taken: dict[tuple[str, int], str] = {}
    for component in chosen:
        for unit in range(*component.index):
            other = taken.setdefault((component.site, unit), component.name)
            if other != component.name:
                raise ConfigError(
                    f"{component.name!r} and {other!r} overlap; optimal ablation needs components that don't"
                )


def _scale(unit_axis: int, mean: np.ndarray, deviation: np.ndarray) -> Float[np.ndarray, "..."]:
    """Root mean square deviation of each channel of each unit, other axes kept as 1; where it does not vary,
    a thousandth of its size."""
    positions = tuple(axis for axis in range(mean.ndim - 1) if axis != mean.ndim + unit_axis)
    rms = lambda a: np.sqrt(np.mean(a * a, axis=positions, keepdims=True))
    return np.maximum(rms(deviation), 1e-3 * rms(mean)) + np.float32(1e-12)


def _replacement(mean: PyTree, scale: PyTree, point: PyTree) -> PyTree:
    """`u * mean + v` of every site; a point holds u and v / scale along its first axis."""
    return {site: point[site][0] * mean[site] + point[site][1] * scale[site] for site in mean}


@functools.partial(jax.jit, static_argnames=("joins",))
def _slopes(
    denoiser: Examinable,
    joins: tuple[int, ...],
    stacked: Intervention,
    mean: PyTree,
    scale: PyTree,
    point: PyTree,
    x0: Images,
    t: Int[Array, ""],
    indices: Int[Array, " batch"],
    key: PRNGKey,
    condition: PyTree,
) -> PyTree:
    """Gradient of the sum over components of their mean losses; each part of a replacement serves one."""
    noise = image_noise(key, indices, x0.shape[1:])
    x_t = q_sample(denoiser.schedule, x0, jnp.full(len(x0), t), noise)

    def loss(point):
        replaced = dataclasses.replace(stacked, replacement=_replacement(mean, scale, point))
        eps = shared_prefix.forward(denoiser, joins, replaced, x_t, t, condition)[1]
        return jnp.sum((eps - noise) ** 2) / noise.size

    return jax.grad(loss)(point)


def _descend(denoiser, stacked, mean, scale, point, eval_set, t, steps, batch) -> PyTree:
    """`steps` of Adam from `point`, over the images in turn, each time with new noise."""
    plan = shared_prefix.plan_passes(denoiser.network, stacked, sum(map(len, stacked.gate.values())))
    ordered = dataclasses.replace(
        stacked, gate={site: gate[plan.order[0]] for site, gate in stacked.gate.items()}, replacement=None
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    state = optimizer.init(point)
    advance = jax.jit(optimizer.update)
    for step in range(steps):
        index = (step * batch + np.arange(batch)) % eval_set.count
        fresh = jax.random.fold_in(keys.stream(eval_set.key, "optimal"), step)
        condition = jax.tree.map(lambda leaf, index=index: leaf[index], eval_set.condition)
        program = denoiser, plan.joins, ordered, mean, scale, point
        slope = _slopes(*program, eval_set.images[index], t, index, fresh, condition)
        update, state = advance(slope, state)
        point = optax.apply_updates(point, update)
    return jax.tree.map(np.asarray, point)


def _best(engine, stacked, chosen, mean, scale, points, batch) -> PyTree:
    """For every component the point with the least mean loss, the first of equals."""
    losses = []
    for point in points:
        replaced = dataclasses.replace(stacked, replacement=_replacement(mean, scale, point))
        loss = engine.measure(replaced, batch).loss
        losses.append(loss.mean(axis=1, dtype=np.float64))
    best = jax.tree.map(np.copy, points[0])
    for component, which in zip(chosen, np.argmin(losses, axis=0), strict=True):
        target, source = best[component.site], points[which][component.site]
        axis = engine.denoiser.unit_axis(component.site)
        units = np.arange(*component.index)
        np.moveaxis(target, axis, 0)[units] = np.moveaxis(source, axis, 0)[units]
    return best
