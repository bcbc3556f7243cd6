"""Losses under any stack of interventions, block by block: small sweeps in memory, pieces of larger ones."""

import dataclasses

import numpy as np
from jaxtyping import Int

from mechdiff.core.batches import batches
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import needs_replacements
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.passes import SweepLosses
from mechdiff.sweeps.replacements import ReplacementSource, as_source


def block_losses(
    engine: Engine,
    eval_set: EvalSet,
    t_index: int,
    places: Int[np.ndarray, " block"],
    stacked: Intervention,
    source: ReplacementSource | None,
    field: str,
) -> SweepLosses:
    """One block of images at one timestep; the mean over the draws of the replacements, if there are several.

    Args:
      places: of the images among those of this timestep.
      source: of what replaces `field` of the interventions; None: they keep it.
    """
    batch = eval_set.batch(t_index, places)
    values = [getattr(stacked, field)]
    if source is not None:
        values = (source.at(t_index, places, draw) for draw in range(source.draws))
    losses = [engine.measure(dataclasses.replace(stacked, **{field: value}), batch) for value in values]
    return SweepLosses(*(np.mean(draws, axis=0, dtype=draws[0].dtype) for draws in zip(*losses, strict=True)))


def sweep_in_memory(
    denoiser: Examinable,
    eval_set: EvalSet,
    stacked: Intervention,
    *,
    ablation: str = "zero",
    replacements: PyTree = None,
    block: int = 16,
    field: str = "replacement",
) -> SweepLosses:
    """A small sweep of any stack of interventions, in memory; the axes of all losses end in `(timesteps,
    images)`.

    Args:
      ablation, replacements: as in `ablation_sweep`; with None the replacements of `stacked` stay.
      block: images at once; a short last block is padded, so that all share one program.
      field: of the intervention, that replacements go into: `replacement` or `pattern_replacement`.
    Raises:
      ConfigError: an ablation without replacements.
    """
    source = None if replacements is None else as_source(replacements)
    if field == "replacement" and ablation != "zero" and source is None:
        raise ConfigError(needs_replacements(ablation))
    engine = Engine(denoiser)
    per_timestep = []
    for t_index in range(len(eval_set.timesteps)):
        blocks = []
        for batch in batches(eval_set.count, min(block, eval_set.count)):
            losses = block_losses(engine, eval_set, t_index, batch.indices, stacked, source, field)
            blocks.append([values[..., : batch.count] for values in losses])
        per_timestep.append([np.concatenate(values, axis=-1) for values in zip(*blocks, strict=True)])
    return SweepLosses(*(np.stack(values, axis=-2) for values in zip(*per_timestep, strict=True)))
