"""The pieces of a sampling sweep: what each computes, and how it is kept and shared between processes."""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from mechdiff.core import devices
from mechdiff.core.batches import batches, filled
from mechdiff.core.config import SweepConfig
from mechdiff.core.types import PyTree
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import Intervention
from mechdiff.storage import digests, labelled, work_sharing
from mechdiff.sweeps import precision
from mechdiff.sweeps.execution import engine, footprint, memory, rollout
from mechdiff.sweeps.execution.provenance import component_keys, provenance, result_key
from mechdiff.sweeps.execution.rollout import Rollout, Window, zero_replacements


def energy_distance(
    a: Float[np.ndarray, "n height width channels"], b: Float[np.ndarray, "n height width channels"]
) -> float:
    """Squared energy distance between the distributions of two sets of images (Szekely & Rizzo 2013).

    The distance of two images is the root mean square difference of their pixels. `a[i]` and `b[i]` may
    depend on each other (share their noise): pairs of equal index are left out, which makes the estimate
    unbiased; so it can be below 0 where the distributions are equal.
    """
    n = len(a)
    flat = [x.reshape(n, -1).astype(np.float64) for x in (a, b)]

    def mean(x, y):
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        distance = np.sqrt(np.maximum(squared, 0) / x.shape[1])
        return (distance.sum() - np.trace(distance)) / (n * (n - 1))

    return 2 * mean(*flat) - mean(flat[0], flat[0]) - mean(flat[1], flat[1])


