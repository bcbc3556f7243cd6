"""Replacements of `optimal` ablation: the constants that hurt least (Li & Janson 2024, arXiv 2409.09951).

Zero and mean ablation put wrong information in a component's place, and part of the loss increase is due to
that; the constant that minimizes the loss of the ablated network puts the least. Ours is, per timestep and
component,
  replacement = u * mean + v,
with `mean` the map of `mean` ablation, and one u and one v per channel (per channel of a head), sought
by Adam on reference images. Among them are mean (u 1, v 0) and zero ablation (0, 0), and every constant
that is alike at all positions. Each component keeps the best of mean, zero and what Adam found, so that
neither of the two raises the loss less on the reference images; on other images the loss is a fair
held-out number.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from mechdiff.core import keys, ranges
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable, chosen_components
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
      eval_set: reference images in [-1, 1]; take others than those that are scored. Its key is that of the
        noise, fresh in every step; the choice between candidates is made under one draw per image, that of
        `activation_means`.
      chosen: components that don't overlap; all of the network if None.
      steps: of Adam, at least 1, each on the next `batch` images.
      batch: images in one program, at least 1, which keeps what the gradient needs of (components + 1) x
        batch forward passes.
    Returns:
      site -> `(timesteps, *site)`; the mean where nothing was chosen.
    Raises:
      ConfigError: components that overlap, no steps, or no images in a batch.
    """
    steps, batch = ranges.whole("steps", steps, 1), ranges.whole("batch", batch, 1)
    chosen = chosen_components(denoiser, chosen)
    _check_apart(chosen)
    stacked = leave_one_out(denoiser.identity, chosen)[1]
    means, deviations = activation_moments(denoiser, eval_set)
    engine, program = Engine(denoiser), _gradient_of(denoiser, stacked)
    best_by_timestep = []
    for t_index in range(len(eval_set.timesteps)):
        mean, deviation = replacements_at(means, t_index), replacements_at(deviations, t_index)
        scale = {site: _scale(denoiser.unit_axis(site), mean[site], deviation[site]) for site in mean}
        candidates = _Candidates(mean, scale)
        start = {site: np.stack([np.ones_like(s), np.zeros_like(s)]) for site, s in scale.items()}
        zero = jax.tree.map(np.zeros_like, start)
        batches = _batches(eval_set, t_index, steps, batch)
        descended = _descend(functools.partial(program, candidates), start, batches, steps)
        best = _best(engine, stacked, chosen, candidates, (start, zero, descended), eval_set.batch(t_index))
        best_by_timestep.append(candidates.replacement(best))
    return {site: np.stack([np.asarray(best[site]) for best in best_by_timestep]) for site in means}


def _check_apart(chosen: Sequence[Component]) -> None:
    taken: dict[tuple[str, int], str] = {}
    for component in chosen:
        for unit in range(*component.index):
            owner = taken.setdefault((component.site, unit), component.name)
            if owner != component.name:
                raise ConfigError(
                    f"{component.name!r} and {owner!r} overlap; optimal ablation needs components that don't"
                )


def _scale(unit_axis: int, mean: np.ndarray, deviation: np.ndarray) -> Float[np.ndarray, "..."]:
    """Root mean square deviation of each channel of each unit, other axes kept as 1; where it does not vary,
    a thousandth of its size."""
    positions = tuple(axis for axis in range(mean.ndim - 1) if axis != mean.ndim + unit_axis)

    def rms(a):
        return np.sqrt(np.mean(a * a, axis=positions, keepdims=True))

    return np.maximum(rms(deviation), 1e-3 * rms(mean)) + np.float32(1e-12)


class _Candidates(NamedTuple):
    """The replacements `u * mean + v` that are sought among, of every site at one timestep."""

    mean: PyTree
    scale: PyTree  # unit of v

    def replacement(self, point: PyTree) -> PyTree:
        """The replacement of a point, which holds u and v / scale along its first axis."""
        return {
            site: point[site][0] * self.mean[site] + point[site][1] * self.scale[site] for site in self.mean
        }


@functools.partial(jax.jit, static_argnames=("joins",))
def _slopes(
    denoiser: Examinable,
    joins: tuple[int, ...],
    stacked: Intervention,
    candidates: _Candidates,
    point: PyTree,
    batch: EvalBatch,
) -> PyTree:
    """Gradient of the sum over components of their mean losses; each part of a replacement serves one."""
    x_t, _, noise = batch.noised(denoiser.schedule)

    def loss(point):
        replaced = dataclasses.replace(stacked, replacement=candidates.replacement(point))
        eps = shared_prefix.forward(denoiser, joins, replaced, x_t, batch.t, batch.condition)[1]
        return jnp.sum((eps - noise) ** 2) / noise.size

    return jax.grad(loss)(point)


def _gradient_of(denoiser: Examinable, stacked: Intervention) -> Callable[..., PyTree]:
    """`_slopes` of all interventions in one pass, as a function of candidates, point and batch."""
    plan = shared_prefix.plan_passes(denoiser.network, stacked, sum(map(len, stacked.gate.values())))
    ordered = dataclasses.replace(
        stacked, gate={site: gate[plan.order[0]] for site, gate in stacked.gate.items()}, replacement=None
    )
    return functools.partial(_slopes, denoiser, plan.joins, ordered)


def _batches(eval_set: EvalSet, t_index: int, steps: int, size: int) -> Iterator[EvalBatch]:
    """The images in turn, each time with new noise."""
    key = keys.stream(eval_set.key, "optimal")
    for step in range(steps):
        image_rows = (step * size + np.arange(size)) % eval_set.count
        yield eval_set.batch(t_index, image_rows)._replace(key=jax.random.fold_in(key, step))


def _descend(
    gradient: Callable[..., PyTree], point: PyTree, batches: Iterator[EvalBatch], steps: int
) -> PyTree:
    """`steps` of Adam from `point`, one on each batch."""
    state = _adam(steps).init(point)
    for batch in batches:
        update, state = _update(steps, gradient(point, batch), state)
        point = optax.apply_updates(point, update)
    return jax.tree.map(np.asarray, point)


def _adam(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(RATE, steps))


@functools.partial(jax.jit, static_argnames=("steps",))
def _update(steps: int, gradient: PyTree, state: optax.OptState) -> tuple[PyTree, optax.OptState]:
    """One step of Adam; compiled once, not at every timestep."""
    return _adam(steps).update(gradient, state)


def _best(
    engine: Engine,
    stacked: Intervention,
    chosen: Sequence[Component],
    candidates: _Candidates,
    points: Sequence[PyTree],
    batch: EvalBatch,
) -> PyTree:
    """For every component the point with the least mean loss, the first one of equal ones; one from which
    Adam ran away to no finite loss is none."""
    losses = []
    for point in points:
        replaced = dataclasses.replace(stacked, replacement=candidates.replacement(point))
        losses.append(engine.measure(replaced, batch).loss.mean(axis=1, dtype=np.float64))
    finite = np.where(np.isfinite(losses), losses, np.inf)  # NaN would be the least of all to NumPy
    best = jax.tree.map(np.copy, points[0])
    for component, which in zip(chosen, np.argmin(finite, axis=0), strict=True):
        target, source = best[component.site], points[which][component.site]
        axis = engine.denoiser.unit_axis(component.site)
        gates = np.arange(*component.index)
        np.moveaxis(target, axis, 0)[gates] = np.moveaxis(source, axis, 0)[gates]
    return best
