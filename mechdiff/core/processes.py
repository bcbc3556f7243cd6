"""One run in several processes: joining them, their devices, and work that process 0 does for all."""

import contextlib
import os
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt32

from mechdiff.core import rendezvous
from mechdiff.core.errors import ConfigError, MechdiffError
from mechdiff.core.rendezvous import Membership

T = TypeVar("T")
JOIN_SECONDS = 300.0  # how long process 0 waits for the others
LEAVE_SECONDS = 5.0  # how long a process that failed waits for others that failed with it
LINE = 1024  # bytes of an error message that process 0 sends to the others
LOST = ("Gloo", "Connection closed", "coordination")  # in XLA's errors, where another process has ended
NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")  # one entry per GPU, where the driver is loaded


def join(member: Membership | None, timeout: float = JOIN_SECONDS) -> None:
    """Joins this process to the others of its run; must be called before any device is used.

    Args:
      member: which process this is, of how many, and the address of process 0; None: as SLURM's variables
        or, on a TPU pod, its metadata say.
      timeout: seconds until the others must have joined.

    Raises:
      ConfigError: some did not join (named).
      MechdiffError: JAX could not join them, or nothing says where they are.
    """
    member = member or rendezvous.slurm_membership(os.environ)
    if member is None:
        _join_cluster(timeout)
        return
    rendezvous.call_roll(member, timeout)
    if member.processes == 1:  # nobody to join
        return
    _end_by_itself()
    try:
        jax.distributed.initialize(
            member.coordinator,
            member.processes,
            member.process_id,
            local_device_ids=member.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout),
        )
    except (ValueError, RuntimeError) as error:
        raise MechdiffError(f"could not join the other processes: {error}") from error


def _join_cluster(timeout: float) -> None:
    """Joins the processes of a cluster that JAX knows, such as a TPU pod."""
    _end_by_itself()
    try:
        jax.distributed.initialize(initialization_timeout=int(timeout))
    except (ValueError, RuntimeError) as error:
        raise MechdiffError(
            f"--distributed finds no SLURM job step and no TPU pod ({error}); name process 0 by "
            "--coordinator=HOST:PORT, with --processes=N and --process_id=I"
        ) from error


def abandon(code: int) -> None:
    """Ends this process with an exit code, if it is one of several, and its work failed or was interrupted.

    JAX's own end waits for the others for five minutes, while these may be waiting for this process. Those
    that failed with it end together; the others notice that the connection is broken.
    """
    if not jax.distributed.is_initialized():
        return
    together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    together.start()
    together.join(LEAVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def all_there() -> Iterator[None]:
    """Turns XLA's error of a connection that another process has broken, by its end, into one line: what
    went wrong is said there.

    Raises:
      MechdiffError: another process of this run has ended.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not any(word in str(error) for word in LOST):
            raise
        raise MechdiffError("another process of this run has ended; start all of them again") from error


def _end_by_itself() -> None:
    """A joined process ends at SIGTERM, which JAX would catch for a service that is not used here; and at an
    error that nobody caught, after which JAX would wait for the others."""
    jax.config.update("jax_enable_preemption_service", False)
    sys.excepthook = _uncaught


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    abandon(1)


def is_first() -> bool:
    """Whether this is process 0, which writes logs, sample sheets and exports."""
    return jax.process_index() == 0


def announce() -> None:
    """Prints to stderr this process's devices, if there are several processes, and warns of idle GPUs."""
    local, total = jax.local_device_count(), jax.device_count()
    host, platform = socket.gethostname(), jax.default_backend()
    used = local
    if jax.process_count() > 1:
        host_id = zlib.crc32(host.encode())
        hosts, counts = multihost_utils.process_allgather(np.array([host_id, local], np.uint32)).T
        used = int(counts[hosts == host_id].sum())
        which = f"process {jax.process_index()} of {jax.process_count()} on {host}"
        _say(f"{which}: {local} {platform} devices of {total}")
    if warning := idle_gpus(platform, used, gpus_here()):
        _say(f"{host}: {warning}")


def gpus_here() -> int:
    """Number of NVIDIA GPUs of this machine that this process may use."""
    visible = rendezvous.visible_gpus(os.environ)
    if visible is not None:
        return visible
    return len(list(NVIDIA_DEVICES.iterdir())) if NVIDIA_DEVICES.is_dir() else 0


def idle_gpus(platform: str, used: int, present: int) -> str | None:
    """A warning if the machine has GPUs that no process uses; else None."""
    if platform == "cpu" and present:
        return f"{present} GPUs are idle: JAX sees the CPU only; install jax[cuda12]"
    if platform == "gpu" and used < present:
        return f"{present - used} of {present} GPUs are idle; start one process a GPU or one that sees all"
    return None


def in_first(action: Callable[[], T]) -> T | None:
    """Runs `action` in process 0 while the others wait; if it raises an error, all processes do.

    Returns:
      Its result in process 0; None in the others.
    Raises:
      MechdiffError: in process 0 the error of `action`; in the others one with the same message.
    """
    if jax.process_count() == 1:
        return action()
    error, value = None, None
    if is_first():
        try:
            value = action()
        except MechdiffError as raised:
            error = raised
    line = str(error).encode()[:LINE] if error else b""
    broadcast = multihost_utils.broadcast_one_to_all(np.frombuffer(line.ljust(LINE, b"\0"), np.uint8))
    if error:
        raise error
    if line := bytes(np.asarray(broadcast, np.uint8)).rstrip(b"\0"):
        raise MechdiffError(f"process 0 stopped: {line.decode(errors='replace')}")
    return value


def from_first(number: int) -> int:
    """The `number` of process 0, broadcast to all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def where_not(fact: bool) -> list[int]:
    """The processes of this run, which all must call this, in which `fact` is false."""
    if jax.process_count() == 1:
        return [] if fact else [0]
    return np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.array(fact)))).tolist()


def check_alike(facts: Mapping[str, object]) -> None:
    """Checks that a run is the same one in all its processes, which all must call this.

    Args:
      facts: name -> value; the names are the same in all processes.

    Raises:
      ConfigError: in all processes, if a value differs between them; the first such fact is named.
    """
    if jax.process_count() == 1:
        return
    own = np.array([zlib.crc32(repr(value).encode()) for value in facts.values()], np.uint32)
    check_equal(facts, np.asarray(multihost_utils.process_allgather(own)), jax.process_index())


def check_equal(facts: Mapping[str, object], sums: UInt32[np.ndarray, "processes facts"], me: int) -> None:
    """As `check_alike`, by the checksums of all processes' facts; this is process `me`."""
    for (name, value), column in zip(facts.items(), sums.T, strict=True):
        if others := np.flatnonzero(column != column[me]).tolist():
            raise ConfigError(
                f"{name}={value!r} in process {me} is another value in process {others[0]}; "
                "start all processes with the same flags, data and versions"
            )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
