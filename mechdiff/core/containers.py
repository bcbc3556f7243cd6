"""The cores and the memory that this process may use, within the limits of containers and schedulers.

Linux control groups may be nested, and each may set a limit (Docker's --cpus and --memory, Kubernetes,
systemd, SLURM); the tightest one counts. Files of both cgroup versions are read. Where there are none, as on
other systems, nothing is limited.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 2**62  # bytes; version 1 writes a number near 2**63 where there is no limit


def usable_cores() -> int:
    """Cores that this process may use: least of affinity, quota and SLURM's count per task; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tasks = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if tasks.isdecimal():
        cores = min(cores, int(tasks))
    return max(1, min([cores, *(math.floor(quota) for quota in _quotas())]))


def memory_left() -> int:
    """Bytes that control groups still allow; page cache that can be dropped at once counts as free."""
    left = [UNLIMITED]
    for group in _groups("memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < UNLIMITED:
            left.append(max(0, limit - max(0, used - _droppable(group))))
    return min(left)


def _quotas() -> Iterator[float]:
    """Cores that each control group allows, where it sets a limit."""
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()  # version 2; "max" is not a number
            yield int(quota) / int(period)
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota and period and quota > 0:  # -1: no limit
            yield quota / period


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, innermost first.

    A container may see the names of its host's groups while its own is mounted as the root. Files of a group
    that is not visible are missing, and readers take a missing file for no limit.
    """
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        homes = [MOUNT / controllers, MOUNT / controller] if controllers else [MOUNT]
        home = next((path for path in homes if path.is_dir()), MOUNT)
        group = home / name.lstrip("/")
        yield from (group, *(parent for parent in group.parents if parent.is_relative_to(home)))


def _number(*paths: Path) -> int | None:
    """The number in the first of the files that holds one; None if none does."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
    return None


def _droppable(group: Path) -> int:
    """Bytes of inactive page cache that the kernel may drop at once; 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, size = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(size)
    return 0
