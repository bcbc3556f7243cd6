"""An ablation sweep that stops when every confidence sequence is decided (anytime-valid).

Every component has a confidence sequence of its pooled relative loss increase. It is decided once the
interval lies on one side of zero or is narrower than a stated width; then it is left out. Looking
after every block of images costs no coverage: the sequence holds at all sizes at once. The images of a
component are the first n of one list, so its interval does not depend on what the others are.

What is certain: the sign. The intervals rest on an asymptotic theorem, corrected for few and skewed images
(`stats.skewed_sequence`). Where the loss increase is lognormal over images with log-sd 1, joint
intervals of 95 % held all sizes in four simulated runs of five, and no sign was wrong (the calibration has
the numbers): the fewer images carry a loss increase, the less certain is its *size*. A component that
matters for images of which none has been shown can't be told from one that doesn't matter.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy import special

from mechdiff.core import devices
from mechdiff.core.batches import Batch, batches
from mechdiff.core.config import Precision
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.stats import skewed_sequence
from mechdiff.storage import digests, labelled, run_log
from mechdiff.sweeps import precision
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.shown import provenance, shown_digests

FIRST_LOOK = 32  # images before the first look: the sequence is asymptotic


@dataclasses.dataclass(frozen=True)
class SequentialResult:
    """Relative loss increase of every component, as certain as was asked or as the images allowed.

    Attributes:
      components: names.
      estimate: pooled relative loss increase (%), the mean over timesteps of 100 (L(do) - L0) / L0.
      low, high: its confidence sequence where it stopped; not symmetric, see `stats.skewed_sequence`. The
        sign is certified; the size is less certain the fewer images carry it.
      images: how many each component was scored on.
      decided: whether the interval lies on one side of zero or is narrow enough.
      spent: components x images that were computed.
      fixed: components x images of the smallest fixed design with the same result: one number of images for
        all (nested in timesteps if these were), enough for the component that needs most by an ordinary
        interval of the same level. It is what hindsight would choose: a planner without these data would
        spend more.
      precision_error: largest error of a relative loss increase by reduced precision of products, in points,
        see `precision.largest_error`; 0 in full precision. Intervals are wider by it at both ends.
    """

    components: tuple[str, ...]
    estimate: Float[np.ndarray, " component"]
    low: Float[np.ndarray, " component"]
    high: Float[np.ndarray, " component"]
    images: Int[np.ndarray, " component"]
    decided: Bool[np.ndarray, " component"]
    spent: int
    fixed: int
    precision_error: Float[np.ndarray, " component"]


def effect_and_influence(
    clean: Float[np.ndarray, "t image"], loss: Float[np.ndarray, "*component t image"]
) -> tuple[Float[np.ndarray, " *component"], Float[np.ndarray, "*component image"]]:
    """Pooled relative loss increase (%), and what each image adds to it (delta method for ratios of means).

    The estimate's standard error is that of the mean of the influences, which is 0.
    """
    base = clean.mean(-1, keepdims=True)
    ratio = loss.mean(-1, keepdims=True) / base
    return 100 * (ratio[..., 0].mean(-1) - 1), 100 * ((loss - ratio * clean) / base).mean(-2)


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """When a component is decided.

    Attributes:
      width: in percent of the clean loss, above 0; an interval this narrow is certain enough, wherever it
        lies.
      confidence: coverage of the intervals at any time.
      joint: whether `confidence` is that of all intervals together (Bonferroni), or of each.

    Raises:
      ConfigError: a width that is not positive.

    Example:
      >>> StoppingRule(2.0).of_each(10)
      0.995
    """

    width: float
    confidence: float = 0.95
    joint: bool = True

    def __post_init__(self):
        if self.width <= 0:
            raise ConfigError(f"width={self.width} must be above 0, in percent of the clean loss")

    def of_each(self, intervals: int) -> float:
        """Confidence of each of so many intervals."""
        return 1 - (1 - self.confidence) / (intervals if self.joint else 1)


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
      block: images between two looks.
      rows: interventions x images in one program; 0: chosen by memory.
      precision: of products, see `core.devices`; any that acts here measures its own error on a part of the
        first images, and no sign is decided that it can't carry.

    Raises:
      ConfigError: fewer than 32 images.
    """
    if eval_set.count < FIRST_LOOK:
        raise ConfigError(f"{eval_set.count} images; at least {FIRST_LOOK} are needed before the first look")
    chosen = tuple(chosen or denoiser.components())
    devices.warn_of(precision)
    with devices.multiplying(precision):
        return _Run(denoiser, eval_set, chosen, rule, block, rows, precision).go(folder)


