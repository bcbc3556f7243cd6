"""Sweeps: components x kinds x timesteps x images, one value each, under common random numbers.

The clean and the changed arm share image, noise and timestep. What a sweep has computed is on disk, piece
by piece: it can be killed, resumed, and filled by several processes at once.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Int

from mechdiff import files, filling, results
from mechdiff.capture import fills_at
from mechdiff.config import SweepConfig, UNetConfig
from mechdiff.engine import Engine
from mechdiff.errors import ConfigError
from mechdiff.interventions import Component, Intervention, leave_one_out
from mechdiff.schedules import NoiseSchedule
from mechdiff.types import Images, PRNGKey, PyTree
from mechdiff.unet import components


@dataclasses.dataclass(frozen=True)
class Subject:
    """A denoiser to be examined.

    Attributes:
      name: shown in results.
      unet, schedule: its configuration.
      params, identity: as `init_unet` makes them (parameters trained).
    """

    name: str
    unet: UNetConfig
    schedule: NoiseSchedule
    params: PyTree
    identity: Intervention

    def digests(self) -> dict:
        """What of it decides numbers, JSON-ready."""
        return {
            "params": files.digest_arrays(self.params),
            "unet": dataclasses.asdict(self.unet),
            "schedule": files.digest_arrays(self.schedule.log_snr),
        }


def teacher_forced(
    subject: Subject,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    folder: Path,
    *,
    config: SweepConfig | None = None,
    fills: PyTree = None,
    chosen: Sequence[Component] | None = None,
    facts: dict | None = None,
) -> xr.Dataset:
    """Leaves out one component at a time and measures the denoising loss, image by image.

    The result is kept in `folder`, in a store named after everything that decides its numbers
    (parameters, images, key, components, kinds, code): a killed sweep resumes where it was, and a
    changed one can't reuse stale numbers.

    Args:
      images: in [-1, 1], NHWC; image i has the noise of `image_noise(key, i)` at every timestep.
      config: kinds, chunking; its counts of images and timesteps are the caller's business.
      fills: kind -> site -> `(levels, ...)`, for kinds other than `zero`; see `capture`.
      chosen: components; all of the network if None.
      facts: JSON-ready, kept in the result's attributes.
    Returns:
      Dataset with `loss` and `change` (mean squared change of the prediction), dims `kind, component,
      t, image`, and `clean_loss`, dims `t, image`.
    Raises:
      ConfigError: a kind without fills.
    """
    config = config or SweepConfig()
    chosen = tuple(chosen or components(subject.unet))
    fills = fills or {}
    for kind in config.kinds:
        if kind != "zero" and kind not in fills:
            raise ConfigError(
                f"ablation kind {kind!r} needs fills; capture.activation_means makes those of 'mean'"
            )
    timesteps = np.asarray(timesteps, np.int32)
    plan = _Plan(subject, np.asarray(images), timesteps, key, config, fills, chosen)
    path = Path(folder) / f"{plan.key[:16]}.zarr"
    results.create(path, plan.empty(facts or {}), plan.chunks())
    plan.fill(path)
    return results.read(path)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One sweep: what is to be computed, in pieces of (kind, timestep, block of images)."""

    subject: Subject
    images: np.ndarray
    timesteps: np.ndarray
    noise_key: PRNGKey
    config: SweepConfig
    fills: PyTree
    chosen: tuple[Component, ...]

    @functools.cached_property
    def key(self) -> str:
        """Digest of everything that decides the numbers."""
        return files.digest_json(
            {
                **self.subject.digests(),
                "images": files.digest_arrays(self.images),
                "noise": files.digest_arrays(jax.random.key_data(self.noise_key)),
                "fills": files.digest_arrays(self.fills),
                "timesteps": self.timesteps.tolist(),
                "kinds": self.config.kinds,
                "components": [component.name for component in self.chosen],
                "code": files.code_digest(),
            }
        )

    @property
    def block(self) -> int:
        return min(self.config.image_block, len(self.images))

    def empty(self, facts: dict) -> xr.Dataset:
        """The labelled result before the first piece."""
        shape = (len(self.config.kinds), len(self.chosen), len(self.timesteps), len(self.images))
        full = np.full(shape, np.nan, np.float32)
        dims = ("kind", "component", "t", "image")
        return xr.Dataset(
            {
                "loss": (dims, full),
                "change": (dims, full),
                "clean_loss": (("t", "image"), full[0, 0]),
            },
            coords={
                "kind": list(self.config.kinds),
                "component": [component.name for component in self.chosen],
                "t": self.timesteps,
                "image": np.arange(len(self.images)),
                "log_snr": ("t", np.asarray(self.subject.schedule.log_snr)[self.timesteps]),
                "part": ("component", [component.kind for component in self.chosen]),
                "resolution": ("component", [component.resolution for component in self.chosen]),
                "depth": ("component", [component.depth for component in self.chosen]),
            },
            attrs={"subject": self.subject.name, "key": self.key, **facts},
        )

    def chunks(self) -> dict[str, tuple[int, ...]]:
        piece = (1, len(self.chosen), 1, self.block)
        return {"loss": piece, "change": piece, "clean_loss": (1, self.block)}

    def fill(self, path: Path) -> None:
        """Computes the pieces that are missing, with other processes if they fill the same store."""
        subject = self.subject
        engine = Engine(subject.unet, subject.schedule, subject.params, self.config.chunk)
        everything = leave_one_out(subject.identity, self.chosen)[1]
        pieces = [
            (kind, level, slice(start, min(start + self.block, len(self.images))))
            for kind in range(len(self.config.kinds))
            for level in range(len(self.timesteps))
            for start in range(0, len(self.images), self.block)
        ]
        done = lambda piece: results.written(path, "loss", (piece[0], 0, piece[1], piece[2].start))  # noqa: E731
        compute = lambda piece: self._piece(engine, everything, path, *piece)  # noqa: E731
        filling.fill(pieces, done, compute, f"sweeping {subject.name}")

    def _piece(
        self, engine: Engine, everything: Intervention, path: Path, kind: int, level: int, images: slice
    ) -> None:
        name, index = self.config.kinds[kind], np.arange(images.start, images.stop)
        stacked = everything
        if name != "zero":
            stacked = dataclasses.replace(everything, fill=fills_at(self.fills[name], level))
        # A short last block is filled up, so that it needs no program of its own.
        index = np.resize(index, self.block)
        count, t = images.stop - images.start, int(self.timesteps[level])
        found = engine.measure(stacked, self.images[index], index, t, self.noise_key)
        where = (slice(kind, kind + 1), slice(None), slice(level, level + 1), images)
        region = {"loss": where, "change": where, "clean_loss": (where[2], images)}
        put = {
            "clean_loss": found.clean_loss[None, :count],
            "change": found.change[None, :, None, :count],
            "loss": found.loss[None, :, None, :count],
        }
        results.put(path, region, put)
