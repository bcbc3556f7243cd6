"""The lock of a results folder: one process at a time writes there."""

import contextlib
import errno
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

from mechdiff.core.errors import BusyError
from mechdiff.storage import exchange
from mechdiff.storage.files import (
    ensure_writable,
    plain_errors,
)
from mechdiff.storage.ownership import LOCKS

# Errors of file systems without locks (some network and FUSE mounts).
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def lock(folder: Path | str, wait: bool = False) -> Iterator[Path]:
    """Locks `folder` (created if needed) for this process, until the block ends or the process dies.

    The kernel releases the lock with the process, so nothing is left to clean up after a crash. If the system
    or the file system has no locks, it warns and continues without one. In the local copy of a folder in a
    bucket the lock also excludes processes with other copies; their changes are fetched before the block, and
    this process's changes are sent after it.

    Args:
      wait: whether to wait until another process releases it.

    Raises:
      BusyError: another live process holds it and `wait` is False; the line names the process.
    """
    folder = ensure_writable(folder)
    with _opened(folder / ".lock") as file:
        _take(folder, file, wait)
        with _held_remotely(folder, wait):
            yield folder


def _opened(path: Path) -> IO[str]:
    with plain_errors(path):
        return path.open("a+")


def _flock(folder: Path, file: IO[str], wait: bool) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{folder}: no file locks here ({error.strerror}); let only one process at a time write there",
            stacklevel=5,  # the block that locks
        )


def _take(folder: Path, file: IO[str], wait: bool) -> None:
    try:
        with plain_errors(folder):
            _flock(folder, file, wait)
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}\n")
            file.flush()
    except BlockingIOError:
        file.seek(0)
        raise _in_use(folder, file.read(300)) from None


def _in_use(folder: Path | str, holder: str) -> BusyError:
    match = re.fullmatch(r"\d+ on \S+", holder.strip())
    who = f"process {match[0]}" if match else "another process"
    way_out = "wait for it, stop it, or choose another --workdir"
    return BusyError(f"results folder {folder} is in use by {who}; {way_out}")


@contextlib.contextmanager
def _held_remotely(folder: Path, wait: bool) -> Iterator[None]:
    others = exchange.of(folder)
    if others is None:
        yield
        return
    name = exchange.name_of(LOCKS, folder, others)
    while not others.take(name):
        if not wait:
            raise _in_use(others.address, others.holder(name))
        time.sleep(exchange.POLL_SECONDS)
    try:
        others.refresh(changed=True)
        yield
    finally:  # also after an interrupted block: the next process continues from its results
        try:
            others.send()
        finally:
            others.release(name)
