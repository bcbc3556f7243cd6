"""Losses under any stack of interventions, block by block: small sweeps in memory, pieces of larger ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Int

from mechdiff.core.batches import batches, filled
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import needs_replacements
from mechdiff.interventions.record import Intervention, stack_size
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests, pieces
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.passes import SweepLosses
from mechdiff.sweeps.execution.provenance import result_key, store
from mechdiff.sweeps.replacements import ReplacementSource, as_source

ROWS, IMAGES = "intervention", ("t", "image")  # dimensions


def block_losses(
    engine: Engine,
    eval_set: EvalSet,
    t_index: int,
    image_rows: Int[np.ndarray, " block"],
    stacked: Intervention,
    source: ReplacementSource | None,
    field: str,
) -> SweepLosses:
    """One block of images at one timestep; the mean over the draws of the replacements, if there are several.

    Args:
      image_rows: of the images at this timestep.
      source: of what replaces `field` of the interventions; None: they keep it.
    """
    batch = eval_set.batch(t_index, image_rows)
    values = [getattr(stacked, field)]
    if source is not None:
        values = (source.at(t_index, image_rows, draw) for draw in range(source.draws))
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
    folder: Path | None = None,
) -> SweepLosses:
    """A small sweep of any stack of interventions, in memory; the axes of all losses end in `(timesteps,
    images)`.

    Args:
      ablation, replacements: as in `ablation_sweep`; with None the replacements of `stacked` stay.
      block: images at once; a short last block is padded, so that all share one program.
      field: of the intervention, that replacements go into: `replacement` or `pattern_replacement`.
      folder: losses are kept here too, so that an interrupted run can go on; None: nothing is kept on disk.
    Raises:
      ConfigError: an ablation without replacements.
    """
    source = None if replacements is None else as_source(replacements)
    if field == "replacement" and ablation != "zero" and source is None:
        raise ConfigError(needs_replacements(ablation))
    engine, block = Engine(denoiser), min(block, eval_set.count)

    def compute(t_index: int, image_rows: Int[np.ndarray, " block"]) -> dict[str, np.ndarray]:
        return block_losses(engine, eval_set, t_index, image_rows, stacked, source, field)._asdict()

    path = None
    if folder is not None:
        values = None if source is None else source.digest()
        decisive = {"stacked": digests.digest_arrays(stacked), "field": field, "replacements": values}
        path = store(folder, result_key(denoiser, eval_set, **decisive, block=block))
    losses = {"clean_loss": IMAGES, "change": (ROWS, *IMAGES), "loss": (ROWS, *IMAGES)}
    sizes = {ROWS: stack_size(stacked), "t": len(eval_set.timesteps), "image": eval_set.count}
    empty, title = pieces.unfilled(losses, sizes), f"sweeping {denoiser.name}"
    return SweepLosses(**in_blocks(empty, compute, block, path, title))


def in_blocks(
    empty: xr.Dataset,
    compute: Callable[[int, Int[np.ndarray, " block"]], dict[str, np.ndarray]],
    block: int,
    path: Path | None,
    title: str,
) -> dict[str, np.ndarray]:
    """Numbers of all images at all timesteps, block by block; see `pieces.filled`.

    Args:
      empty: of `pieces.unfilled`; the last dimensions of all variables are `t, image`.
      compute: of a timestep's index and the rows of a block's images, the variables, `(..., block)`.
      block: images at once.
    """

    def values(piece: pieces.Piece) -> dict[str, np.ndarray]:
        images = piece["image"]
        computed = compute(piece["t"].start, filled(images, block))
        return {name: numbers[..., None, : images.stop - images.start] for name, numbers in computed.items()}

    todo = [
        {"t": slice(t_index, t_index + 1), "image": batch.span}
        for t_index in range(empty.sizes["t"])
        for batch in batches(empty.sizes["image"], block)
    ]
    return pieces.filled(empty, todo, values, path, title)
