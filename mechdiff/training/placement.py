"""Sharding of training arrays: batches over all devices, the state replicated or sharded too (FSDP)."""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mechdiff.core.config import TrainConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree

BATCH = "batch"  # the axis of the mesh that a batch is split over
SHARDED_SIZE = 4096  # an array with at least as many elements is sharded; smaller ones are replicated


def shard_specs(tree: PyTree, count: int) -> PyTree:
    """Partition of each array (or shape) of `tree` over `count` devices: large arrays of two axes or more are
    sharded along the longest axis that `count` divides, all others replicated."""

    def leaf(array: Any) -> PartitionSpec:
        axes = [axis for axis, size in enumerate(array.shape) if size % count == 0]
        if count == 1 or not axes or len(array.shape) < 2 or math.prod(array.shape) < SHARDED_SIZE:
            return PartitionSpec()
        longest = max(axes, key=lambda axis: array.shape[axis])
        return PartitionSpec(*(BATCH if axis == longest else None for axis in range(len(array.shape))))

    return jax.tree.map(leaf, tree)


class Placement(NamedTuple):
    """Shardings over all devices of all processes.

    Attributes:
      mesh: the devices, along one axis.
      everywhere: replicated on every device.
      batch: sharded along the first axis.
      fsdp: whether parameters, moments and EMA are sharded over the devices.
    """

    mesh: Mesh
    everywhere: NamedSharding
    batch: NamedSharding
    fsdp: bool = False

    def of_state(self, shapes: PyTree) -> PyTree:
        """The sharding of each array of a state.

        Raises:
          ConfigError: FSDP over devices that divide less than half of the parameters.
        """
        specs = shard_specs(shapes, self.mesh.size if self.fsdp else 1)
        if self.fsdp and self.mesh.size > 1:
            _check_spread(shapes, specs, self.mesh.size)
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)


def _check_spread(shapes: PyTree, specs: PyTree, count: int) -> None:
    large = [
        (math.prod(leaf.shape), BATCH in spec)
        for leaf, spec in zip(jax.tree.leaves(shapes), jax.tree.leaves(specs), strict=True)
        if len(leaf.shape) > 1 and math.prod(leaf.shape) >= SHARDED_SIZE
    ]
    total = sum(size for size, _ in large)
    spread = sum(size for size, divides in large if divides)
    if 2 * spread <= total:
        share = 100 * spread / total if total else 0
        raise ConfigError(
            f"train.fsdp=True can't spread the parameters over {count} devices: {share:.0f} % of them are in "
            f"arrays that {count} divides; use a number of devices that divides unet.widths, or "
            "train.fsdp=False"
        )


def data_parallel(config: TrainConfig) -> Placement:
    """Placement over all devices of all processes; the micro-batches must divide among them.

    Raises:
      ConfigError: they don't.
    """
    count = jax.device_count()
    if config.batch % (count * config.accumulate):
        processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        raise ConfigError(
            f"train.batch={config.batch} in {config.accumulate} parts does not divide among {count} devices"
            f"{processes}; use a multiple of {count * config.accumulate}"
        )
    mesh = jax.make_mesh((count,), (BATCH,), axis_types=(AxisType.Auto,))
    everywhere, batch = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(BATCH))
    return Placement(mesh, everywhere, batch, config.fsdp)
