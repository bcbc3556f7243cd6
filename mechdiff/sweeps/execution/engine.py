"""Measures stacked interventions on all devices of this process, within their memory.

A call decides how many interventions and images run at once, distributes them over the devices (`layout`),
and runs one compiled program (`passes`). An image's results depend on that image only, so the layout changes
them by float32 rounding at most.
"""

import dataclasses
import functools
import logging
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mechdiff.core import devices
from mechdiff.core.types import AnyArray, PyTree
from mechdiff.diffusion.eval_set import EvalBatch
from mechdiff.interventions.record import Intervention, stack_size
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable
from mechdiff.sweeps.execution import footprint, layout, memory, passes, placement, shared_prefix
from mechdiff.sweeps.execution.layout import REPLACEMENTS, Layout
from mechdiff.sweeps.execution.passes import Reduction, SweepLosses

CPU_WORKING_SET = 256 * 2**20  # bytes of activations in one pass; its stages run in blocks that fit a cache
CPU_MAX_ROWS = 64  # of a pass: more took up to a fifth longer, see experiments/benchmarks/README.md
CPU_WIDTHS = (32, 16, 8, 4, 2)  # of passes, tried where the working set holds fewer rows
# Stages at which interventions may join on an accelerator: with fewer, fewer kernels are compiled and tuned,
# for slightly more arithmetic. Chosen by counting, not timed; the `accelerator` benchmark compares it.
ROW_COUNTS = 6
# Elements of an array that a card's kernels can index by 32 bits. A float32 sweep of `paper` took five times
# as long as its convolutions should where passes went beyond that.
INDEXED = 2**31


class _Dealt(NamedTuple):
    """Interventions placed on devices, with the layout and the leaves that they were made from (copies of
    those arrays that could be written to)."""

    plan: Layout
    leaves: list[AnyArray]
    placed: Intervention


def memory_limit(device: Any) -> int:
    """Bytes that one pass may take on a device."""
    if device.platform == "cpu":
        return CPU_WORKING_SET
    return int(memory.FREE_SHARE * memory.free_bytes(device))