class Piece(NamedTuple):
    """The unit of computing and writing: indices of an ablation and a window, and a group of components."""

    ablation: int
    window: int
    group: slice


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """One sampling sweep, piece by piece.

    Attributes:
      sampler: draws clean and changed samples.
      windows: half-open intervals of t.
      samples: how many.
      config, replacements, chosen: as `sampling.sampling_sweep` takes them.
    """

    sampler: Rollout
    windows: tuple[Window, ...]
    samples: int
    config: SweepConfig
    replacements: PyTree
    chosen: tuple[Component, ...]

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the numbers. Some names in it are old: with today's, no saved
        result would be found."""
        step, condition = self.sampler.step_fn, self.sampler.condition
        return result_key(
            self.sampler.denoiser,
            levels=self.sampler.timesteps.tolist(),
            noise=digests.digest_arrays(jax.random.key_data(self.sampler.key)),
            step=[getattr(step, "func", step).__name__, repr(getattr(step, "keywords", {}))],
            clip=self.sampler.clip,
            windows=self.windows,
            samples=self.samples,
            fills=digests.digest_arrays(self.replacements),
            kinds=self.config.ablations,
            components=component_keys(self.sampler.denoiser, self.chosen),
            **({} if condition is None else {"condition": digests.digest_arrays(condition)}),
        )

    @functools.cached_property
    def group(self) -> int:
        """Components whose samples are drawn together."""
        devices = list(self.sampler.mesh.devices.flat)
        row = footprint.row_bytes(self.sampler.denoiser.network)
        limit = self.config.chunk or engine.memory_limit(devices[0]) // row
        return max(1, min(len(self.chosen), limit * len(devices) // self.sampler.block))

    def empty(self, facts: dict) -> xr.Dataset:
        """The labeled result before the first piece."""
        shape = (len(self.config.ablations), len(self.chosen), len(self.windows), self.samples)
        dims = ("ablation", "component", "window", "sample")
        memory.require_room(f"distances ({', '.join(dims)})", shape)
        full = np.full(shape, np.nan, np.float32)
        return xr.Dataset(
            {
                "distance": (dims, full),
                "set_distance": (dims[:3], full[..., 0]),
                **({"precision_error": (dims[:2], full[..., 0, 0])} if self.reduced else {}),
            },
            coords={
                "ablation": list(self.config.ablations),
                "component": [component.name for component in self.chosen],
                "low": ("window", [low for low, _ in self.windows]),
                "high": ("window", [high for _, high in self.windows]),
                "sample": np.arange(self.samples),
                "component_type": ("component", [component.component_type for component in self.chosen]),
                "depth": ("component", [component.depth for component in self.chosen]),
            },
            attrs={
                **provenance(self.sampler.denoiser),
                "key": self.key,
                **(self._precision_facts() if self.reduced else {}),
                **facts,
            },
        )

    def chunks(self) -> dict[str, tuple[int, ...]]:
        """Size of what is written at once: one component, so that processes with other memory or devices,
        and so other groups, can share the store."""
        rows = {"precision_error": (1, len(self.chosen))} if self.reduced else {}
        return {"distance": (1, 1, 1, self.samples), "set_distance": (1, 1, 1), **rows}

    @property
    def reduced(self) -> bool:
        """Whether products are less exact than float32, and their error is measured."""
        return devices.acts(self.config.precision)

    @property
    def checked(self) -> precision.Subset:
        """The part that is drawn in full precision too: indices of windows, and number of samples."""
        return precision.subset(len(self.windows), min(self.sampler.block, self.samples))

    def _precision_facts(self) -> dict:
        return {
            "precision": self.config.precision,
            "precision_samples": self.checked.images,
            "precision_windows": len(self.checked.t_indices),
        }

    def measure_precision(self, path: Path) -> None:
        """Draws a part of the samples in float32, from the same noise, and saves the difference."""
        samples, windows = self.checked.images, list(self.checked.t_indices)
        in_full = dataclasses.replace(self, samples=samples)  # with its own clean trajectory
        groups = list(batches(len(self.chosen), self.group))
        for row in range(len(self.config.ablations)):
            if labelled.written(path, "precision_error", (row, 0)):
                continue
            with jax.default_matmul_precision("float32"):
                exact = [
                    np.concatenate(
                        [in_full._distances(Piece(row, window, group.span))[0] for group in groups]
                    )
                    for window in windows
                ]
            # One window after the other: a list of indices would be taken together with the slices.
            swept = [
                labelled.region(path, {"distance": (row, slice(None), window, slice(samples))})["distance"]
                for window in windows
            ]
            errors = precision.largest_distance_error(np.stack(swept, axis=1), np.stack(exact, axis=1))
            where = (slice(row, row + 1), slice(None))
            labelled.put(path, {"precision_error": where}, {"precision_error": errors[None]})

    def run(self, path: Path) -> None:
        """Computes the pieces that are missing, with other processes if they work on the same store."""
        pieces = [
            Piece(ablation, window, group.span)
            for ablation in range(len(self.config.ablations))
            for window in range(len(self.windows))
            for group in batches(len(self.chosen), self.group)
        ]

        def done(piece: Piece) -> bool:
            where = (piece.ablation, piece.group, piece.window, 0)
            return bool(np.isfinite(labelled.region(path, {"distance": where})["distance"]).all())

        def compute(piece: Piece) -> None:
            self._compute(path, piece)

        title = f"sampling {self.sampler.denoiser.name}"
        work_sharing.run_missing(path, pieces, done, compute, title)

    @functools.cached_property
    def _starts(self) -> list[int]:
        """Index of the first step inside each window."""
        return [rollout.first_step_inside(self.sampler.timesteps, window) for window in self.windows]

    @functools.cached_property
    def _blocks(self) -> list[np.ndarray]:
        """Indices of the samples, in blocks of one shape."""
        return [batch.indices for batch in batches(self.samples, self.sampler.block)]

    @functools.cached_property
    def _clean(self) -> list[tuple[dict[int, Array], Array]]:
        """Clean states where windows open, and clean final images, block by block; computed once."""
        return [self.sampler.clean(self._starts, indices) for indices in self._blocks]

    def _acting(self, piece: Piece) -> Intervention:
        """Interventions of a group of components; a short group is padded, so that it shares one program."""
        chosen = self.chosen[piece.group]
        stacked = leave_one_out(self.sampler.denoiser.identity, chosen)[1]
        order = filled(slice(0, len(chosen)), self.group)
        return dataclasses.replace(
            stacked,
            replacement=self._replacements(self.config.ablations[piece.ablation]),
            window=np.asarray(self.windows[piece.window], np.int32),
            gate={s: v[order] for s, v in stacked.gate.items()},
            temperature={s: np.tile(np.asarray(v), (len(order), 1)) for s, v in stacked.temperature.items()},
        )

    def _replacements(self, ablation: str) -> PyTree:
        """The replacements of an ablation, in the order of the steps."""
        if ablation == "zero":
            return zero_replacements(self.sampler.denoiser.identity, len(self.sampler.timesteps))
        return {site: values[::-1] for site, values in self.replacements[ablation].items()}

    def _distances(
        self, piece: Piece
    ) -> tuple[Float[np.ndarray, "components samples"], Float[np.ndarray, " components"]]:
        """Distance of each sample from its clean twin, and between the two sets of samples."""
        acting, start = self._acting(piece), self._starts[piece.window]
        span, clean, changed = (start, len(self.sampler.timesteps)), [], []
        for indices, (states, final) in zip(self._blocks, self._clean, strict=True):
            images = self.sampler.run(acting, span, states[start], indices)
            clean.append(np.asarray(final))
            changed.append(np.asarray(images))
        clean = np.concatenate(clean)[: self.samples]
        changed = np.concatenate(changed, axis=1)[: piece.group.stop - piece.group.start, : self.samples]
        distance = np.sqrt(np.mean((changed - clean) ** 2, axis=(2, 3, 4)))
        sets = np.array([energy_distance(clean, images) for images in changed], np.float32)
        return distance, sets

    def _compute(self, path: Path, piece: Piece) -> None:
        distance, sets = self._distances(piece)
        window = slice(piece.window, piece.window + 1)
        where = (slice(piece.ablation, piece.ablation + 1), piece.group, window)
        region = {"distance": (*where, slice(None)), "set_distance": where}
        values = {"set_distance": sets[None, :, None], "distance": distance[None, :, None]}
        labelled.put(path, region, values)
