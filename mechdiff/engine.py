"""Measures stacked interventions on all devices of this process, within their memory.

Work is laid out over a mesh (passes x images) of `wavefront.plan`; a device maps over its share, one pass and
one block of images at a time. Every image's numbers depend on that image alone, so they don't move with
the layout beyond float32 rounding.
"""

import dataclasses
import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mechdiff import wavefront
from mechdiff.config import UNetConfig
from mechdiff.diffusion import image_noise, q_sample
from mechdiff.interventions import Intervention
from mechdiff.schedules import NoiseSchedule
from mechdiff.types import Images, PRNGKey, PyTree
from mechdiff.unet import stages

CPU_WORKING_SET = 256 * 2**20  # bytes of activations in one pass, whose stages run in blocks that fit a cache
FREE_SHARE = 0.6  # of an accelerator's free memory that one pass may take
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # how XLA's errors begin


class Measured(NamedTuple):
    """Denoising losses of images under interventions, on the host.

    Attributes:
      loss: mean squared error of the predicted noise under each intervention.
      change: mean squared change of the prediction.
      clean_loss: without intervention.
    """

    loss: Float[np.ndarray, "interventions images"]
    change: Float[np.ndarray, "interventions images"]
    clean_loss: Float[np.ndarray, " images"]


def row_bytes(config: UNetConfig) -> int:
    """Bytes that one row keeps alive at the widest point of the forward pass: an estimate, from which a
    pass is sized before it is compiled."""
    maps, held = [], 0
    for stage in stages(config):
        output = stage.resolution**2 * stage.width * 4
        patterns = config.heads[stage.level] * stage.resolution**4 * 4 if stage.op == "attention" else 0
        held += output * (stage.push - stage.pop)
        maps.append(held + 4 * output + min(patterns, 2**20))  # attention works in blocks
    return max(maps)


def memory_limit(device: jax.Device) -> int:
    """Bytes that one pass may take on a device."""
    if device.platform == "cpu":
        return CPU_WORKING_SET
    memory = device.memory_stats() or {}
    return int(FREE_SHARE * (memory.get("bytes_limit", 8 * 2**30) - memory.get("bytes_in_use", 0)))


@functools.partial(jax.jit, static_argnames=("config", "joins", "mesh"))
def _measure(
    config: UNetConfig,
    joins: tuple[int, ...],
    mesh: Mesh,
    schedule: NoiseSchedule,
    params: PyTree,
    stacked: Intervention,
    fill: PyTree,
    x0: Float[Array, "blocks block height width channels"],
    indices: Int[Array, "blocks block"],
    t: Int[Array, ""],
    key: PRNGKey,
) -> tuple[Array, Array, Array]:
    """Loss and change `(passes, rows, blocks, block)` and clean loss `(passes, blocks, block)`."""
    everywhere, passes, images = PartitionSpec(), PartitionSpec("passes"), PartitionSpec("images")

    def local(schedule, params, stacked, fill, x0, indices, t, key):
        def block(inputs):
            x0, indices = inputs
            noise = image_noise(key, indices, x0.shape[1:])
            x_t = q_sample(schedule, x0, jnp.full(len(x0), t), noise)

            def one_pass(stacked):
                stacked = dataclasses.replace(stacked, fill=fill)
                clean, eps = wavefront.forward(config, joins, schedule, params, stacked, x_t, t)
                return _mean_square(eps - noise), _mean_square(eps - clean), _mean_square(clean - noise)

            return jax.lax.map(one_pass, stacked)

        found = jax.lax.map(block, (x0, indices))
        return tuple(jnp.moveaxis(values, 0, -2) for values in found)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, everywhere, passes, everywhere, images, images, everywhere, everywhere),
        out_specs=(
            PartitionSpec("passes", None, "images"),
            PartitionSpec("passes", None, "images"),
            PartitionSpec("passes", "images"),
        ),
        check_vma=False,
    )(schedule, params, stacked, fill, x0, indices, t, key)


def _mean_square(x: Float[Array, "*rows height width channels"]) -> Float[Array, "*rows"]:
    return jnp.mean(x * x, axis=(-3, -2, -1))


