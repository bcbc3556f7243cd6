"""Sampling sweeps: components x ablations x windows of t x samples, and the change of the final sample.

The clean and the changed arm begin with the same x_T and draw the same noise at every step. Before an
intervention's window opens its trajectory is the clean one, exactly; so the clean trajectory is walked once,
its states are kept where windows open, and every changed trajectory begins there. With K components in W even
windows of S steps that is S + K S (W + 1) / 2 network calls a sample instead of K W S.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import PRNGKey, PyTree, StepFn
from mechdiff.diffusion.samplers import TimestepSequence, ddim_step
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import digests, labelled, work_sharing
from mechdiff.sweeps.execution import drawing, engine, memory, rollout
from mechdiff.sweeps.execution.rollout import Rollout, Window, zero_replacements
from mechdiff.sweeps.execution.shown import provenance


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


def sampling_sweep(
    denoiser: Examinable,
    levels: TimestepSequence,
    windows: Sequence[Window],
    samples: int,
    key: PRNGKey,
    folder: Path,
    *,
    ablations: Sequence[str] = ("zero",),
    replacements: PyTree = None,
    chosen: Sequence[Component] | None = None,
    step_fn: StepFn = ddim_step,
    clip: float | None = None,
    block: int = 8,
    rows: int = 0,
    condition: PyTree = None,
    facts: dict | None = None,
) -> xr.Dataset:
    """Samples with each component left out in each window, and measures how far each sample moves.

    Resumable, and filled by any number of processes, as `sweeps.ablation_sweep` is.

    Args:
      levels: timesteps visited, as for `samplers.sample`.
      windows: half-open intervals of t; each must hold a visited level. See `even_windows`.
      samples: sample i has the noise of index i, whatever the intervention; at least 2.
      replacements: ablation -> site -> `(steps, *site)`, in the order of increasing t, for ablations other
        than `zero`.
      step_fn: `ddim_step` or `ddpm_step`, or a partial of them.
      clip: of predicted images, as for `samplers.sample`; None: as the network's config says.
      block: samples that are walked together; a piece of the result.
      rows: interventions x samples at once on each device; 0: chosen by memory.
      condition: what each sample is denoised under, leaves `(samples, ...)`; None: nothing.

    Returns:
      Dataset with `distance` (root mean square change of the final sample's pixels, images being in [-1, 1]),
      dims `ablation, component, window, sample`, and `set_distance`, dims `ablation, component, window`:
      `energy_distance` between the clean and the changed sets.

    Raises:
      ConfigError: an ablation without replacements, a window without timesteps, or fewer than two samples.

    Example:
      >>> levels = ddim_timesteps(schedule.steps, 50)  # doctest: +SKIP
      >>> windows = even_windows(levels, 4)  # doctest: +SKIP
      >>> sampling_sweep(denoiser, levels, windows, 16, jax.random.key(0), "runs/mine")  # doctest: +SKIP
    """
    if samples < 2:
        raise ConfigError(f"samples={samples}: a distance between sets needs at least 2")
    chosen = tuple(chosen or denoiser.components())
    for ablation in ablations:
        if ablation != "zero" and ablation not in (replacements or {}):
            raise ConfigError(f"{ablation} ablation needs replacements for every sampling step")
        if ablation != "zero" and not isinstance(replacements[ablation], dict):
            raise ConfigError(
                f"replacements of {ablation} ablation differ between images; sampling needs arrays, "
                "as for 'mean'"
            )
    down = np.sort(np.asarray(levels, np.int32))[::-1].copy()
    clip = drawing.sample_clip(denoiser) if clip is None else float(clip)
    walker = Rollout(denoiser, down, key, step_fn, clip, min(block, samples), condition)
    plan = _Plan(walker, tuple(windows), samples, tuple(ablations), replacements or {}, chosen, rows)
    path = Path(folder) / f"{plan.digest[:16]}.zarr"
    labelled.create(path, plan.empty(facts or {}), plan.chunks())
    plan.run(path)
    return labelled.read(path)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One sampling sweep, in pieces of (ablation, window, group of components)."""

    walker: Rollout
    windows: tuple[Window, ...]
    samples: int
    ablations: tuple[str, ...]
    replacements: PyTree
    chosen: tuple[Component, ...]
    rows: int  # on each device

    @functools.cached_property
    def digest(self) -> str:
        """Digest of everything that decides the numbers."""
        step, condition = self.walker.step_fn, self.walker.condition
        return digests.digest_json(
            {
                **self.walker.denoiser.digests(),
                "levels": self.walker.timesteps.tolist(),
                "noise": digests.digest_arrays(jax.random.key_data(self.walker.key)),
                "step": [getattr(step, "func", step).__name__, repr(getattr(step, "keywords", {}))],
                "clip": self.walker.clip,
                "windows": self.windows,
                "samples": self.samples,
                "fills": digests.digest_arrays(self.replacements),
                "kinds": self.ablations,
                "components": [component.name for component in self.chosen],
                **({} if condition is None else {"condition": digests.digest_arrays(condition)}),
                "numerics": NUMERICS_VERSION,
            }
        )

    @functools.cached_property
    def group(self) -> int:
        """Components that are walked together."""
        devices = list(self.walker.mesh.devices.flat)
        row = memory.row_bytes(self.walker.denoiser.network)
        limit = self.rows or engine.memory_limit(devices[0]) // row
        return max(1, min(len(self.chosen), limit * len(devices) // self.walker.block))

    def empty(self, facts: dict) -> xr.Dataset:
        """The labeled result before the first piece."""
        shape = (len(self.ablations), len(self.chosen), len(self.windows), self.samples)
        full = np.full(shape, np.nan, np.float32)
        return xr.Dataset(
            {
                "distance": (("ablation", "component", "window", "sample"), full),
                "set_distance": (("ablation", "component", "window"), full[..., 0]),
            },
            coords={
                "ablation": list(self.ablations),
                "component": [component.name for component in self.chosen],
                "low": ("window", [low for low, _ in self.windows]),
                "high": ("window", [high for _, high in self.windows]),
                "sample": np.arange(self.samples),
                "component_type": ("component", [component.component_type for component in self.chosen]),
                "depth": ("component", [component.depth for component in self.chosen]),
            },
            attrs={**provenance(self.walker.denoiser), "key": self.digest, **facts},
        )

    def chunks(self) -> dict[str, tuple[int, ...]]:
        # A component each, so that processes with other memory or devices, and so other groups, can share.
        return {"distance": (1, 1, 1, self.samples), "set_distance": (1, 1, 1)}

    def run(self, path: Path) -> None:
        """Computes the pieces that are missing, as `sweeps` does."""
        starts = [rollout.first_step_inside(self.walker.timesteps, window) for window in self.windows]
        pieces = [
            (ablation, window, slice(first, min(first + self.group, len(self.chosen))))
            for ablation in range(len(self.ablations))
            for window in range(len(self.windows))
            for first in range(0, len(self.chosen), self.group)
        ]
        title = f"sampling {self.walker.denoiser.name}"
        states = functools.cache(lambda: self._states(starts))  # not before a piece is missing
        compute = lambda piece: self._piece(path, states(), starts, *piece)

        def done(piece):
            found = labelled.region(path, {"distance": (piece[0], piece[2], piece[1], 0)})
            return np.isfinite(found["distance"]).all()

        work_sharing.run_missing(pieces, done, compute, title)

    def _blocks(self) -> list[np.ndarray]:
        """Indices of the samples, in blocks of one shape; the last is filled up with repeats."""
        first = range(0, self.samples, self.walker.block)
        return [np.minimum(np.arange(start, start + self.walker.block), self.samples - 1) for start in first]

    def _states(self, starts: Sequence[int]) -> list[tuple[dict[int, Array], Array]]:
        return [self.walker.clean(starts, indices) for indices in self._blocks()]

    def _replacements(self, ablation: str) -> PyTree:
        """Of one ablation, step by step."""
        if ablation == "zero":
            return zero_replacements(self.walker.denoiser.identity, len(self.walker.timesteps))
        return {site: values[::-1] for site, values in self.replacements[ablation].items()}

    def _piece(self, path: Path, states, starts, ablation: int, window: int, group: slice) -> None:
        denoiser, start = self.walker.denoiser, starts[window]
        stacked = leave_one_out(denoiser.identity, self.chosen[group])[1]
        # A short last group is filled up, so that it needs no program of its own.
        order = np.resize(np.arange(group.stop - group.start), self.group)
        stacked = dataclasses.replace(
            stacked,
            replacement=self._replacements(self.ablations[ablation]),
            window=np.asarray(self.windows[window], np.int32),
            gate={s: v[order] for s, v in stacked.gate.items()},
            temperature={s: np.tile(np.asarray(v), (len(order), 1)) for s, v in stacked.temperature.items()},
        )
        clean, changed, span = [], [], (start, len(self.walker.timesteps))
        for indices, (kept, final) in zip(self._blocks(), states, strict=True):
            clean.append(np.asarray(final))
            changed.append(np.asarray(self.walker.run(stacked, span, kept[start], indices)))
        clean = np.concatenate(clean)[: self.samples]
        changed = np.concatenate(changed, axis=1)[: group.stop - group.start, : self.samples]
        distance = np.sqrt(np.mean((changed - clean) ** 2, axis=(2, 3, 4)))
        sets = np.array([energy_distance(clean, images) for images in changed], np.float32)
        where = (slice(ablation, ablation + 1), group, slice(window, window + 1))
        region = {"distance": (*where, slice(None)), "set_distance": where}
        put = {"set_distance": sets[None, :, None], "distance": distance[None, :, None]}
        labelled.put(path, region, put)
