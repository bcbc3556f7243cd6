"""Sweeps: components x kinds x timesteps x images, one value each, under common random numbers.

The clean and the changed arm share image, noise and timestep. What a sweep has computed is on disk, piece
by piece: it can be killed, resumed, and filled by several processes at once.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Int

from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import Images, PRNGKey, PyTree, Shown
from mechdiff.diffusion.process import images_at
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.storage import digests, labelled, work_sharing
from mechdiff.sweeps.execution.engine import Engine, SweepLosses
from mechdiff.sweeps.replacements import ReplacementSource, as_source


def ablation_sweep(
    denoiser: Denoiser,
    images: Shown,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    folder: Path,
    *,
    config: SweepConfig | None = None,
    replacements: PyTree = None,
    chosen: Sequence[Component] | None = None,
    facts: dict | None = None,
) -> xr.Dataset:
    """Leaves out one component at a time and measures the denoising loss, image by image.

    The result is kept in `folder`, in a store named after everything that decides its numbers
    (parameters, images, key, components, kinds, code): a killed sweep resumes where it was, and a
    changed one can't reuse stale numbers.

    Args:
      images: in [-1, 1], NHWC; image i has the noise of `image_noise(key, i)` at every timestep. Or other
        ones for every timestep, `(levels, images, ...)`, with noise of their own: see `process.images_at`.
      config: kinds, chunking; its counts of images and timesteps are the caller's business.
      fills: for kinds other than `zero`: kind -> site -> `(levels, *site)`, as `activations.activation_means`
        and `optimal_ablation.optimal_replacements` make them, or a source of fills such as
        `replacements.resample_replacements`.
      chosen: components; all of the network if None.
      facts: JSON-ready, kept in the result's attributes.
    Returns:
      Dataset with `loss` and `change` (mean squared change of the prediction), dims `kind, component,
      t, image`, and `clean_loss`, dims `t, image`; attribute `pictures`, how many were shown in all.
    Raises:
      ConfigError: a kind without fills.
    """
    config = config or SweepConfig()
    chosen = tuple(chosen or components(denoiser.unet))
    replacements = replacements or {}
    for ablation in config.ablations:
        if ablation != "zero" and ablation not in replacements:
            raise ConfigError(
                f"ablation kind {ablation!r} needs fills; capture.activation_means makes those of 'mean'"
            )
    timesteps = np.asarray(timesteps, np.int32)
    replacements = {
        ablation: as_source(replacements[ablation]) for ablation in config.ablations if ablation != "zero"
    }
    plan = _Plan(denoiser, np.asarray(images), timesteps, key, config, replacements, chosen)
    path = Path(folder) / f"{plan.key[:16]}.zarr"
    labelled.create(path, plan.empty(facts or {}), plan.chunks())
    plan.replacement(path)
    return labelled.read(path)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One sweep: what is to be computed, in pieces of (kind, timestep, block of images)."""

    denoiser: Denoiser
    images: np.ndarray
    timesteps: np.ndarray
    noise_key: PRNGKey
    config: SweepConfig
    replacements: dict[str, ReplacementSource]
    chosen: tuple[Component, ...]

    @functools.cached_property
    def key(self) -> str:
        """Digest of everything that decides the numbers."""
        return digests.digest_json(
            {
                **self.denoiser.digests(),
                "images": digests.digest_arrays(self.images),
                "noise": digests.digest_arrays(jax.random.key_data(self.noise_key)),
                "fills": {ablation: source.digest() for ablation, source in self.replacements.items()},
                "timesteps": self.timesteps.tolist(),
                "kinds": self.config.ablations,
                "components": [component.name for component in self.chosen],
                "numerics": NUMERICS_VERSION,
            }
        )

    @property
    def count(self) -> int:
        """Images at one timestep."""
        return self.images.shape[-4]

    @property
    def block(self) -> int:
        """Images in one piece."""
        return min(self.config.image_block, self.count)

    def empty(self, facts: dict) -> xr.Dataset:
        """The labeled result before the first piece."""
        shape = (len(self.config.ablations), len(self.chosen), len(self.timesteps), self.count)
        full = np.full(shape, np.nan, np.float32)
        dims = ("ablation", "component", "t", "image")
        return xr.Dataset(
            {
                "loss": (dims, full),
                "change": (dims, full),
                "clean_loss": (("t", "image"), full[0, 0]),
            },
            coords={
                "ablation": list(self.config.ablations),
                **component_coords(self.denoiser, self.chosen, self.timesteps, self.count),
            },
            attrs={
                "denoiser": self.denoiser.name,
                "key": self.key,
                "pictures": math.prod(self.images.shape[:-3]),
                **facts,
            },
        )

    def chunks(self) -> dict[str, tuple[int, ...]]:
        piece = (1, len(self.chosen), 1, self.block)
        return {"loss": piece, "change": piece, "clean_loss": (1, self.block)}

    def replacement(self, path: Path) -> None:
        """Computes the pieces that are missing, with other processes if they fill the same store."""
        denoiser = self.denoiser
        engine = Engine(denoiser.unet, denoiser.schedule, denoiser.params, self.config.chunk)
        everything = leave_one_out(denoiser.identity, self.chosen)[1]
        pieces = [
            (ablation, level, slice(start, min(start + self.block, self.count)))
            for ablation in range(len(self.config.ablations))
            for level in range(len(self.timesteps))
            for start in range(0, self.count, self.block)
        ]
        done = lambda piece: labelled.written(path, "loss", (piece[0], 0, piece[1], piece[2].start))
        compute = lambda piece: self._piece(engine, everything, path, *piece)
        work_sharing.run_missing(pieces, done, compute, f"sweeping {denoiser.name}")

    def _piece(
        self, engine: Engine, everything: Intervention, path: Path, ablation: int, level: int, images: slice
    ) -> None:
        # A short last block is filled up, so that it needs no program of its own.
        index = np.resize(np.arange(images.start, images.stop), self.block)
        count, t = images.stop - images.start, int(self.timesteps[level])
        source = self.replacements.get(self.config.ablations[ablation])
        found = _block(
            engine, everything, source, "replacement", self.images, index, level, t, self.noise_key
        )
        where = (slice(ablation, ablation + 1), slice(None), slice(level, level + 1), images)
        region = {"loss": where, "change": where, "clean_loss": (where[2], images)}
        put = {
            "clean_loss": found.clean_loss[None, :count],
            "change": found.change[None, :, None, :count],
            "loss": found.loss[None, :, None, :count],
        }
        labelled.put(path, region, put)


