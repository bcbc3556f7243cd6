"""Sweeps: components x kinds x timesteps x images, one value each, under common random numbers.

The clean and the changed arm share image, noise and timestep. Interventions are arguments of one
compiled program, never closures of it, so a thousand of them compile once.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from mechdiff import files, results, runlog
from mechdiff.capture import fills_at
from mechdiff.config import SweepConfig, UNetConfig
from mechdiff.diffusion import image_noise, q_sample
from mechdiff.errors import ConfigError
from mechdiff.interventions import STACKED, Component, Intervention, leave_one_out, rows
from mechdiff.schedules import NoiseSchedule
from mechdiff.types import Images, PRNGKey, PyTree
from mechdiff.unet import components, denoise, stages

CPU_WORKING_SET = 16 * 2**20  # bytes; larger ones leave a CPU's cache and slow it down


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


@functools.partial(jax.jit, static_argnums=0)
def clean_pass(unet, params, identity, schedule, x0, t, key, indices):
    """Noisy images, their noise, and the untouched prediction, at one timestep."""
    noise = image_noise(key, indices, x0.shape[1:])
    at = jnp.full(x0.shape[0], t)
    x_t = q_sample(schedule, x0, at, noise)
    return x_t, noise, denoise(unet, schedule, params, identity, x_t, at)


@functools.partial(jax.jit, static_argnums=0)
def changed_pass(
    unet: UNetConfig,
    schedule: NoiseSchedule,
    params: PyTree,
    stacked: Intervention,
    x_t: Images,
    t: Any,
    noise: Images,
    clean: Images,
) -> tuple[Float[Array, "interventions batch"], Float[Array, "interventions batch"]]:
    """Denoising loss, and mean squared change of the prediction, under each stacked intervention."""
    at = jnp.full(x_t.shape[0], t)

    def one(intervention: Intervention) -> tuple[Array, Array]:
        eps = denoise(unet, schedule, params, intervention, x_t, at)
        return _mean_square(eps - noise), _mean_square(eps - clean)

    return jax.vmap(one, in_axes=(STACKED,))(stacked)


def _mean_square(x: Images) -> Float[Array, " batch"]:
    return jnp.mean(x * x, axis=(1, 2, 3))


def chunk_size(unet: UNetConfig, batch: int) -> int:
    """Interventions that run together: as many as keep the working set in cache (CPU) or in an eighth
    of the free memory (accelerators). An estimate from the network's largest activations."""
    row = max(stage.resolution**2 * stage.width * 4 for stage in stages(unet)) * 4
    heads = [
        unet.heads[stage.level] * stage.resolution**4 * 4 for stage in stages(unet) if stage.op == "attention"
    ]
    row = max(row, 2 * max(heads, default=0))
    device = jax.devices()[0]
    limit = CPU_WORKING_SET
    if device.platform != "cpu":
        memory = device.memory_stats() or {}
        limit = (memory.get("bytes_limit", 8 * 2**30) - memory.get("bytes_in_use", 0)) // 8
    return max(1, limit // (row * batch))


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
                "params": files.digest_arrays(self.subject.params),
                "unet": dataclasses.asdict(self.subject.unet),
                "schedule": files.digest_arrays(self.subject.schedule.log_snr),
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
        """Computes the pieces that are missing."""
        todo = results.missing(path, "loss").any(axis=1)  # kind, t, image
        starts = range(0, len(self.images), self.block)
        pieces = [
            (level, start)
            for level in range(len(self.timesteps))
            for start in starts
            if todo[:, level, start : start + self.block].any()
        ]
        total = len(self.timesteps) * len(starts)
        with runlog.progress(
            total, total - len(pieces), f"sweeping {self.subject.name}", unit="piece"
        ) as bar:
            for level, start in pieces:
                stop = min(start + self.block, len(self.images))
                self._piece(path, level, slice(start, stop), todo[:, level, start:stop].any(axis=1))
                bar.update()

    def _piece(self, path: Path, level: int, images: slice, todo: np.ndarray) -> None:
        subject, t = self.subject, self.timesteps[level]
        index = np.arange(images.start, images.start + self.block) % len(self.images)  # padded to one shape
        x0, count = self.images[index], images.stop - images.start
        x_t, noise, clean = clean_pass(
            subject.unet, subject.params, subject.identity, subject.schedule, x0, t, self.noise_key, index
        )
        clean_loss = np.asarray(_mean_square(clean - noise))[:count]
        for row in np.flatnonzero(todo):
            kind = self.config.kinds[row]
            fills = None if kind == "zero" else fills_at(self.fills[kind], level)
            stacked = leave_one_out(subject.identity, self.chosen, kind, fills)[1]
            loss, change = (values[:, :count] for values in self._chunked(stacked, x_t, t, noise, clean))
            where = (slice(row, row + 1), slice(None), slice(level, level + 1), images)
            region = {"loss": where, "change": where, "clean_loss": (where[2], images)}
            put = {
                "clean_loss": clean_loss[None],
                "change": change[None, :, None],
                "loss": loss[None, :, None],
            }
            results.put(path, region, put)

    def _chunked(self, stacked: Intervention, x_t, t, noise, clean) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.chosen)
        subject, found = self.subject, []
        size = min(self.config.chunk or chunk_size(subject.unet, self.block), count)
        network = subject.unet, subject.schedule, subject.params
        for start in range(0, count, size):
            part = rows(stacked, *_full_rows(start, size, count))
            found.append(changed_pass(*network, part, x_t, t, noise, clean))
        # The last chunk is moved back to keep one shape: drop what it repeats.
        overlap = -count % size
        return tuple(
            np.concatenate([np.asarray(c[k])[overlap if c is found[-1] else 0 :] for c in found])
            for k in (0, 1)
        )


def _full_rows(start: int, size: int, count: int) -> tuple[int, int]:
    start = min(start, count - size)
    return start, start + size
