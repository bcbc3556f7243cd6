"""The memory available to this process, and the forecast of what a sweep takes of it.

On accelerators the memory that counts is that of all devices of this process.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mechdiff.core import containers, ranges
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PyTree

FREE_SHARE = 0.6  # share of the free memory that work on all devices together may take at once
HOST_OVERHEAD = 2**30  # bytes of Python, JAX, compiled programs and results
DEFAULT_DEVICE_BYTES = 8 * 2**30  # bytes of an accelerator that does not report its memory
GIB = 2**30


def available_bytes() -> int:
    """Bytes that new work may take: free memory of accelerators, or of this machine within its limits."""
    if accelerated():
        return sum(free_bytes(device) for device in jax.local_devices())
    return host_bytes()


def host_bytes() -> int:
    """Bytes that are free on this machine, within the limits of containers."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, containers.memory_left())


def usable_bytes() -> int:
    """Bytes that this process may use in all: those that it alone holds already (pages of libraries and files
    are the system's, which counts them as free), and `available_bytes`."""
    if accelerated():
        return sum(_limit_of(device) for device in jax.local_devices())
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        held = (resident - shared) * os.sysconf("SC_PAGE_SIZE")
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


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def images_at_once(wanted: int, bytes_of_one: int) -> int:
    """How many images to compute at once on all devices together: `wanted`, halved until they fit into
    `FREE_SHARE` of the free memory; at least one. ConfigError if fewer than one are `wanted`."""
    room, count = FREE_SHARE * available_bytes(), ranges.whole("block", wanted, 1, meaning="images at once")
    while count > 1 and count * bytes_of_one > room:
        count = math.ceil(count / 2)
    return count


def require_room(what: str, *shapes: Sequence[int]) -> None:
    """Refuses numbers that this machine can't hold, before they are computed: all results end in its memory.

    Args:
      what: they are, for the error.
      shapes: of arrays of float32.

    Raises:
      ConfigError: they take more than is free.

    Example:
      >>> require_room("images", (2, 8, 8, 3))
      >>> require_room("images", (10**12, 8, 8, 3))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      mechdiff.core.errors.ConfigError: 1000000000000 x 8 x 8 x 3 images take 715255.7 GiB, but ...
    """
    size, free = 4 * sum(map(math.prod, shapes)), host_bytes()
    if size > free:
        counted = " x ".join(map(str, shapes[0]))
        raise ConfigError(f"{counted} {what} take {_gib(size)}, but {_gib(free)} are free; take fewer")


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The memory that a sweep will take: of this machine, or of its accelerators if there are any.

    Attributes:
      parameters: bytes of one copy; every device has one, besides the one on the host.
      one_pass: bytes of activations on one device at the widest point of a pass.
      smallest_pass: the same for a pass of one intervention and one image.
      replacements: bytes of replacements.
      devices: number of devices that share the work.
      rows: interventions x images in a pass, without the clean rows.
      usable: bytes that this process may use, see `usable_bytes`.
    """

    parameters: int
    one_pass: int
    smallest_pass: int
    replacements: int
    devices: int
    rows: int
    usable: int

    @property
    def total(self) -> int:
        """Bytes of the whole process at its peak."""
        return self._with(self.one_pass)

    def _with(self, one_pass: int) -> int:
        return (
            HOST_OVERHEAD + self.replacements + self.parameters + self.devices * (self.parameters + one_pass)
        )

    def line(self) -> str:
        """The forecast as one line."""
        return (
            f"predicted memory: {_gib(self.total)} of {_gib(self.usable)} that this process may have "
            f"(devices: {self.devices}, each with parameters {_gib(self.parameters)} and a pass of "
            f"{self.rows} rows {_gib(self.one_pass)}; replacements {_gib(self.replacements)})"
        )

    def require(self) -> None:
        """Refuses a sweep that can't fit.

        Raises:
          ConfigError: even one row on every device takes more than is usable; with the ways out.
        """
        smallest = self._with(self.smallest_pass)
        if smallest <= self.usable:
            return
        ways_out = []
        if accelerated():  # JAX takes a share of a card when it starts
            ways_out.append("XLA_PYTHON_CLIENT_MEM_FRACTION=.95 if no other process uses the card")
        elif self.devices > 1:
            ways_out.append("JAX_NUM_CPU_DEVICES=1 (one copy of the parameters)")
        if self.replacements:
            ways_out.append("fewer sweep.timesteps or sweep.ablations=zero (no replacements)")
        raise ConfigError(
            f"even one row in a pass takes {_gib(smallest)}, but this process may have {_gib(self.usable)}; "
            f"the way out: {', or '.join([*ways_out, 'a machine with more memory'])}"
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
