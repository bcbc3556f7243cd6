"""Faithfulness of circuits: loss recovered when everything outside a circuit is ablated.

A circuit C is a set of components; all others are ablated. m(C) is minus the denoising loss, averaged over
timesteps (which lie evenly in log-SNR and count alike) and over images, and its faithfulness is

  f(C) = (m(C) - m(nothing)) / (m(all) - m(nothing))

0 where no component is left and 1 for the complete network, but not bounded by these: a circuit that denoises
better than the network has f > 1, and does not do what the network does either. The definition is ours,
after MIB (Mueller et al. 2025, arXiv 2504.13151), whose circuits are sets of edges and whose m is the score
in a task. The unit of replication is the image: everything is a function of weights of images.

A component that acts at few timesteps weighs little in the average. With `CircuitEvaluator.every_timestep`, f
is taken at each timestep and the least faithfulness match counts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechdiff.core.batches import batches, filled
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import require_finite
from mechdiff.core.types import PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import keep_sets, needs_replacements
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable
from mechdiff.stats import Units, equal_weights, units_from
from mechdiff.storage import digests, labelled
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.provenance import component_keys, provenance, result_key, store
from mechdiff.sweeps.in_memory import block_losses
from mechdiff.sweeps.replacements import ReplacementSource, as_source

Members = Bool[np.ndarray, "circuit component"]
MIN_LOSS_CHANGE = 1e-6  # share of the loss: if ablating everything changes less, there is nothing to explain


def faithfulness_match(faithfulness: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """1 - |1 - f|: f up to 1, and falling again above, where a circuit denoises better than the network."""
    return 1 - np.abs(1 - faithfulness)


def faithfulness(
    loss: Float[np.ndarray, "*circuit image"],
    nothing: Float[np.ndarray, " *image"],
    full: Float[np.ndarray, " *image"],
    weights: Float[np.ndarray, "m image"],
) -> Float[np.ndarray, "*circuit m"]:
    """f of circuits under each weighting of the images: a ratio of means, not a mean of ratios.

    Args:
      loss, nothing, full: losses of the circuits, with everything ablated, and with nothing ablated.
    """
    return ((loss - nothing) @ weights.T) / ((full - nothing) @ weights.T)


@dataclasses.dataclass(frozen=True)
class CircuitEvaluator:
    """Runs circuits of a network on images under one ablation. Stateful: no circuit is run twice.

    Attributes:
      denoiser: the network.
      eval_set: images, crossed with timesteps evenly in log-SNR; the same noise for all circuits.
      ablation, replacements: of everything outside a circuit; ablations other than `zero` need replacements,
        site -> `(timesteps, *site)` or a source of them, as `ablation.ablation_sweep` takes them. `optimal`
        ones are those of ablating one component at a time.
      chosen: components that circuits are sets of; all others are never ablated. Empty: all of the network. A
        unit that two of them share is kept only where both are members.
      every_timestep: whether `faithfulness_match` is that at the worst timestep, instead of that of the mean
        loss over timesteps.
      folder: losses are kept here, so that an interrupted run can go on; None: nothing is kept on disk.
      batch, block: circuits and images in one program; smaller batches are padded to these sizes.
      people: number of the person in each image; then people are resampled. None: images are.

    Raises:
      ConfigError: an ablation other than `zero` without replacements, or people of other images.
    """

    denoiser: Examinable
    eval_set: EvalSet
    ablation: str = "zero"
    replacements: PyTree = None
    chosen: tuple[Component, ...] = ()
    every_timestep: bool = False
    folder: Path | None = None
    batch: int = 8
    block: int = 16
    people: Int[np.ndarray, " image"] | None = None

    def __post_init__(self):
        if not self.chosen:
            object.__setattr__(self, "chosen", self.denoiser.components())
        if self.ablation != "zero" and self.replacements is None:
            raise ConfigError(needs_replacements(self.ablation))
        if self.people is not None and np.shape(self.people) != (self.eval_set.count,):
            raise ConfigError(
                f"people of shape {np.shape(self.people)} for {self.eval_set.count} images; number each"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components."""
        return tuple(component.name for component in self.chosen)

    @property
    def units(self) -> Units:
        """Units of resampling: people if they are known, else images."""
        return units_from(self.people, self.eval_set.count)

    @property
    def even(self) -> Float[np.ndarray, "1 image"]:
        """The weighting in which all images count alike."""
        return equal_weights(self.eval_set.count)

    @property
    def evaluated(self) -> int:
        """Number of circuits whose losses were taken so far, also of those that were on disk: the same after
        an interruption."""
        return len(self._taken)

    def losses(self, members: Members) -> Float[np.ndarray, "circuit t image"]:
        """Denoising losses of circuits, image by image; known ones are not run again."""
        members = np.asarray(members, bool)
        new = {row.tobytes(): row for row in members}
        self._taken.update(new)
        todo = np.array([row for mark, row in new.items() if mark not in self._evaluated])
        for start in range(0, len(todo), self.batch):
            circuits = todo[start : start + self.batch]
            loss = self._run(circuits)
            require_finite(loss, self.denoiser.name, f"circuits under {self.ablation} ablation")
            self._keep(circuits, loss)
            self._evaluated.update(zip((row.tobytes() for row in circuits), loss, strict=True))
        return np.stack([self._evaluated[row.tobytes()] for row in members])

    def pooled(self, members: Members) -> Float[np.ndarray, "circuit image"]:
        """Losses averaged over timesteps, in float64."""
        return self.losses(members).mean(axis=1, dtype=np.float64)

    def faithfulness(
        self, members: Members, weights: Float[np.ndarray, "m image"] | None = None
    ) -> Float[np.ndarray, "circuit m"]:
        """f of circuits under each weighting of the images; None: one column, even weights.

        Raises:
          ConfigError: ablating everything changes the loss by no more than rounding.
          NumericsError: losses that are NaN or Inf.
        """
        members = np.asarray(members, bool)
        nothing, full, *loss = self.pooled(np.concatenate([self.ends, members]))
        if abs(nothing.mean() / full.mean() - 1) < MIN_LOSS_CHANGE:
            raise ConfigError(
                f"{self.denoiser.name}: the loss is {full.mean():.6g} with all components and without any; "
                "there is nothing that a circuit could explain"
            )
        loss = np.array(loss).reshape(-1, len(full))
        return faithfulness(loss, nothing, full, self.even if weights is None else weights)

    def faithfulness_match(
        self, members: Members, weights: Float[np.ndarray, "m image"] | None = None
    ) -> Float[np.ndarray, "circuit m"]:
        """1 - |1 - f| of circuits: of losses averaged over timesteps; with `every_timestep` the least over
        them.

        Raises:
          ConfigError: as `faithfulness`.
        """
        match = faithfulness_match(self.faithfulness(members, weights))
        if not self.every_timestep:
            return match
        nothing, full, *loss = self.losses(np.concatenate([self.ends, members])).astype(np.float64)
        weights = self.even if weights is None else weights
        if not loss:
            return match
        # Elsewhere f is a ratio of rounding errors.
        defined = np.flatnonzero(np.abs(nothing.mean(1) / full.mean(1) - 1) >= MIN_LOSS_CHANGE)
        by_t = [faithfulness(np.array(loss)[:, t], nothing[t], full[t], weights) for t in defined]
        return np.min([faithfulness_match(f) for f in by_t], axis=0)

    @property
    def ends(self) -> Bool[np.ndarray, "2 component"]:
        """The empty circuit and the complete one."""
        return np.repeat([[False], [True]], len(self.chosen), axis=1)

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of all inputs that decide the losses."""
        return result_key(
            self.denoiser,
            self.eval_set,
            fills=self._source.digest() if self._source else None,  # an old name, by which losses are found
            ablation=self.ablation,
            components=component_keys(self.denoiser, self.chosen),
        )

    @functools.cached_property
    def _evaluated(self) -> dict[bytes, Float[np.ndarray, "t image"]]:
        """Members as bytes -> losses; to begin with, those on disk."""
        evaluated = {}
        for path in sorted(self._home.glob("*.zarr")) if self._home else ():
            page = labelled.read(path)
            rows = (row.tobytes() for row in page["member"].values)
            evaluated |= zip(rows, page["loss"].values, strict=True)
        return evaluated

    @functools.cached_property
    def _taken(self) -> set[bytes]:
        """Members of the circuits that were asked for, as bytes."""
        return set()

    @property
    def _home(self) -> Path | None:
        """Where losses are kept; None: nowhere."""
        return self.folder / self.key[:16] if self.folder else None

    def _keep(self, members: Members, loss: Float[np.ndarray, "circuit t image"]) -> None:
        if self._home is None:
            return
        page = dataset(self, members, loss)
        labelled.create(store(self._home, digests.digest_arrays(members)), page, {})

    @functools.cached_property
    def _source(self) -> ReplacementSource | None:
        return None if self.ablation == "zero" else as_source(self.replacements)

    @functools.cached_property
    def _engine(self) -> Engine:
        return Engine(self.denoiser, together=True)

    def _run(self, members: Members) -> Float[np.ndarray, "circuit t image"]:
        rows = filled(slice(0, len(members)), self.batch)  # always so many: one program
        stacked = keep_sets(self.denoiser.identity, self.chosen, members[rows])
        count = self.eval_set.count
        losses = np.empty((len(members), len(self.eval_set.timesteps), count), np.float32)
        for t_index in range(len(self.eval_set.timesteps)):
            for batch in batches(count, min(self.block, count)):
                loss = block_losses(
                    self._engine, self.eval_set, t_index, batch.indices, stacked, self._source, "replacement"
                ).loss
                losses[:, t_index, batch.span] = loss[: len(members), : batch.count]
        return losses


def dataset(
    evaluator: CircuitEvaluator,
    members: Members,
    loss: Float[np.ndarray, "circuit t image"],
    **labels: Sequence,
) -> xr.Dataset:
    """Dataset of circuits and their losses; `labels` are further coordinates, one value per circuit."""
    return xr.Dataset(
        {"member": (("circuit", "component"), members), "loss": (("circuit", "t", "image"), loss)},
        coords={
            "component": list(evaluator.names),
            "component_type": ("component", [component.component_type for component in evaluator.chosen]),
            "t": evaluator.eval_set.timesteps,
            "image": np.arange(evaluator.eval_set.count),
            **{name: ("circuit", list(values)) for name, values in labels.items()},
        },
        attrs={**provenance(evaluator.denoiser), "ablation": evaluator.ablation, "key": evaluator.key},
    )