@dataclasses.dataclass(frozen=True)
class _Run:
    denoiser: Examinable
    eval_set: EvalSet
    chosen: tuple[Component, ...]
    rule: StoppingRule
    block: int
    rows: int
    precision: Precision = "float32"

    @property
    def confidence(self) -> float:
        """Of each interval."""
        return self.rule.of_each(len(self.chosen))

    @functools.cached_property
    def digest(self) -> str:
        """Digest of everything that decides the numbers, and which are computed."""
        return digests.digest_json(
            {
                **self.denoiser.digests(),
                **shown_digests(self.eval_set),
                "components": [component.name for component in self.chosen],
                "rule": [self.rule.width, self.confidence, self.block],
                "numerics": NUMERICS_VERSION,
                **({"precision": self.precision} if self.reduced else {}),
            }
        )

    @property
    def reduced(self) -> bool:
        """Whether products are less exact than float32, and their error is measured."""
        return devices.acts(self.precision)

    @property
    def timesteps(self) -> Int[np.ndarray, " t"]:
        """Of the eval set."""
        return self.eval_set.timesteps

    @property
    def total(self) -> int:
        """Images at one timestep."""
        return self.eval_set.count

    def go(self, folder: Path) -> SequentialResult:
        path = Path(folder) / f"{self.digest[:16]}.zarr"
        labelled.create(path, self._empty(), self._chunks())
        denoiser = self.denoiser
        engine = Engine(denoiser, self.rows)
        stacked = leave_one_out(denoiser.identity, self.chosen)[1]
        count, total = len(self.chosen), self.total
        clean = np.full((len(self.timesteps), total), np.nan)
        loss = np.full((count, *clean.shape), np.nan)
        running, result = np.ones(count, bool), None
        error = np.zeros(count)
        with run_log.progress(total, 0, f"certifying {denoiser.name}", unit="image") as bar:
            for batch in batches(total, self.block):
                where = batch.span
                if not labelled.written(path, "clean_loss", (0, where.start)):
                    self._compute(path, engine, stacked, running, batch)
                clean[:, where], loss[..., where] = self._kept(path, where)
                bar.update(batch.count)
                if self.reduced and where.start == 0:
                    error = self._precision_error(path, stacked)
                if where.stop < FIRST_LOOK:
                    continue
                result = self._look(clean, loss, error)
                left = running & ~result.decided
                if not left.any():
                    break
                # A new set of components is a new program: not before it is worth compiling one.
                running = left if left.sum() <= running.sum() / 2 else running
        return result

    def _look(self, clean: np.ndarray, loss: np.ndarray, error: np.ndarray | None = None) -> SequentialResult:
        images = np.isfinite(loss[:, 0]).sum(-1)
        estimate, deviation, low, high = (np.empty(len(images)) for _ in range(4))
        for size in np.unique(images):  # components that were left out together
            rows = images == size
            estimate[rows], influence = effect_and_influence(clean[:, :size], loss[rows][..., :size])
            deviation[rows] = influence.std(-1, ddof=1)
            below, above = skewed_sequence(influence, self.confidence, planned=4 * FIRST_LOOK)
            low[rows], high[rows] = estimate[rows] - below, estimate[rows] + above
        error = np.zeros(len(images)) if error is None else error
        low, high = low - error, high + error
        decided = (low > 0) | (high < 0) | (high - low <= self.rule.width)
        return SequentialResult(
            components=tuple(component.name for component in self.chosen),
            estimate=estimate,
            low=low,
            high=high,
            images=images,
            decided=decided,
            spent=int(images.sum()),
            fixed=len(images) * int(self._fixed_images(estimate, deviation).max()),
            precision_error=error,
        )

    def _precision_error(self, path: Path, stacked: Intervention) -> Float[np.ndarray, " component"]:
        """Of a part of the first block that is run in float32 too; kept in the store."""
        checked = precision.subset(len(self.timesteps), self.block)
        if not labelled.written(path, "precision_error", (0,)):
            places = np.arange(checked.images)
            with jax.default_matmul_precision("float32"):
                engine = Engine(self.denoiser, self.rows)
                shown = [self.eval_set.batch(t_index, places) for t_index in checked.t_indices]
                exact = [engine.measure(stacked, batch) for batch in shown]
            first = slice(checked.images)
            swept = [
                labelled.region(path, {"loss": (slice(None), t_index, first), "clean_loss": (t_index, first)})
                for t_index in checked.t_indices
            ]
            errors = precision.largest_error(
                [(part["loss"], part["clean_loss"]) for part in swept],
                [(losses.loss, losses.clean_loss) for losses in exact],
            )
            labelled.put(path, {"precision_error": (slice(None),)}, {"precision_error": errors})
        return labelled.region(path, {"precision_error": (slice(None),)})["precision_error"]

    def _fixed_images(self, estimate: np.ndarray, deviation: np.ndarray) -> Int[np.ndarray, " component"]:
        """Images with which an ordinary interval of each component is certain, at least `FIRST_LOOK`."""
        z = special.ndtri((1 + self.confidence) / 2)
        reach = np.maximum(np.abs(estimate), self.rule.width / 2)  # half-width that is small enough
        return np.maximum(FIRST_LOOK, np.ceil((z * deviation / reach) ** 2)).astype(int)

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
            attrs={**provenance(self.denoiser), "key": self.digest},
        )

    def _chunks(self) -> dict[str, tuple[int, ...]]:
        steps = len(self.timesteps)
        errors = {"precision_error": (len(self.chosen),)} if self.reduced else {}
        return {"loss": (len(self.chosen), steps, self.block), "clean_loss": (steps, self.block), **errors}
