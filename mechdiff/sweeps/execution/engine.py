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
from mechdiff.core.types import AnyArray, Images, PRNGKey, PyTree
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import NoiseSchedule
from mechdiff.interventions.record import Intervention
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import memory, shared_prefix

CPU_WORKING_SET = 256 * 2**20  # bytes of activations in one pass, whose stages run in blocks that fit a cache
CPU_ROWS = (32, 16, 8, 4, 2)  # of a pass, the first that memory holds, where the working set is too small
REPLACEMENTS = ("replacement", "pattern_replacement")  # of an intervention: what may differ between images
PATTERN_RANK = 3  # heads, queries, keys
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


def losses(outputs: PassOutputs) -> tuple[tuple[Array, Array], Array]:
    """Loss and change under each intervention, and the clean loss: see `SweepLosses`."""
    ablated = _mean_square(outputs.eps - outputs.noise), _mean_square(outputs.eps - outputs.clean)
    return ablated, _mean_square(outputs.clean - outputs.noise)


def memory_limit(device: Any) -> int:
    """Bytes that one pass may take on a device."""
    if device.platform == "cpu":
        return CPU_WORKING_SET
    return int(memory.FREE_SHARE * memory.free_bytes(device))


@functools.partial(jax.jit, static_argnames=("joins", "mesh", "reduce"))
def _measure(
    denoiser: Examinable,
    joins: tuple[int, ...],
    mesh: Mesh,
    stacked: Intervention,
    replacements: tuple[dict[str, PyTree], dict[str, PyTree]],
    x0: Float[Array, "blocks block height width channels"],
    indices: Int[Array, "blocks block"],
    t: Int[Array, ""],
    key: PRNGKey,
    condition: PyTree,
    own: PyTree,
    shared: PyTree,
    reduce: Reduction,
) -> tuple[PyTree, PyTree]:
    """What `reduce` gives: leaves `(passes, rows, blocks, block, ...)` and `(passes, blocks, block, ...)`.

    Args:
      replacements: `replacement` and `pattern_replacement` of all images alike, and those of each image,
        `(blocks, block, ...)`.
      condition, own: of each image, leaves `(blocks, block, ...)`.
    """
    everywhere, passes, images = PartitionSpec(), PartitionSpec("passes"), PartitionSpec("images")

    def local(denoiser, stacked, replacements, x0, indices, t, key, condition, own, shared):
        schedule = denoiser.schedule

        def block(inputs):
            of_images, x0, indices, condition, own = inputs
            noise = image_noise(key, indices, x0.shape[1:])
            x_t = q_sample(schedule, x0, jnp.full(len(x0), t), noise)

            def one_pass(stacked):
                both = {name: replacements[0][name] | of_images[name] for name in REPLACEMENTS}
                stacked = dataclasses.replace(stacked, **both)
                clean, eps = shared_prefix.forward(denoiser, joins, stacked, x_t, t, condition)
                return reduce(PassOutputs(schedule, t, x0, noise, x_t, clean, eps, own, shared))

            return jax.lax.map(one_pass, stacked)

        changed, clean = jax.lax.map(block, (replacements[1], x0, indices, condition, own))
        # `map` puts the axis of blocks first; it belongs where the images are sharded.
        changed = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 2), changed)
        return changed, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), clean)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            *(everywhere, passes, (everywhere, images), images, images),
            *(everywhere, everywhere, images, images, everywhere),
        ),
        out_specs=(PartitionSpec("passes", None, "images"), PartitionSpec("passes", "images")),
        check_vma=False,
    )(denoiser, stacked, replacements, x0, indices, t, key, condition, own, shared)


def _mean_square(x: Float[Array, "*rows height width channels"]) -> Float[Array, "*rows"]:
    return jnp.mean(x * x, axis=(-3, -2, -1))