@dataclasses.dataclass
class Engine:
    """A denoiser, and how much of it runs at once.

    Attributes:
      rows: interventions x images in one pass, 0: as many as memory holds; halved when it runs out.
      devices: that share the work; empty: all of this process.
      together: interventions all join at the first stage, see `wavefront.plan`: for stacks that differ each
        time in where they join.
    """

    config: UNetConfig
    schedule: NoiseSchedule
    params: PyTree
    rows: int = 0
    devices: tuple[Any, ...] = ()
    together: bool = False

    def __post_init__(self):
        self.devices = self.devices or tuple(jax.local_devices())
        self._placed = {}

    def _on(self, mesh: Mesh) -> tuple[NoiseSchedule, PyTree]:
        """Schedule and parameters on every device of a mesh. Of that very mesh: JAX reads the layout of the
        results off the mesh of the arguments, and two of equal axis names but other shapes are mixed up."""
        if mesh not in self._placed:
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._placed[mesh] = jax.device_put((self.schedule, self.params), everywhere)
        return self._placed[mesh]

    def measure(
        self, stacked: Intervention, x0: Images, indices: Int[np.ndarray, " images"], t: int, key: PRNGKey
    ) -> Measured:
        """Losses of every image under every intervention, at one timestep, under common random numbers.

        Args:
          stacked: gates stacked; temperatures and windows stacked or shared; fills shared.
          x0: clean images in [-1, 1].
          indices: of the images: image i has the noise of `image_noise(key, i)`.
        """
        while True:
            rows, block = self._size(len(next(iter(stacked.gate.values()))), len(x0))
            try:
                return self._run(stacked, x0, indices, t, key, rows, block)
            except jax.errors.JaxRuntimeError as error:
                if OUT_OF_MEMORY not in str(error) or rows * block == 1:
                    raise
                self.rows = max(1, rows * block // 2)
                logging.warning("out of memory: %d interventions x images in a pass from now on", self.rows)

    def _size(self, interventions: int, images: int) -> tuple[int, int]:
        """Interventions in a pass and images in a block."""
        limit = self.rows or max(1, memory_limit(self.devices[0]) // row_bytes(self.config))
        rows, devices = min(interventions, limit), len(self.devices)
        if images < devices:  # then passes are what they share; a pass may round up at every stage
            share = -(-interventions // (devices // images)) + len(stages(self.config))
            rows = min(rows, share)
        return rows, max(1, min(-(-images // devices), limit // (rows + 1)))

    def _run(self, stacked, x0, indices, t, key, rows, block) -> Measured:
        wave = wavefront.plan(self.config, stacked, rows, self.together)
        blocks = -(-len(x0) // block)
        mesh = self._mesh(blocks)
        order = _padded(wave.order, mesh.shape["passes"])
        places = _padded(np.arange(blocks * block).reshape(blocks, block), mesh.shape["images"])
        places = np.minimum(places, len(x0) - 1)
        count = len(next(iter(stacked.gate.values())))
        found = _measure(
            self.config,
            wave.joins,
            mesh,
            *self._on(mesh),
            dataclasses.replace(_arranged(stacked, order, count), fill=None),
            stacked.fill,
            x0[places],
            indices[places],
            t,
            key,
        )
        loss, change, clean = (np.asarray(values) for values in found)
        put = lambda values: _scattered(values, order, count)[:, : len(x0)]  # noqa: E731
        return Measured(put(loss), put(change), clean[0].reshape(-1)[: len(x0)])

    def _mesh(self, blocks: int) -> Mesh:
        """Devices over images as far as there are blocks of them, then over passes."""
        count = len(self.devices)
        along_images = max(d for d in range(1, count + 1) if count % d == 0 and d <= blocks)
        shape = (count // along_images, along_images)
        return Mesh(np.array(self.devices).reshape(shape), ("passes", "images"))


def _padded(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Rows repeated at the end until their number divides."""
    return np.pad(rows, ((0, -len(rows) % multiple), (0, 0)), mode="edge")


def _arranged(stacked: Intervention, order: np.ndarray, count: int) -> Intervention:
    """Leaves `(passes, rows, ...)`; shared ones repeated."""

    def leaf(a, shared_rank: int):
        a = np.asarray(a)
        a = np.broadcast_to(a, (count, *a.shape)) if a.ndim == shared_rank else a
        return a[order]

    return dataclasses.replace(
        stacked,
        gate={site: leaf(a, 1) for site, a in stacked.gate.items()},
        temperature={site: leaf(a, 1) for site, a in stacked.temperature.items()},
        window=leaf(stacked.window, 1),
    )


def _scattered(values: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """Values `(passes, rows, blocks, block)` as `(interventions, images)`."""
    flat = values.reshape(order.size, -1)
    result = np.empty((count, flat.shape[1]), flat.dtype)
    result[order.ravel()] = flat
    return result