@dataclasses.dataclass
class Engine:
    """A denoiser, and how much of it runs at once.

    Attributes:
      denoiser: any `Examinable`; those with stages share prefixes of the network, see `shared_prefix`.
      rows: interventions x images in one pass; 0: as many as memory holds, on a CPU `CPU_MAX_ROWS` at most;
        halved when memory runs out.
      devices: those that share the work; empty: all of this process.
      together: all interventions join at the first stage, see `shared_prefix.plan_passes`; for stacks that
        join at other stages in every call.
      row_counts: largest number of stages at which interventions may join; 0: all stages; None: `ROW_COUNTS`
        on accelerators, all on CPUs, where another shape costs nothing and early rows cost arithmetic.
    """

    denoiser: Examinable
    rows: int = 0
    devices: tuple[Any, ...] = ()
    together: bool = False
    row_counts: int | None = None

    def __post_init__(self):
        self.devices = self.devices or tuple(jax.local_devices())
        if self.row_counts is None:
            self.row_counts = 0 if self.devices[0].platform == "cpu" else ROW_COUNTS
        self._placed: dict[Mesh, Examinable] = {}
        self._dealt: _Dealt | None = None
        self._limits: dict[tuple[int, ...], int] = {}

    def measure(self, stacked: Intervention, batch: EvalBatch) -> SweepLosses:
        """Losses of every image under every intervention, at one timestep, under common random numbers.

        Args:
          stacked: gates stacked; temperatures, patterns, directions (`add`) and windows stacked or shared;
            replacements shared by all interventions, each for all images or with a leading axis of images.
          batch: any number of images.
        """
        (loss, change), clean = self.reduce(stacked, batch)
        return SweepLosses(loss, change, clean)

    def reduce(
        self,
        stacked: Intervention,
        batch: EvalBatch,
        reduction: Reduction = passes.losses,
        *,
        per_image: PyTree = None,
        shared: PyTree = None,
    ) -> tuple[PyTree, PyTree]:
        """A function of the predictions, computed on the device, for every image under every intervention.

        Args:
          stacked, batch: as in `measure`.
          reduction: pure and hashable (a function of a module, or a frozen dataclass with `__call__`); it is
            compiled into the pass, so another one is another program. An image's results must depend on that
            image only.
          per_image: arrays passed to it for each image, leaves `(images, ...)`.
          shared: arrays passed to it for all images.
        Returns:
          Its results, on the host: leaves `(interventions, images, ...)`, and `(images, ...)`.
        """
        conditions.check(self.denoiser.network, batch.condition)  # on the host, where labels have values
        while True:
            width, block = self._size(stacked, len(batch.images))
            plan = layout.lay_out(self._plan(stacked, width), len(batch.images), block, self.devices)
            try:
                return self._run(plan, stacked, batch, reduction, per_image, shared)
            except jax.errors.JaxRuntimeError as error:
                if devices.OUT_OF_MEMORY not in str(error) or width * block == 1:
                    raise
                self.rows = max(1, width * block // 2)
                logging.warning("out of memory: %d interventions x images in a pass from now on", self.rows)

    def _run(
        self,
        plan: Layout,
        stacked: Intervention,
        batch: EvalBatch,
        reduction: Reduction,
        per_image: PyTree,
        shared: PyTree,
    ) -> tuple[PyTree, PyTree]:
        denoiser = self._on(plan.mesh)
        common, of_images = layout.split_replacements(stacked, self.denoiser.identity, denoiser.identity)
        inputs = passes.ImageInputs(batch.images, batch.indices, batch.condition, of_images, per_image)
        with jax.default_matmul_precision(devices.precision()):  # of reductions too
            changed, clean = passes.run_passes(
                denoiser,
                self._dealt_out(plan, stacked),
                layout.by_block(plan, inputs),
                passes.CommonInputs(batch.t, batch.key, common, shared),
                joins=plan.joins,
                changed_skips=plan.changed_skips,
                mesh=plan.mesh,
                reduction=reduction,
            )
        changed, clean = jax.tree.map(np.asarray, (changed, clean))
        return layout.by_intervention(plan, changed), layout.by_image(plan, clean)

    def _on(self, mesh: Mesh) -> Examinable:
        if mesh not in self._placed:
            self._placed[mesh] = placement.placed(self.denoiser, mesh)
        return self._placed[mesh]

    def _dealt_out(self, plan: Layout, stacked: Intervention) -> Intervention:
        """`layout.by_pass`, placed on the devices of a plan.

        A sweep measures the same interventions at every timestep, so they are kept: sending them takes as
        long as running a small network.
        """
        leaves = jax.tree.leaves(dataclasses.replace(stacked, **dict.fromkeys(REPLACEMENTS)))
        last = self._dealt
        if last is None or not (_alike(plan, last.plan) and _unchanged(leaves, last.leaves)):
            dealt = layout.by_pass(plan, stacked, self.denoiser.identity)
            placed = jax.device_put(dealt, NamedSharding(plan.mesh, passes.PASSES))
            copies = [leaf if isinstance(leaf, jax.Array) else np.array(leaf) for leaf in leaves]
            last = self._dealt = _Dealt(plan, copies, placed)
        return last.placed

    def forecast(self, stacked: Intervention, images: int, replacements: int = 0) -> memory.Forecast:
        """The memory that `measure` will take for `images` at once, before anything is placed or compiled.

        Args:
          replacements: bytes of replacements.
        """
        width, block = self._size(stacked, images)
        joins = self._plan(stacked, width).joins
        return memory.Forecast(
            parameters=memory.tree_bytes(self.denoiser.params),
            one_pass=footprint.pass_bytes(self.denoiser.network, joins, block),
            smallest_pass=footprint.pass_bytes(self.denoiser.network, (1,) + (0,) * (len(joins) - 1)),
            replacements=replacements,
            devices=len(self.devices),
            rows=sum(joins) * block,
            usable=memory.usable_bytes(),
        )

    def _plan(self, stacked: Intervention, width: int) -> shared_prefix.PassPlan:
        return shared_prefix.plan_passes(
            self.denoiser.network, stacked, width, together=self.together, counts=self.row_counts or 0
        )

    def _size(self, stacked: Intervention, images: int) -> tuple[int, int]:
        """Interventions in a pass and images in a block."""
        interventions, device_count = stack_size(stacked), len(self.devices)
        limit = self.rows or self._limit(stacked)
        width = min(interventions, limit)
        if images < device_count:  # then devices share passes
            width = min(width, math.ceil(interventions / (device_count // images)))
        largest_block, of_device = max(1, limit // (width + 1)), math.ceil(images / device_count)
        blocks = math.ceil(of_device / largest_block)
        return width, math.ceil(of_device / blocks)  # as few blocks as possible, equally full

    @functools.cached_property
    def _rows_held(self) -> int:
        network, device = self.denoiser.network, self.devices[0]
        held = memory_limit(device) // footprint.row_bytes(network)
        if device.platform == "cpu":
            return max(1, min(held, CPU_MAX_ROWS))
        return max(1, min(held, INDEXED // footprint.largest_map_size(network) - 1))  # beside a clean row

    def _limit(self, stacked: Intervention) -> int:
        """Rows of a pass that memory holds.

        With few rows, the clean ones are a large part of the work, and the others join early: if a CPU's
        working set is too small, more rows are taken if memory is free. It is decided once for stacks that
        join alike, so that later use of memory does not change the program.
        """
        limit = self._rows_held
        if self.devices[0].platform != "cpu" or limit >= CPU_WIDTHS[0]:
            return limit
        joins = self._plan(stacked, CPU_WIDTHS[0]).joins
        if joins not in self._limits:
            copies = (1 + len(self.devices)) * memory.tree_bytes(self.denoiser.params)
            room = memory.FREE_SHARE * (memory.available_bytes() - copies) / len(self.devices)
            self._limits[joins] = max(limit, self._largest_width_within(room, stacked))
        return self._limits[joins]

    def _largest_width_within(self, room: float, stacked: Intervention) -> int:
        """The largest of `CPU_WIDTHS` whose pass takes at most `room` bytes; 1 if none does."""
        for width in CPU_WIDTHS:
            if footprint.pass_bytes(self.denoiser.network, self._plan(stacked, width).joins) <= room:
                return width
        return 1


def _alike(plan: Layout, other: Layout) -> bool:
    """Whether two layouts place interventions on the devices in the same way."""
    return plan.mesh == other.mesh and np.array_equal(plan.order, other.order)


def _unchanged(leaves: list[AnyArray], before: list[AnyArray]) -> bool:
    """Whether arrays are as before: JAX arrays the same objects; NumPy arrays, which can be written to,
    equal."""
    return len(leaves) == len(before) and all(
        leaf is other if isinstance(leaf, jax.Array) else np.array_equal(leaf, other)
        for leaf, other in zip(leaves, before, strict=True)
    )
