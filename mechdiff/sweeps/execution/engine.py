"""Measures stacked interventions on all devices of this process, within their memory.

Work is laid out over a mesh (passes x images) of `shared_prefix.plan_passes`; a device maps over its share,
one pass and one block of images at a time. Every image's numbers depend on that image alone, so they don't
move with the layout beyond float32 rounding.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mechdiff.core import devices
from mechdiff.core.config import UNetConfig
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.components import has_rows
from mechdiff.interventions.record import Intervention
from mechdiff.models import conditions
from mechdiff.sweeps.execution import memory, shared_prefix

CPU_WORKING_SET = 256 * 2**20  # bytes of activations in one pass, whose stages run in blocks that fit a cache
CPU_ROWS = (32, 16, 8, 4, 2)  # of a pass, the first that memory holds, where the working set is too small
FILLS = ("replacement", "pattern_replacement")  # of an intervention: what may differ between images
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # how XLA's errors begin


class SweepLosses(NamedTuple):
    """Denoising losses of images under interventions, on the host.

    Attributes:
      loss: mean squared error of the predicted noise under each intervention.
      change: mean squared change of the prediction.
      clean_loss: without intervention.
    """

    loss: Float[np.ndarray, "interventions images"]
    change: Float[np.ndarray, "interventions images"]
    clean_loss: Float[np.ndarray, " images"]


class PassOutputs(NamedTuple):
    """What a reduction sees of one pass, on the device.

    Attributes:
      schedule, t: of the pass.
      x0, noise, x_t: clean images, their noise, and what the network was given.
      clean: predicted noise without intervention.
      eps: predicted noise under each intervention of the pass.
      own: what was given for each image (leaves `(batch, ...)`), None if nothing.
      shared: what was given for all, None if nothing.
    """

    schedule: NoiseSchedule
    t: Int[Array, ""]
    x0: Float[Array, "batch height width channels"]
    noise: Float[Array, "batch height width channels"]
    x_t: Float[Array, "batch height width channels"]
    clean: Float[Array, "batch height width channels"]
    eps: Float[Array, "interventions batch height width channels"]
    own: PyTree
    shared: PyTree


Reduction = Callable[
    [PassOutputs], tuple[PyTree, PyTree]
]  # leaves (interventions, batch, ...) and (batch, ...)


def losses(seen: PassOutputs) -> tuple[tuple[Array, Array], Array]:
    """Loss and change under each intervention, and the clean loss: see `Measured`."""
    found = _mean_square(seen.eps - seen.noise), _mean_square(seen.eps - seen.clean)
    return found, _mean_square(seen.clean - seen.noise)


def memory_limit(device: Any) -> int:
    """Bytes that one pass may take on a device."""
    if device.platform == "cpu":
        return CPU_WORKING_SET
    return int(memory.FREE_SHARE * memory.free_bytes(device))


@functools.partial(jax.jit, static_argnames=("config", "joins", "mesh", "reduce"))
def _measure(
    config: UNetConfig,
    joins: tuple[int, ...],
    mesh: Mesh,
    schedule: NoiseSchedule,
    params: PyTree,
    stacked: Intervention,
    replacements: tuple[dict[str, PyTree], dict[str, PyTree]],
    x0: Float[Array, "blocks block height width channels"],
    indices: Int[Array, "blocks block"],
    t: Int[Array, ""],
    key: PRNGKey,
    own: PyTree = None,
    shared: PyTree = None,
    reduce: Reduction = losses,
    condition: PyTree = None,
) -> tuple[PyTree, PyTree]:
    """What `reduce` gives: leaves `(passes, rows, blocks, block, ...)` and `(passes, blocks, block, ...)`.

    Args:
      fills: `fill` and `pattern_fill` of all images alike, and those of each image, `(blocks, block, ...)`.
    """
    everywhere, passes, images = PartitionSpec(), PartitionSpec("passes"), PartitionSpec("images")

    def local(schedule, params, stacked, replacements, x0, indices, t, key, own, shared, condition):
        def block(inputs):
            own_fills, x0, indices, own, condition = inputs
            noise = image_noise(key, indices, x0.shape[1:])
            x_t = q_sample(schedule, x0, jnp.full(len(x0), t), noise)

            def one_pass(stacked):
                stacked = dataclasses.replace(
                    stacked, **{k: replacements[0][k] | own_fills[k] for k in FILLS}
                )
                clean, eps = shared_prefix.forward(
                    config, joins, schedule, params, stacked, x_t, t, condition
                )
                return reduce(PassOutputs(schedule, t, x0, noise, x_t, clean, eps, own, shared))

            return jax.lax.map(one_pass, stacked)

        changed, clean = jax.lax.map(block, (replacements[1], x0, indices, own, condition))
        behind = lambda tree, place: jax.tree.map(lambda a: jnp.moveaxis(a, 0, place), tree)
        return behind(changed, 2), behind(clean, 1)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            *(everywhere, everywhere, passes, (everywhere, images), images, images),
            *(everywhere, everywhere, images, everywhere, images),
        ),
        out_specs=(PartitionSpec("passes", None, "images"), PartitionSpec("passes", "images")),
        check_vma=False,
    )(schedule, params, stacked, replacements, x0, indices, t, key, own, shared, condition)


def _mean_square(x: Float[Array, "*rows height width channels"]) -> Float[Array, "*rows"]:
    return jnp.mean(x * x, axis=(-3, -2, -1))


@dataclasses.dataclass
class Engine:
    """A denoiser, and how much of it runs at once.

    Attributes:
      rows: interventions x images in one pass, 0: as many as memory holds; halved when it runs out.
      devices: that share the work; empty: all of this process.
      together: interventions all join at the first stage, see `shared_prefix.plan_passes`: for stacks that
        differ each time in where they join.
    """

    config: UNetConfig
    schedule: NoiseSchedule
    params: PyTree
    rows: int = 0
    devices: tuple[Any, ...] = ()
    together: bool = False

    def __post_init__(self):
        self.devices = self.devices or tuple(jax.local_devices())
        self._placed, self._limits = {}, {}

    def _on(self, mesh: Mesh) -> tuple[NoiseSchedule, PyTree]:
        """Schedule and parameters on every device of a mesh. Of that very mesh: JAX reads the layout of the
        results off the mesh of the arguments, and two of equal axis names but other shapes are mixed up."""
        if mesh not in self._placed:
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._placed[mesh] = jax.device_put((self.schedule, self.params), everywhere)
        return self._placed[mesh]

    def measure(
        self,
        stacked: Intervention,
        x0: Images,
        indices: Int[np.ndarray, " images"],
        t: int,
        key: PRNGKey,
        condition: PyTree = None,
    ) -> SweepLosses:
        """Losses of every image under every intervention, at one timestep, under common random numbers.

        Args:
          stacked: gates stacked; temperatures, patterns and windows stacked or shared; fills and pattern
            fills shared by all interventions, each for all images or with a leading axis of images.
          x0: clean images in [-1, 1].
          indices: of the images: image i has the noise of `image_noise(key, i)`.
          condition: of the images, leaves `(images, ...)`.
        """
        (loss, change), clean = self.reduce(stacked, x0, indices, t, key, condition=condition)
        return SweepLosses(loss, change, clean)

    def reduce(
        self,
        stacked: Intervention,
        x0: Images,
        indices: Int[np.ndarray, " images"],
        t: int,
        key: PRNGKey,
        reduce: Reduction = losses,
        own: PyTree = None,
        shared: PyTree = None,
        condition: PyTree = None,
    ) -> tuple[PyTree, PyTree]:
        """Any function of the predictions, taken on the device, for every image under every intervention.

        Args:
          stacked, x0, indices, t, key, condition: as in `measure`.
          reduce: pure and hashable (a function of a module, or a frozen dataclass with `__call__`): it is
            compiled into the pass, and another one is another program. Every image's results depend on that
            image alone.
          own: arrays given to it for each image, leaves `(images, ...)`.
          shared: arrays given to it for all of them.
        Returns:
          What it returns, on the host: leaves `(interventions, images, ...)`, and `(images, ...)`.
        """
        conditions.resolve(self.config, condition)  # on the host, where labels can be looked at
        while True:
            rows, block = self._size(stacked, len(x0))
            try:
                given = (own, shared, condition)
                return self._run(stacked, x0, indices, t, key, rows, block, reduce, *given)
            except jax.errors.JaxRuntimeError as error:
                if OUT_OF_MEMORY not in str(error) or rows * block == 1:
                    raise
                self.rows = max(1, rows * block // 2)
                logging.warning("out of memory: %d interventions x images in a pass from now on", self.rows)

    def forecast(self, stacked: Intervention, images: int, kept: int = 0) -> memory.Forecast:
        """What `measure` of `images` at once will take, before anything is placed or compiled.

        Args:
          kept: bytes of fills.
        """
        rows, block = self._size(stacked, images)
        joins = shared_prefix.plan_passes(self.config, stacked, rows, self.together).joins
        one_pass = memory.pass_bytes(self.config, joins, block)
        least = memory.pass_bytes(self.config, (1, *[0] * (len(joins) - 1)))
        parameters, devices = memory.tree_bytes(self.params), len(self.devices)
        free = memory.reachable_bytes()
        return memory.Forecast(parameters, one_pass, least, kept, devices, sum(joins) * block, free)

    def _size(self, stacked: Intervention, images: int) -> tuple[int, int]:
        """Interventions in a pass and images in a block."""
        interventions, devices = len(next(iter(stacked.gate.values()))), len(self.devices)
        limit = self.rows or self._limit(stacked)
        rows = min(interventions, limit)
        if images < devices:  # then passes are what they share
            rows = min(rows, -(-interventions // (devices // images)))
        return rows, max(1, min(-(-images // devices), limit // (rows + 1)))

    @functools.cached_property
    def _rows_held(self) -> int:
        return max(1, memory_limit(self.devices[0]) // memory.row_bytes(self.config))

    def _limit(self, stacked: Intervention) -> int:
        """Rows of a pass that memory holds. With few, the clean rows are a large part of the work, and the
        others join early: where the working set of a CPU is too small, more are taken if memory is free for
        them. Decided once for stacks that join alike: what else takes memory later changes no program."""
        limit = self._rows_held
        if self.devices[0].platform != "cpu" or limit >= CPU_ROWS[0]:
            return limit
        joins = lambda n: shared_prefix.plan_passes(self.config, stacked, n, self.together).joins
        if (shape := joins(CPU_ROWS[0])) not in self._limits:
            copies = (1 + len(self.devices)) * memory.tree_bytes(self.params)
            room = memory.FREE_SHARE * (memory.available_bytes() - copies) / len(self.devices)
            fit = (n for n in CPU_ROWS if memory.pass_bytes(self.config, joins(n)) <= room)
            self._limits[shape] = max(limit, next(fit, 1))
        return self._limits[shape]

    def _run(
        self, stacked, x0, indices, t, key, rows, block, reduce, own, shared, condition
    ) -> tuple[PyTree, PyTree]:
        wave = shared_prefix.plan_passes(self.config, stacked, rows, self.together)
        blocks = -(-len(x0) // block)
        mesh = self._mesh(blocks)
        order = _padded(wave.order, mesh.shape["passes"])
        places = _padded(np.arange(blocks * block).reshape(blocks, block), mesh.shape["images"])
        places = np.minimum(places, len(x0) - 1)
        count = len(next(iter(stacked.gate.values())))
        at_places = lambda a: np.asarray(a)[places]
        with jax.default_matmul_precision(devices.precision()):  # of reductions too
            found = _measure(
                self.config,
                wave.joins,
                mesh,
                *self._on(mesh),
                dataclasses.replace(
                    _arranged(stacked, order, count), replacement=None, pattern_replacement=None
                ),
                (_fills(stacked, False), jax.tree.map(at_places, _fills(stacked, True))),
                x0[places],
                indices[places],
                t,
                key,
                jax.tree.map(at_places, own),
                shared,
                reduce,
                jax.tree.map(at_places, condition),
            )
        changed, clean = jax.tree.map(np.asarray, found)
        whole = lambda a: a[0].reshape(-1, *a.shape[3:])[: len(x0)]
        put = lambda a: _scattered(a, order, count)[:, : len(x0)]
        return jax.tree.map(put, changed), jax.tree.map(whole, clean)

    def _mesh(self, blocks: int) -> Mesh:
        """Devices over images as far as there are blocks of them, then over passes."""
        count = len(self.devices)
        along_images = max(d for d in range(1, count + 1) if count % d == 0 and d <= blocks)
        shape = (count // along_images, along_images)
        return Mesh(np.array(self.devices).reshape(shape), ("passes", "images"))


def _padded(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Rows repeated at the end until their number divides."""
    return np.pad(rows, ((0, -len(rows) % multiple), (0, 0)), mode="edge")


def _fills(stacked: Intervention, of_images: bool) -> dict[str, PyTree]:
    """The fills that differ between images, or those that don't."""
    pick = lambda replacements: {
        site: a for site, a in replacements.items() if has_rows(site, a) == of_images
    }
    return {name: pick(getattr(stacked, name)) for name in FILLS}


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
        pattern={site: leaf(a, 1) for site, a in stacked.pattern.items()},
        window=leaf(stacked.window, 1),
    )


def _scattered(values: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """Values `(passes, rows, blocks, block, ...)` as `(interventions, images, ...)`."""
    flat = values.reshape(order.size, -1, *values.shape[4:])
    result = np.empty((count, *flat.shape[1:]), flat.dtype)
    result[order.ravel()] = flat
    return result
