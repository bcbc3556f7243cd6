"""An ablation sweep that stops when every confidence sequence is decided (anytime-valid).

Every component has a confidence sequence of its pooled relative loss increase. It is decided once the
interval lies on one side of zero or is narrower than a stated width, and is then no longer run. Looking
after every block of images costs no coverage: the sequence holds at all sizes at once. The images of a
component are the first n of one list, so its interval does not depend on the other components.
`stopping` says what is certain then.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff.core import devices, ranges
from mechdiff.core.batches import Batch, batches
from mechdiff.core.config import Precision
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import require_finite
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable, chosen_components
from mechdiff.storage import labelled, run_log
from mechdiff.sweeps import precision
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.provenance import component_keys, provenance, result_key, store
from mechdiff.sweeps.stopping import MIN_IMAGES, SequentialResult, StoppingRule, interim_result


def sequential_sweep(
    denoiser: Examinable,
    eval_set: EvalSet,
    rule: StoppingRule,
    folder: Path,
    *,
    chosen: Sequence[Component] | None = None,
    block: int = 16,
    rows: int = 0,
    precision: Precision = "float32",
) -> SequentialResult:
    """Zeroes one component at a time until the relative loss increase of each is certain.

    Resumable: what was computed is in `folder`, and a run that is started again takes it from there.

    Args:
      eval_set: as many images as may be spent, in [-1, 1], in random order; image i has the noise of index i.
        Nested in the timesteps (`process.images_at`) they say more in as many runs, and fewer are needed.
      rule: when a component is decided.
      folder: where results are kept.
      chosen: components; all of the network if None.
      block: images between two looks, at least 1.
      rows: interventions x images in one program; 0: chosen by memory.
      precision: of matrix products, see `core.devices`. The error of a reduced one is measured on a part of
        the first images, and no sign is decided within it.

    Raises:
      ConfigError: fewer than 32 images, or a block that is no whole number above 0.
    """
    check_count(eval_set.count)
    block = ranges.whole("block", block, 1, meaning="images between two looks")
    chosen = chosen_components(denoiser, chosen)
    devices.warn_of(precision)
    with devices.multiplying(precision):
        return _Run(denoiser, eval_set, chosen, rule, block, rows, precision).go(folder)


def check_count(images: int) -> None:
    """Raises ConfigError if there are too few images for a sequential sweep."""
    if images < MIN_IMAGES:
        raise ConfigError(f"{images} images are too few for a first look; give {MIN_IMAGES} at least")


def note_on_people(people: Int[np.ndarray, "..."]) -> str:
    """That intervals are too narrow where several images show one person, since a sequential sweep takes
    images as independent; empty where none do.

    Args:
      people: number of the person in each image.

    Example:
      >>> note_on_people(np.array([0, 1, 2]))
      ''
      >>> note_on_people(np.array([0, 1, 1]))
      '3 images of 2 people are taken as independent; intervals are too narrow'
    """
    different = len(np.unique(people))
    if different == people.size:
        return ""
    return f"{people.size} images of {different} people are taken as independent; intervals are too narrow"


@dataclasses.dataclass(frozen=True)
class _Run:
    denoiser: Examinable
    eval_set: EvalSet
    chosen: tuple[Component, ...]
    rule: StoppingRule
    block: int
    rows: int
    precision: Precision

    @functools.cached_property
    def key(self) -> str:
        """Digest of everything that decides the numbers, and which are computed."""
        return result_key(
            self.denoiser,
            self.eval_set,
            components=component_keys(self.denoiser, self.chosen),
            rule=[self.rule.width, self.rule.of_each(len(self.chosen)), self.block],
            **({"precision": self.precision} if self.reduced else {}),
        )

    @property
    def reduced(self) -> bool:
        """Whether products are less exact than float32, and their error is measured."""
        return devices.acts(self.precision)

    @property
    def timesteps(self) -> Int[np.ndarray, " t"]:
        """Timesteps of the eval set."""
        return self.eval_set.timesteps

    @property
    def total(self) -> int:
        """Images at one timestep."""
        return self.eval_set.count

    def go(self, folder: Path) -> SequentialResult:
        path = store(folder, self.key)
        labelled.create(path, self._empty(), self._chunks())
        denoiser = self.denoiser
        engine = Engine(denoiser, self.rows)
        stacked = leave_one_out(denoiser.identity, self.chosen)[1]
        count, total = len(self.chosen), self.total
        names = tuple(component.name for component in self.chosen)
        clean = np.full((len(self.timesteps), total), np.nan)
        loss = np.full((count, *clean.shape), np.nan)
        running, result = np.ones(count, bool), None
        error = np.zeros(count)
        with run_log.progress(total, 0, f"sequential sweep of {denoiser.name}", unit="image") as bar:
            for batch in batches(total, self.block):
                where = batch.span
                if not labelled.written(path, "clean_loss", (0, where.start)):
                    self._compute(path, engine, stacked, running, batch)
                clean[:, where], loss[..., where] = self._kept(path, where)
                bar.update(batch.count)
                if self.reduced and where.start == 0:
                    error = self._precision_error(path, stacked)
                if where.stop < MIN_IMAGES:
                    continue
                result = interim_result(clean, loss, names, self.rule, error)
                left = running & ~result.decided
                if not left.any():
                    break
                # A new set of components is a new program: not before it is worth compiling one.
                running = left if left.sum() <= running.sum() / 2 else running
        return result

    def _precision_error(self, path: Path, stacked: Intervention) -> Float[np.ndarray, " component"]:
        """Error of a part of the first block, which is run in float32 too; saved in the store."""
        checked = precision.subset(len(self.timesteps), self.block)
        if not labelled.written(path, "precision_error", (0,)):
            image_rows = np.arange(checked.images)
            with jax.default_matmul_precision("float32"):
                engine = Engine(self.denoiser, self.rows)
                eval_batches = [self.eval_set.batch(t_index, image_rows) for t_index in checked.t_indices]
                exact = [engine.measure(stacked, batch) for batch in eval_batches]
            errors = precision.loss_error(path, checked, exact)
            labelled.put(path, {"precision_error": (slice(None),)}, {"precision_error": errors})
        return labelled.region(path, {"precision_error": (slice(None),)})["precision_error"]

    def _compute(
        self, path: Path, engine: Engine, stacked: Intervention, running: np.ndarray, batch: Batch
    ) -> None:
        undecided = dataclasses.replace(
            stacked, gate={site: gate[running] for site, gate in stacked.gate.items()}
        )
        loss = np.full((len(running), len(self.timesteps), batch.count), np.nan, np.float32)
        clean = np.empty((len(self.timesteps), batch.count), np.float32)
        for t_index in range(len(self.timesteps)):
            losses = engine.measure(undecided, self.eval_set.batch(t_index, batch.indices))
            require_finite(losses.loss, self.denoiser.name, "ablated components")
            loss[running, t_index] = losses.loss[:, : batch.count]
            clean[t_index] = losses.clean_loss[: batch.count]
        region = {"loss": (slice(None), slice(None), batch.span), "clean_loss": (slice(None), batch.span)}
        labelled.put(path, region, {"loss": loss, "clean_loss": clean})

    def _kept(self, path: Path, where: slice) -> tuple[np.ndarray, np.ndarray]:
        kept = labelled.region(path, {"clean_loss": (slice(None), where), "loss": (..., where)})
        return kept["clean_loss"], kept["loss"]

    def _empty(self) -> xr.Dataset:
        shape = (len(self.chosen), len(self.timesteps), self.total)
        full = np.full(shape, np.nan, np.float32)
        errors = {"precision_error": ("component", full[:, 0, 0])} if self.reduced else {}
        return xr.Dataset(
            {"loss": (("component", "t", "image"), full), "clean_loss": (("t", "image"), full[0]), **errors},
            coords={
                "component": [component.name for component in self.chosen],
                "t": self.timesteps,
                "image": np.arange(self.total),
            },
            attrs={**provenance(self.denoiser), "key": self.key},
        )

    def _chunks(self) -> dict[str, tuple[int, ...]]:
        steps = len(self.timesteps)
        errors = {"precision_error": (len(self.chosen),)} if self.reduced else {}
        return {"loss": (len(self.chosen), steps, self.block), "clean_loss": (steps, self.block), **errors}