@dataclasses.dataclass
class Engine:
    """A denoiser, and how much of it runs at once.

    Attributes:
      denoiser: any `Examinable`; those with stages share prefixes of the network, see `shared_prefix`.
      rows: interventions x images in one pass, 0: as many as memory holds; halved when it runs out.
      devices: that share the work; empty: all of this process.
      together: interventions all join at the first stage, see `shared_prefix.plan_passes`: for stacks that
        differ each time in where they join.
    """

    denoiser: Examinable
    rows: int = 0
    devices: tuple[Any, ...] = ()
    together: bool = False

    def __post_init__(self):
        self.devices = self.devices or tuple(jax.local_devices())
        self._placed, self._limits = {}, {}

    def _on(self, mesh: Mesh) -> Examinable:
        """The denoiser on every device of a mesh. Of that very mesh: JAX reads the layout of the
        results off the mesh of the arguments, and two of equal axis names but other shapes are mixed up."""
        if mesh not in self._placed:
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._placed[mesh] = jax.device_put(self.denoiser, everywhere)
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
          stacked: gates stacked; temperatures, patterns, directions (`add`) and windows stacked or shared;
            replacements shared by all interventions, each for all images or with a leading axis of images.
          x0: clean images in [-1, 1].
          indices: of the images: image i has the noise of `image_noise(key, i)`.
          condition: what each image is denoised under, leaves `(images, ...)`; None: nothing.
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
        conditions.check(self.denoiser.network, condition)  # on the host, where labels can be looked at
        while True:
            rows, block = self._size(stacked, len(x0))
            try:
                inputs = condition, own, shared, reduce
                return self._run(stacked, x0, indices, t, key, (rows, block), inputs)
            except jax.errors.JaxRuntimeError as error:
                if OUT_OF_MEMORY not in str(error) or rows * block == 1:
                    raise
                self.rows = max(1, rows * block // 2)
                logging.warning("out of memory: %d interventions x images in a pass from now on", self.rows)

    def forecast(self, stacked: Intervention, images: int, kept: int = 0) -> memory.Forecast:
        """What `measure` of `images` at once will take, before anything is placed or compiled.

        Args:
          kept: bytes of replacements.
        """
        rows, block = self._size(stacked, images)
        joins = shared_prefix.plan_passes(self.denoiser.network, stacked, rows, self.together).joins
        one_pass = memory.pass_bytes(self.denoiser.network, joins, block)
        least = memory.pass_bytes(self.denoiser.network, (1, *[0] * (len(joins) - 1)))
        parameters, devices = memory.tree_bytes(self.denoiser.params), len(self.devices)
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
        return max(1, memory_limit(self.devices[0]) // memory.row_bytes(self.denoiser.network))

    def _limit(self, stacked: Intervention) -> int:
        """Rows of a pass that memory holds. With few, the clean rows are a large part of the work, and the
        others join early: where the working set of a CPU is too small, more are taken if memory is free for
        them. Decided once for stacks that join alike: what else takes memory later changes no program."""
        limit = self._rows_held
        if self.devices[0].platform != "cpu" or limit >= CPU_ROWS[0]:
            return limit

        def joins(rows: int) -> tuple[int, ...]:
            return shared_prefix.plan_passes(self.denoiser.network, stacked, rows, self.together).joins

        if (shape := joins(CPU_ROWS[0])) not in self._limits:
            copies = (1 + len(self.devices)) * memory.tree_bytes(self.denoiser.params)
            room = memory.FREE_SHARE * (memory.available_bytes() - copies) / len(self.devices)
            fit = (rows for rows in CPU_ROWS if memory.pass_bytes(self.denoiser.network, joins(rows)) <= room)
            self._limits[shape] = max(limit, next(fit, 1))
        return self._limits[shape]

    def _run(self, stacked, x0, indices, t, key, size, inputs) -> tuple[PyTree, PyTree]:
        (rows, block), (condition, own, shared, reduce) = size, inputs
        plan = shared_prefix.plan_passes(self.denoiser.network, stacked, rows, self.together)
        blocks = -(-len(x0) // block)
        mesh = self._mesh(blocks)
        order = _padded(plan.order, mesh.shape["passes"])
        places = _padded(np.arange(blocks * block).reshape(blocks, block), mesh.shape["images"])
        places = np.minimum(places, len(x0) - 1)
        count = len(next(iter(stacked.gate.values())))

        def at_places(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: np.asarray(leaf)[places], tree)

        with jax.default_matmul_precision(devices.precision()):  # of reductions too
            changed, clean = _measure(
                self._on(mesh),
                plan.joins,
                mesh,
                self._arranged(stacked, order, count),
                (self._replacements(stacked, False), at_places(self._replacements(stacked, True))),
                x0[places],
                indices[places],
                t,
                key,
                at_places(condition),
                at_places(own),
                shared,
                reduce,
            )
        changed, clean = jax.tree.map(np.asarray, (changed, clean))
        clean = jax.tree.map(lambda leaf: leaf[0].reshape(-1, *leaf.shape[3:])[: len(x0)], clean)
        return jax.tree.map(lambda leaf: _scattered(leaf, order, count)[:, : len(x0)], changed), clean

    def _rank(self, name: str, site: str) -> int:
        """Axes of one row of what replaces the activation, or the pattern, of a site."""
        return np.ndim(self.denoiser.identity.replacement[site]) if name != REPLACEMENTS[1] else PATTERN_RANK

    def _replacements(self, stacked: Intervention, of_images: bool) -> dict[str, PyTree]:
        """The replacements that differ between images, or those that don't."""

        def picked(name: str) -> PyTree:
            return {
                site: leaf
                for site, leaf in getattr(stacked, name).items()
                if (np.ndim(leaf) > self._rank(name, site)) == of_images
            }

        return {name: picked(name) for name in REPLACEMENTS}

    def _arranged(self, stacked: Intervention, order: np.ndarray, count: int) -> Intervention:
        """All but the replacements, with leaves `(passes, rows, ...)`; shared ones repeated."""

        def leaf(values: AnyArray, shared_rank: int) -> np.ndarray:
            values = np.asarray(values)
            if values.ndim == shared_rank:
                values = np.broadcast_to(values, (count, *values.shape))
            return values[order]

        units = {
            name: {site: leaf(values, 1) for site, values in getattr(stacked, name).items()}
            for name in ("gate", "temperature", "pattern")
        }
        add = {site: leaf(values, self._rank("add", site)) for site, values in stacked.add.items()}
        window = leaf(stacked.window, 1)
        return dataclasses.replace(
            stacked, **units, add=add, window=window, replacement=None, pattern_replacement=None
        )

    def _mesh(self, blocks: int) -> Mesh:
        """Devices over images as far as there are blocks of them, then over passes."""
        count = len(self.devices)
        along_images = max(d for d in range(1, count + 1) if count % d == 0 and d <= blocks)
        shape = (count // along_images, along_images)
        return Mesh(np.array(self.devices).reshape(shape), ("passes", "images"))


def _padded(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Rows repeated at the end until their number divides."""
    return np.pad(rows, ((0, -len(rows) % multiple), (0, 0)), mode="edge")


def _scattered(values: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """Values `(passes, rows, blocks, block, ...)` as `(interventions, images, ...)`."""
    flat = values.reshape(order.size, -1, *values.shape[4:])
    result = np.empty((count, *flat.shape[1:]), flat.dtype)
    result[order.ravel()] = flat
    return result