def _block(engine, stacked, source, field, images, index, level, t, key) -> SweepLosses:
    """One block of images at one timestep; the mean over the draws of the fills, if there are several."""
    pictures, numbers = images_at(images, level)
    given = [getattr(stacked, field)]
    if source is not None:
        given = (source.at(level, index, draw) for draw in range(source.draws))
    found = [
        engine.measure(
            dataclasses.replace(stacked, **{field: replacement}), pictures[index], numbers[index], t, key
        )
        for replacement in given
    ]
    return SweepLosses(*(np.mean(values, axis=0, dtype=values[0].dtype) for values in zip(*found)))


def sweep_in_memory(
    denoiser: Denoiser,
    stacked: Intervention,
    ablation: str,
    replacements: PyTree,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    block: int = 16,
    field: str = "replacement",
) -> SweepLosses:
    """A small sweep of any stack of interventions, in memory: all with `(..., levels, images)`.

    Args:
      kind, fills: of the fills, as in `sweeps.ablation_sweep`; with None those of `stacked` stay.
      block: images at once; a short last one is filled up, so that all share one program.
      field: of the intervention, that the fills go into: `fill` or `pattern_fill`.
    """
    if field == "replacement" and ablation != "zero" and replacements is None:
        raise ConfigError(f"ablation kind {ablation!r} needs fills; see capture, replacements and optimal")
    source = None if replacements is None else as_source(replacements)
    engine = Engine(denoiser.unet, denoiser.schedule, denoiser.params)
    images, per_level = np.asarray(images), []
    for level, t in enumerate(timesteps):
        parts = []
        for start in range(0, len(images), block):
            index = np.arange(start, min(start + block, len(images)))
            padded = np.resize(index, min(block, len(images)))
            found = _block(engine, stacked, source, field, images, padded, level, int(t), key)
            parts.append([values[..., : len(index)] for values in found])
        per_level.append([np.concatenate(values, axis=-1) for values in zip(*parts)])
    return SweepLosses(*(np.stack(values, axis=-2) for values in zip(*per_level)))


def component_coords(
    denoiser: Denoiser,
    chosen: Sequence[Component],
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    images: int,
) -> dict:
    """Coordinates `component`, `t` and `image` of a sweep, with what is known of each."""
    timesteps = np.asarray(timesteps, np.int32)
    return {
        "component": [component.name for component in chosen],
        "t": timesteps,
        "image": np.arange(images),
        "log_snr": ("t", np.asarray(denoiser.schedule.log_snr)[timesteps]),
        "component_type": ("component", [component.component_type for component in chosen]),
        "resolution": ("component", [component.resolution for component in chosen]),
        "depth": ("component", [component.depth for component in chosen]),
    }
