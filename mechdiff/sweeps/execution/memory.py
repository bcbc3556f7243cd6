"""Estimates of the memory that a sweep takes, before it is compiled, and the memory available.

Estimates are from the shapes of activations. On a CPU the stages of a pass run a few rows at a time
(`shared_prefix`), so a pass holds what is between its stages: the rows of the stream and of the skips. On
accelerators stages run whole, and the memory of all devices of this process counts.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mechdiff.core import containers, devices
from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree
from mechdiff.interventions.gates import CAPTURED
from mechdiff.models import conditions
from mechdiff.models.stages import stages
from mechdiff.models.traced.denoiser import TracedNetwork
from mechdiff.models.unet import forward, init_shapes

Network = UNetConfig | TracedNetwork  # the part of a denoiser that is static in compiled programs

FREE_SHARE = 0.6  # share of the free memory that all devices together may take at once
HOST_OVERHEAD = 2**30  # bytes of Python, JAX, compiled programs and results
LIVE_MAPS = 4  # feature maps that are alive at once inside a stage
LOOP_COPIES = 3  # copies of a stage's inputs and outputs that XLA holds for the loop over rows; fitted
GRAD_MAPS = 8  # feature maps that a stage keeps for its gradient
DEFAULT_DEVICE_BYTES = 8 * 2**30  # bytes of an accelerator that does not report its memory
CPU_BLOCK = 2**20  # bytes of a stage's input or output at once on a CPU; 0.5 to 2 MiB were equally fast
GIB = 2**30


def available_bytes() -> int:
    """Bytes that new work may take: free memory of accelerators, or of this machine within its limits."""
    if accelerated():
        return sum(free_bytes(device) for device in jax.local_devices())
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, containers.memory_left())


def reachable_bytes() -> int:
    """Bytes that this process may use in all: those that it holds and those that are free."""
    if accelerated():
        return sum(_limit_of(device) for device in jax.local_devices())
    try:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        held = 0
    return held + available_bytes()


def accelerated() -> bool:
    """Whether this process computes on a GPU or TPU."""
    return jax.default_backend() != "cpu"


def free_bytes(device: Any) -> int:
    """Bytes of an accelerator that new work may take."""
    return max(0, _limit_of(device) - (device.memory_stats() or {}).get("bytes_in_use", 0))


def _limit_of(device: Any) -> int:
    return (device.memory_stats() or {}).get("bytes_limit", DEFAULT_DEVICE_BYTES)


def row_bytes(config: Network) -> int:
    """Estimated bytes that one row keeps alive at the widest point of the forward pass, if stages run whole.

    The size of a pass is chosen by it, before it is compiled.
    """
    if not isinstance(config, UNetConfig):
        return config.row_bytes
    if accelerated():
        return _whole_stages(config, (1, *[0] * (len(stages(config)) - 1))) // 2
    maps, held = [], 0
    for stage in stages(config):
        output = stage.resolution**2 * stage.width * 4
        patterns = stage.heads * stage.resolution**4 * 4 if stage.op == "attention" else 0
        if stage.push:
            held += output
        if stage.pop:
            held -= output
        maps.append(held + 4 * output + min(patterns, 2**20))  # attention works in blocks
    return max(maps)


def row_numbers(config: Network) -> int:
    """Numbers in the largest array that a convolution takes or gives for one row; of a traced function, not
    more than it keeps alive."""
    if not isinstance(config, UNetConfig):
        return config.row_bytes // 4
    return max(max(flow.entering, flow.out) // 4 for flow in _flows(config))


class _Flow(NamedTuple):
    """Bytes of one row at a stage: what enters (the stream, and a skip beside it), what leaves, what is taken
    off the skips, and what lives at the widest point inside."""

    entering: int
    out: int
    taken: int
    inside: int


def _flows(config: UNetConfig) -> list[_Flow]:
    """Of every stage, as an accelerator runs it: whole, with convolutions in the precision that acts."""
    splits = 1 if devices.precision() == devices.THREE_TF32 else 0  # high and low parts of what enters
    share = 2 if devices.precision() == devices.ROUNDED else 1  # maps of two bytes a number
    flows, flat, skips = [], config.image_size**2 * config.in_channels * 4, []
    for stage in stages(config):
        out, taken = stage.resolution**2 * stage.width * 4, skips.pop() if stage.pop else 0
        entering = flat + taken
        if stage.op == "attention":  # logits and their softmax, or queries, keys and values
            inside = 2 * flat + max(2 * stage.heads * stage.resolution**4 * 4, 4 * flat)
        elif stage.op == "upsample":
            inside = (flat + (1 + splits) * 4 * flat + out) // share
        else:  # before the first convolution, and behind it
            inside = max((2 + splits) * entering + (1 + splits) * out, entering + (3 + splits) * out) // share
        flows.append(_Flow(entering, out, taken, inside))
        flat = out
        if stage.push:
            skips.append(out)
    return flows


def _whole_stages(config: UNetConfig, joins: Sequence[int], batch: int = 1) -> int:
    """`pass_bytes` where all rows of a stage run at once."""
    rows, most, held = batch, 0, []
    for stage, flow, joining in zip(stages(config), _flows(config), joins, strict=True):
        rows += joining * batch
        if stage.pop:
            held.pop()
        most = max(most, sum(held) + rows * flow.inside)
        if stage.push:
            held.append(rows * flow.out)
    return most


def pass_bytes(config: Network, joins: Sequence[int], batch: int = 1) -> int:
    """Estimated bytes alive at the widest point of a pass of `shared_prefix.forward` on one device.

    For `ddpm-celebahq-256` on a CPU with 2, 8 and 38 interventions it gives 1.1, 2.7 and 7.6 GiB, where XLA
    counted 1.03, 2.96 and 7.27.

    Args:
      joins: number of interventions that join at each stage, see `shared_prefix.plan_passes`.
      batch: images in the pass.
    """
    if not isinstance(config, UNetConfig):
        return (1 + sum(joins)) * batch * row_bytes(config)
    if accelerated():
        return _whole_stages(config, joins, batch)
    rows, most, flat = batch, 0, config.image_size**2 * config.in_channels * 4  # of one row, as it flows
    skips: list[tuple[int, int]] = []  # bytes of a row, and of all rows that there were
    for stage, joining in zip(stages(config), joins, strict=True):
        before, rows = rows, rows + joining * batch
        out = stage.resolution**2 * stage.width * 4
        held = sum(of_all_rows for _, of_all_rows in skips)
        taken = skips.pop()[0] if stage.pop else 0
        single = max(flat, out) > CPU_BLOCK // 2  # rows are run one at a time: those that join are not copied
        entering = before * flat if single else (before + rows) * flat + rows * taken
        most = max(most, held + LOOP_COPIES * (entering + rows * out) + LIVE_MAPS * max(flat, out))
        if stage.push:
            skips.append((out, rows * out))
        flat = out
    return most


def gradient_bytes(config: Network) -> int:
    """Bytes that one image keeps alive between a forward pass and its gradient."""
    if not isinstance(config, UNetConfig):
        return config.gradient_bytes
    return sum(GRAD_MAPS * stage.resolution**2 * stage.width * 4 for stage in stages(config))


@functools.lru_cache
def replacement_bytes(config: Network) -> int:
    """Bytes of one replacement of every site, or of the activations captured for one image."""
    if not isinstance(config, UNetConfig):
        return config.replacement_bytes
    params, identity = init_shapes(config)
    x = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.in_channels), "float32")
    t = jax.ShapeDtypeStruct((1,), "int32")
    run = functools.partial(forward, config, condition=conditions.example(config), capture=(CAPTURED,))
    captured = jax.eval_shape(run, params, identity, x, t)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(captured[1]))


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def rows_at_once(wanted: int, bytes_of_one: int) -> int:
    """How many of `wanted` images of `bytes_of_one` each may be computed at once on all devices together:
    halved until they fit into `FREE_SHARE` of the free memory, at least one."""
    room = FREE_SHARE * available_bytes()
    while wanted > 1 and wanted * bytes_of_one > room:
        wanted = -(-wanted // 2)
    return wanted


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The memory that a sweep will take, of this machine or of its accelerators.

    Attributes:
      parameters: bytes of one copy; every device has one, besides the one on the host.
      one_pass: bytes of activations on one device at the widest point.
      least: the same with one intervention and one image.
      kept: bytes of replacements.
      devices: number of devices that share the work.
      rows: interventions x images in a pass, without the clean ones.
      free: bytes that this process may use, see `reachable_bytes`.
    """

    parameters: int
    one_pass: int
    least: int
    kept: int
    devices: int
    rows: int
    free: int

    @property
    def total(self) -> int:
        """Bytes of the whole process at its peak."""
        return self._with(self.one_pass)

    def _with(self, one_pass: int) -> int:
        return HOST_OVERHEAD + self.kept + self.parameters + self.devices * (self.parameters + one_pass)

    def line(self) -> str:
        """The forecast as one line."""
        return (
            f"predicted memory: {_gib(self.total)} of {_gib(self.free)} that this process may have "
            f"(devices: {self.devices}, each with parameters {_gib(self.parameters)} and a pass of "
            f"{self.rows} rows {_gib(self.one_pass)}; replacements {_gib(self.kept)})"
        )

    def require(self) -> None:
        """Raises ConfigError, with the way out, if even one row on every device does not fit."""
        if self._with(self.least) > self.free:
            fewer = (
                "JAX_NUM_CPU_DEVICES=1 (one copy of the parameters), "
                if self.devices > 1 and not accelerated()
                else ""
            )
            if accelerated():  # JAX takes a share of a card when it starts
                fewer = "XLA_PYTHON_CLIENT_MEM_FRACTION=.95 if no other process uses the card, "
            less = "fewer sweep.timesteps or sweep.ablations=zero (no replacements), " if self.kept else ""
            raise ConfigError(
                f"even one row in a pass takes {_gib(self._with(self.least))}, but this process may "
                f"have {_gib(self.free)}; the way out: {fewer}{less}or a machine with more memory"
            )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
