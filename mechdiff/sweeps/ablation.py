"""Ablation sweeps: components x ablations x timesteps x images, one loss each, under common random numbers.

The clean and the ablated arm share image, noise and timestep. Results are written to disk piece by piece, so
that a sweep can be killed, resumed, and run by several processes at once.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr

from mechdiff.core import devices
from mechdiff.core.batches import batches, filled
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import leave_one_out, needs_replacements
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable, chosen_components
from mechdiff.storage import labelled, work_sharing
from mechdiff.sweeps import precision
from mechdiff.sweeps.coords import component_coords
from mechdiff.sweeps.execution import memory
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.provenance import component_keys, provenance, result_key, store
from mechdiff.sweeps.in_memory import block_losses
from mechdiff.sweeps.replacements import ReplacementSource, as_source


def ablation_sweep(
    denoiser: Examinable,
    eval_set: EvalSet,
    folder: Path,
    *,
    config: SweepConfig | None = None,
    replacements: PyTree = None,
    chosen: Sequence[Component] | None = None,
    facts: dict | None = None,
) -> xr.Dataset:
    """Ablates one component at a time and measures the single-step denoising loss, image by image.

    Results are cached in `folder` under a content hash of all inputs (parameters, images, key, components,
    ablations, replacements, `NUMERICS_VERSION`): a killed sweep resumes, and a changed one can't reuse stale
    numbers. Replacements that were computed on another number of devices differ in their last bits: a sweep
    with these begins anew.

    Args:
      eval_set: images, crossed with the timesteps or nested in them.
      folder: where the result is stored, as `KEY.zarr`.
      config: ablations and chunking; its numbers of images and timesteps are not used, since `eval_set`
        decides them.
      replacements: for ablations other than `zero`: ablation -> site -> `(timesteps, *site)`, as returned by
        `activations.activation_means` and `optimal_ablation.optimal_replacements`, or a source of them such
        as `replacements.resample_replacements`.
      chosen: components; all of the network if None.
      facts: JSON-ready, saved in the result's attributes.
    Returns:
      Dataset with `loss` and `change` (mean squared change of the predicted noise), dims `ablation,
      component, t, image`, and `clean_loss`, dims `t, image`; attributes `images_total`, the number of
      different images, and `nested`, whether each timestep has images of its own. If `config.precision` has
      an effect, also `precision_error` (see `precision.largest_error`), dims `ablation, component`, measured
      on a part of the images and timesteps that is run in full precision too.
    Raises:
      ConfigError: an ablation without replacements.

    Example (`Model.sweep` is the short way):
      >>> import tempfile
      >>> from mechdiff.models.toy import toy_denoiser
      >>> eval_set = EvalSet(np.zeros((4, 2, 2, 3), np.float32), [30, 90], jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     swept = ablation_sweep(
      ...         toy_denoiser(), eval_set, Path(folder), config=SweepConfig(ablations=("zero",))
      ...     )
      >>> costs = (swept["loss"] - swept["clean_loss"]).sel(ablation="zero").mean(("t", "image"))
      >>> costs["component"].values[costs.argsort()].tolist()
      ['idle.mlp', 'small.mlp', 'large.mlp']
    """
    config = config or SweepConfig()
    chosen = chosen_components(denoiser, chosen)
    sources = {}
    for ablation in config.ablations:
        if ablation == "zero":
            continue
        if ablation not in (replacements or {}):
            raise ConfigError(needs_replacements(ablation))
        sources[ablation] = as_source(replacements[ablation])
    devices.warn_of(config.precision)
    plan = _Plan(denoiser, eval_set, config, sources, chosen)
    with devices.multiplying(config.precision):
        path = store(folder, plan.key)
        labelled.create(path, plan.empty(facts or {}), plan.chunks())
        plan.run(path)
    if devices.acts(config.precision):
        plan.measure_precision(path)
    return labelled.read(path)


class _Piece(NamedTuple):
    """The unit of computing and writing: indices of an ablation and a timestep, and a block of images."""

    ablation: int
    t_index: int
    images: slice


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One sweep: its inputs, its pieces, and how they are computed and written."""

    denoiser: Examinable
    eval_set: EvalSet
    config: SweepConfig
    replacements: dict[str, ReplacementSource]
    chosen: tuple[Component, ...]

    @functools.cached_property
    def key(self) -> str:
        """Digest of everything that decides the numbers."""
        return result_key(
            self.denoiser,
            self.eval_set,
            replacements={name: source.digest() for name, source in self.replacements.items()},
            ablations=self.config.ablations,
            components=component_keys(self.denoiser, self.chosen),
        )

    @property
    def block(self) -> int:
        """Images in one piece."""
        return min(self.config.image_block, self.eval_set.count)

    def empty(self, facts: dict) -> xr.Dataset:
        """The labeled result before the first piece."""
        eval_set = self.eval_set
        shape = (len(self.config.ablations), len(self.chosen), len(eval_set.timesteps), eval_set.count)
        dims = ("ablation", "component", "t", "image")
        memory.require_room(f"losses and changes ({', '.join(dims)})", shape, shape)
        full = np.full(shape, np.nan, np.float32)
        return xr.Dataset(
            {
                "loss": (dims, full),
                "change": (dims, full),
                "clean_loss": (("t", "image"), full[0, 0]),
                **({"precision_error": (dims[:2], full[:, :, 0, 0])} if self.reduced else {}),
            },
            coords={
                "ablation": list(self.config.ablations),
                **component_coords(self.denoiser, self.chosen, eval_set.timesteps, eval_set.count),
            },
            attrs={
                **provenance(self.denoiser),
                "key": self.key,
                "images_total": eval_set.images_total,
                "nested": eval_set.nested,
                **(precision.facts(self.config.precision, self.checked) if self.reduced else {}),
                **facts,
            },
        )

    def chunks(self) -> dict[str, tuple[int, ...]]:
        piece = (1, len(self.chosen), 1, self.block)
        rows = {"precision_error": (1, len(self.chosen))} if self.reduced else {}
        return {"loss": piece, "change": piece, "clean_loss": (1, self.block), **rows}

    @property
    def reduced(self) -> bool:
        """Whether products are less exact than float32, so that their error is measured."""
        return devices.acts(self.config.precision)

    @property
    def checked(self) -> precision.Subset:
        """The images and timesteps that are run in full precision too."""
        return precision.subset(len(self.eval_set.timesteps), self.block)

    def measure_precision(self, path: Path) -> None:
        """Runs a part of the sweep in float32, under the same random numbers, and saves the difference."""
        denoiser, checked = self.denoiser, self.checked
        image_rows = np.arange(checked.images)
        stacked = leave_one_out(denoiser.identity, self.chosen)[1]
        for row, ablation in enumerate(self.config.ablations):
            if labelled.written(path, "precision_error", (row, 0)):
                continue
            source = self.replacements.get(ablation)
            with jax.default_matmul_precision("float32"):
                engine = Engine(denoiser, self.config.chunk)
                exact = [
                    block_losses(engine, self.eval_set, t_index, image_rows, stacked, source, "replacement")
                    for t_index in checked.t_indices
                ]
            errors = precision.loss_error(path, checked, exact, (row,))
            where = (slice(row, row + 1), slice(None))
            labelled.put(path, {"precision_error": where}, {"precision_error": errors[None]})

    def run(self, path: Path) -> None:
        """Computes the pieces that are missing, with other processes if they work on the same store."""
        denoiser, count = self.denoiser, self.eval_set.count
        engine = Engine(denoiser, self.config.chunk)
        stacked = leave_one_out(denoiser.identity, self.chosen)[1]
        pieces = [
            _Piece(ablation, t_index, batch.span)
            for ablation in range(len(self.config.ablations))
            for t_index in range(len(self.eval_set.timesteps))
            for batch in batches(count, self.block)
        ]

        def done(piece: _Piece) -> bool:  # every image: the store may hold pieces of another size
            return labelled.written(path, "loss", (piece.ablation, slice(None), piece.t_index, piece.images))

        def compute(piece: _Piece) -> None:
            self._compute(engine, stacked, path, piece)

        work_sharing.run_missing(path, pieces, done, compute, f"sweeping {denoiser.name}")

    def _compute(self, engine: Engine, stacked: Intervention, path: Path, piece: _Piece) -> None:
        image_rows = filled(piece.images, self.block)
        count = piece.images.stop - piece.images.start
        source = self.replacements.get(self.config.ablations[piece.ablation])
        t_index = piece.t_index
        losses = block_losses(engine, self.eval_set, t_index, image_rows, stacked, source, "replacement")
        at_t = slice(t_index, t_index + 1)
        where = (slice(piece.ablation, piece.ablation + 1), slice(None), at_t, piece.images)
        region = {"loss": where, "change": where, "clean_loss": (at_t, piece.images)}
        # Passes of ablations differ in the last bits of the clean loss, and pieces come in any order: one of
        # them decides it, so that a run repeats bit for bit.
        clean = {"clean_loss": losses.clean_loss[None, :count]} if piece.ablation == 0 else {}
        values = clean | {
            "change": losses.change[None, :, None, :count],
            "loss": losses.loss[None, :, None, :count],
        }
        labelled.put(path, region, values)
