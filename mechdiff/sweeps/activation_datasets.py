"""Activations as labeled arrays, in memory or on disk, to fit probes and dictionaries on."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array

from mechdiff.core.batches import batches, filled
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.interventions.components import PATTERN, full_matches, site_type
from mechdiff.interventions.gates import CAPTURED
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.models.stage_modules import STREAMS
from mechdiff.storage import descriptions, digests, labelled, work_sharing
from mechdiff.sweeps.execution import footprint, memory
from mechdiff.sweeps.execution.provenance import result_key, store

DONE = "done"  # variable that marks the images that are on disk
UNIT_NAMES = {"head": "head", PATTERN: "head", "feature": "feature"}  # site type -> name of its axis of units


def activations(
    denoiser: Examinable,
    eval_set: EvalSet,
    sites: str | Sequence[str] = ".*",
    *,
    timesteps: Sequence[int] | None = None,
    intervention: Intervention | None = None,
    folder: str | Path | None = None,
    block: int = 16,
) -> xr.Dataset:
    """Activations of sites, before their own gates act on them.

    Args:
      sites: names or regular expressions (full match). In a network with stages, a stage's full name, such as
        `mid.block1`, stands for its output feature map.
      timesteps: in [0, T); those of `eval_set` if None.
      intervention: the network runs under it; None: the identity.
      folder: where the result is written piece by piece, named by a digest of all its inputs; a second call
        resumes, and the result is read from disk lazily. None: all in memory.
      block: images at once; fewer if memory is short.
    Returns:
      One variable per site, float32, with dims `t`, `image`, and axes named by kind and length:
      `y_16, x_16, channel_32` for maps, `token_256, head_4, depth_8` for heads, `channel_32` for vectors,
      `head_4, query_64, key_64` for patterns.
    Raises:
      ConfigError: a name or pattern that matches no site, or a timestep outside [0, T).

    Example (more in experiments/tours/find_prove_steer.ipynb):
      >>> from mechdiff.models.toy import toy_denoiser
      >>> eval_set = EvalSet(np.zeros((4, 2, 2, 3), np.float32), [30, 90], jax.random.key(0))
      >>> acts = activations(toy_denoiser(), eval_set, "small.*")
      >>> list(acts), dict(acts["small.mlp"].sizes)
      (['small.mlp'], {'t': 2, 'image': 4, 'y_2': 2, 'x_2': 2, 'channel_3': 3})
    """
    eval_set = _at_timesteps(denoiser, eval_set, timesteps)
    intervention = denoiser.identity if intervention is None else intervention
    plan = _Plan(denoiser, eval_set, intervention, _matching(denoiser, sites), block)
    return plan.in_memory() if folder is None else plan.on_disk(Path(folder))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The inputs of one call, and its pieces: a block of images at one timestep each."""

    denoiser: Examinable
    eval_set: EvalSet
    intervention: Intervention
    sites: tuple[str, ...]
    most: int

    @functools.cached_property
    def block(self) -> int:
        """Images in one piece."""
        network = self.denoiser.network
        of_image = footprint.row_bytes(network) + footprint.replacement_bytes(network)
        return min(memory.images_at_once(self.most, of_image), self.eval_set.count)

    @functools.cached_property
    def pieces(self) -> list[tuple[int, slice]]:
        """`(t_index, images)` of every piece."""
        spans = [batch.span for batch in batches(self.eval_set.count, self.block)]
        return [(t_index, span) for t_index in range(len(self.eval_set.timesteps)) for span in spans]

    def values(self, piece: tuple[int, slice]) -> dict[str, np.ndarray]:
        """Site -> `(images, ...)`. A short last block is padded, so that it shares the others' program."""
        t_index, span = piece
        batch = self.eval_set.batch(t_index, filled(span, self.block))
        values = _captured(self.denoiser, self.intervention, batch, sites=self.sites)
        count = span.stop - span.start
        return {site: np.asarray(value, np.float32)[:count] for site, value in values.items()}

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Site -> shape of one row."""
        captured = functools.partial(_captured, sites=self.sites)
        batch = self.eval_set.batch(0, np.arange(1))
        values = jax.eval_shape(captured, self.denoiser, self.intervention, batch)
        return {site: values[site].shape[1:] for site in self.sites}

    def dataset(self, arrays: dict[str, np.ndarray]) -> xr.Dataset:
        """The labeled result with these arrays, `(t, image, ...)`."""
        timesteps = self.eval_set.timesteps
        variables = {
            site: (
                ("t", "image", *axes_of(self.denoiser, site, self.shapes[site])),
                array,
                {"long_name": f"activation of {site}", "units": "1"},
            )
            for site, array in arrays.items()
        }
        coordinates = {
            "t": timesteps,
            "image": np.arange(self.eval_set.count),
            "log_snr": ("t", np.asarray(self.denoiser.schedule.log_snr)[timesteps]),
        }
        return xr.Dataset(variables, coordinates, {"denoiser": self.denoiser.name})

    def in_memory(self) -> xr.Dataset:
        """All pieces, computed now."""
        arrays = self._empty(np.empty)
        for piece in self.pieces:
            for site, value in self.values(piece).items():
                arrays[site][piece] = value
        return descriptions.described(self.dataset(arrays))

    def on_disk(self, folder: Path) -> xr.Dataset:
        """The result in `folder`, opened; pieces that it lacks are computed first."""
        path = store(folder, self.key)
        shape = (len(self.eval_set.timesteps), self.eval_set.count)
        nothing = self._empty(lambda shape, dtype: np.broadcast_to(np.array(np.nan, dtype), shape))
        empty = self.dataset(nothing).assign(
            {DONE: (("t", "image"), np.full(shape, np.nan, np.float32), {"long_name": "1 where it is there"})}
        )
        chunks = {site: (1, self.block, *self.shapes[site]) for site in self.sites}
        labelled.create(path, empty.assign_attrs(key=self.key), chunks | {DONE: (1, self.block)})

        def done(piece: tuple[int, slice]) -> bool:
            return labelled.written(path, DONE, (piece[0], piece[1].start))

        def compute(piece: tuple[int, slice]) -> None:
            where = (slice(piece[0], piece[0] + 1), piece[1])
            values = {site: value[None] for site, value in self.values(piece).items()}
            values[DONE] = np.ones((1, piece[1].stop - piece[1].start), np.float32)
            labelled.put(path, dict.fromkeys(values, where), values)

        work_sharing.run_missing(path, self.pieces, done, compute, f"activations of {self.denoiser.name}")
        return labelled.opened(path).drop_vars(DONE)

    @property
    def key(self) -> str:
        """Digest of everything that decides the numbers, and of the size of pieces."""
        return result_key(
            self.denoiser,
            self.eval_set,
            intervention=digests.digest_arrays(self.intervention),
            sites=self.sites,
            block=self.block,
        )

    def _empty(self, make: Any) -> dict[str, np.ndarray]:
        leading = (len(self.eval_set.timesteps), self.eval_set.count)
        return {site: make((*leading, *self.shapes[site]), np.float32) for site in self.sites}


@functools.partial(jax.jit, static_argnames=("sites",))
def _captured(
    denoiser: Examinable, intervention: Intervention, batch: EvalBatch, *, sites: tuple[str, ...]
) -> dict[str, Array]:
    """Values of `sites` only: the compiler removes what is computed for other sites."""
    x_t, t, _ = batch.noised(denoiser.schedule)
    collections = {STREAMS if site in _stage_names(denoiser) else CAPTURED for site in sites}
    values = {}
    for collection in sorted(collections):
        values |= denoiser.captured(intervention, x_t, t, batch.condition, collection=collection)[1]
    return {site: values[site] for site in sites}


def axes_of(denoiser: Examinable, site: str, shape: Sequence[int]) -> tuple[str, ...]:
    """Names of the axes of one row of a site, each with its length, such as `y_16` for 16 rows of pixels.

    Args:
      site: a site or a stage, see `activations`.
      shape: of one row.
    """
    unit = len(shape) - 1 if site in _stage_names(denoiser) else len(shape) + denoiser.unit_axis(site)
    names = {unit: UNIT_NAMES.get(site_type(site), "channel")}
    others = [axis for axis in range(len(shape)) if axis != unit]
    if site_type(site) == PATTERN and len(others) > 1:
        names |= {others[-2]: "query", others[-1]: "key"}
        del others[-2:]
    elif others and names[unit] == "head":
        names[others.pop()] = "depth"
    remaining = {1: ("token",), 2: ("y", "x")}.get(len(others), [f"axis{i}" for i in range(len(others))])
    names |= dict(zip(others, remaining, strict=True))
    return tuple(f"{names[axis]}_{size}" for axis, size in enumerate(shape))


def _stage_names(denoiser: Examinable) -> tuple[str, ...]:
    return tuple(stage.name for stage in denoiser.stages or ())


def _matching(denoiser: Examinable, sites: str | Sequence[str]) -> tuple[str, ...]:
    """Names of sites, and of stages that are named in full, in the order of execution."""
    of_components = [component.site for component in denoiser.components()]
    # Named patterns are sites without components.
    known = list(dict.fromkeys([*of_components, *denoiser.identity.gate]))
    chosen: set[str] = set()
    for pattern in [sites] if isinstance(sites, str) else sites:
        if pattern in _stage_names(denoiser) or pattern in known:
            chosen.add(pattern)
            continue
        matched = full_matches(pattern, known)
        if not matched:
            raise ConfigError(unknown("site", pattern, known))
        chosen.update(matched)
    return tuple(name for name in (*known, *_stage_names(denoiser)) if name in chosen)


def _at_timesteps(denoiser: Examinable, eval_set: EvalSet, timesteps: Sequence[int] | None) -> EvalSet:
    if timesteps is not None:
        eval_set = EvalSet(eval_set.images, timesteps, eval_set.key, eval_set.condition)
    steps = denoiser.schedule.steps
    for t in eval_set.timesteps:
        if not 0 <= t < steps:
            raise ConfigError(f"timestep {t} is out of range; integers in [0, {steps})")
    return eval_set
