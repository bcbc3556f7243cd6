"""Many interventions in one pass through the network, in which nothing before a site is computed twice.

The batch grows on its way through the stages: the clean rows go first, and the rows of an intervention
join, as copies of the clean ones, at the first stage that it changes; what the decoder computes of a skip
that rows have in common is computed once, too (`shared_skips`). A leave-one-out sweep is one program of about
half the operations of one pass per component, compiled once whatever the number of sweeps. Where
memory holds only a part of the rows at a time, they take turns in the same program (`plan_passes`).
In a function with named values, sites take the place of stages, see `models.traced.joining`.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mechdiff.core.config import UNetConfig
from mechdiff.core.types import AnyArray, Images, PyTree
from mechdiff.diffusion.process import to_eps
from mechdiff.interventions.components import row_rank, site_stage, site_type
from mechdiff.interventions.record import Intervention, stack_size
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.models.stage_modules import at_timesteps, enter
from mechdiff.models.stages import stages
from mechdiff.models.traced.denoiser import TracedDenoiser, TracedNetwork
from mechdiff.models.traced.joining import predict_each
from mechdiff.models.traced.pass_edits import site_depths
from mechdiff.sweeps.execution import row_counts
from mechdiff.sweeps.execution.joining_rows import extended, rows_at_stage, run_rows


class PassPlan(NamedTuple):
    """How a stack of interventions is cut into passes of one shape.

    Attributes:
      order: the interventions of each pass; rows left over hold repeats.
      joins: interventions that join at each stage, or at each site of a traced function, the same in every
        pass.
      changed_skips: for each stage, of the interventions that joined after the skip that it takes was made,
        how many change it: the most of all passes. Empty for traced functions.
    """

    order: Int[np.ndarray, "passes width"]
    joins: tuple[int, ...]
    changed_skips: tuple[int, ...] = ()


def joining_stages(config: UNetConfig, stacked: Intervention) -> Int[np.ndarray, " interventions"]:
    """The first stage that each intervention of a stack changes, whatever its window; the last if none does.

    Args:
      stacked: gates `(interventions, units)`; temperatures, patterns and directions stacked too, or shared.
    """
    depth_of = {stage.name: i for i, stage in enumerate(stages(config))}
    count = stack_size(stacked)
    first = np.full(count, len(depth_of) - 1)
    for site, changed in _changes(stacked, count, row_rank):
        first = np.where(changed, np.minimum(first, depth_of[site_stage(site)]), first)
    return first


def joining_sites(network: TracedNetwork, stacked: Intervention) -> Int[np.ndarray, " interventions"]:
    """As `joining_stages`: the first site in the order of execution."""
    depth_of = site_depths(network)
    ranks = {name: len(site.shape) - 1 for site in network.sites for name in site.names}
    count = stack_size(stacked)
    first = np.full(count, len(depth_of) - 1)
    for site, changed in _changes(stacked, count, ranks.__getitem__):
        first = np.where(changed, np.minimum(first, depth_of[site]), first)
    return first


def _changes(
    stacked: Intervention, count: int, rank_of: Callable[[str], int]
) -> Iterator[tuple[str, Bool[np.ndarray, "..."]]]:
    """Each site with whether it is changed, by each intervention of a stack or by all alike.

    Args:
      rank_of: site -> axes of one row of its activation; a direction with one more is stacked.
    """
    for leaves in (stacked.gate, stacked.temperature, stacked.pattern):
        for site, leaf in leaves.items():
            yield site, (np.atleast_2d(leaf) != 1).any(axis=1)
    for site, leaf in stacked.add.items():
        of_each = np.ndim(leaf) > rank_of(site)
        yield site, (np.reshape(leaf, (count if of_each else 1, -1)) != 0).any(axis=1)


def plan_passes(
    network: UNetConfig | TracedNetwork,
    stacked: Intervention,
    width: int,
    together: bool = False,
    counts: int = 0,
) -> PassPlan:
    """Passes of at most `width` interventions, in all of which equally many join at every stage.

    Interventions are sorted by the first stage that they change and dealt out to the passes in turn, as cards
    are: those dealt in one round join where the first of them must. With one pass none joins early; with
    several, each by about one part in `width` of the network.

    Args:
      network: of the denoiser: a UNet's configuration, or a traced function's facts.
      together: whether all join at the first stage, whatever they change: one program for all stacks of one
        size.
      counts: largest number of stages of a UNet at which interventions join, see `row_counts`; 0: all stages.
    """
    if isinstance(network, UNetConfig):
        depths, first = len(stages(network)), joining_stages(network, stacked)
    else:
        depths, first = len(site_depths(network)), joining_sites(network, stacked)
    if together:
        first = np.zeros_like(first)
    passes = math.ceil(len(first) / max(width, 1))
    rounds = math.ceil(len(first) / passes)
    dealt = np.arange(rounds * passes).reshape(rounds, passes)
    # Rows left over repeat the last.
    order = np.argsort(first, kind="stable")[np.minimum(dealt, len(first) - 1)].T
    joins = tuple(np.bincount(first[order[0]], minlength=depths).tolist())
    if counts and isinstance(network, UNetConfig):
        joins = row_counts.few_row_counts(joins, row_counts.stage_costs(stages(network)), counts)
    if not isinstance(network, UNetConfig):
        return PassPlan(order, joins)
    return PassPlan(order, joins, _changed_skips(network, stacked, order, joins))


def _changed_skips(
    config: UNetConfig, stacked: Intervention, order: Int[np.ndarray, "passes width"], joins: tuple[int, ...]
) -> tuple[int, ...]:
    """`changed_skips` of a plan."""
    count, joined = stack_size(stacked), np.cumsum(joins)
    changing = {stage.name: np.zeros(count, bool) for stage in stages(config)}
    for site, changed in _changes(stacked, count, row_rank):
        if site_type(site) == "skip":
            changing[site_stage(site)] |= changed
    joined_when_made, counts = [], []
    for stage, so_far in zip(stages(config), joined, strict=True):
        late = order[:, joined_when_made.pop() :] if stage.pop else order[:, :0]
        counts.append(int(changing[stage.name][late].sum(axis=1).max()))
        if stage.push:
            joined_when_made.append(so_far)
    return tuple(counts)


def forward(
    denoiser: Examinable,
    joins: tuple[int, ...],
    stacked: Intervention,
    x_t: Images,
    t: Int[AnyArray, ""],
    condition: PyTree = None,
    changed_skips: tuple[int, ...] = (),
) -> tuple[Images, Float[Array, "interventions batch height width channels"]]:
    """Predicted noise without and with each intervention, as `denoiser.predict` would give it.

    Args:
      joins: of `plan_passes`; static.
      stacked: interventions in the order in which they join. Gates, temperatures, patterns, directions and
        windows stacked; replacements shared, with or without an axis of images.
      x_t: noisy images at timestep `t`, each seen by every intervention.
      condition: what each image is denoised under, leaves `(batch, ...)`.
      changed_skips: of `plan_passes`; static. Empty: every row's skip is computed anew.
    """
    if isinstance(denoiser, TracedDenoiser):
        return predict_each(denoiser, joins, stacked, x_t, jnp.full(len(x_t), t), condition)
    assert isinstance(denoiser, Denoiser)
    config, schedule, params = denoiser.unet, denoiser.schedule, denoiser.params
    batch, count = x_t.shape[0], sum(joins)
    stacked = at_timesteps(stacked, jnp.full(count, t))
    stream, joined = enter(config, params, x_t, jnp.full(batch, t), condition=condition), 0
    of_stages = changed_skips or (None,) * len(joins)
    for stage, joining, changed in zip(stages(config), joins, of_stages, strict=True):
        joined += joining
        at_stage, rows = rows_at_stage(stage, stacked, batch, joined), (1 + joined) * batch
        stream = run_rows(config, stage, params, at_stage, stream, batch, rows, changed)
    rows = (1 + count) * batch
    tiled = extended(x_t, batch, rows)
    eps = to_eps(config.prediction, schedule, tiled, jnp.full(rows, t), extended(stream.h, batch, rows))
    eps = eps.reshape(1 + count, *x_t.shape)
    return eps[0], eps[1:]
