"""Exchange between processes that share a work folder but no disk: the interface of locks and shared work.

On a shared disk none of this is needed: locks are the kernel's, and a finished piece is a
file. If a folder is a local copy of one in a bucket, the copy registers itself here while it is used, and
`locks` and `work_sharing` ask it.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax

from mechdiff.core import processes
from mechdiff.core.errors import ConfigError
from mechdiff.storage import files

POLL_SECONDS = 2.0  # between two looks at what others have done
SEEN_SECONDS = 20.0  # in which a disk of a network shows one machine's new file to the others

_announced: list["Exchange"] = []


@runtime_checkable
class Exchange(Protocol):
    """A local copy of a work folder, and its exchange with other copies. A name is that of a lock or of
    a piece of work; its holder keeps it until it is released, or until its process has ended or is silent for
    longer than its lease."""

    folder: Path
    address: str

    def take(self, name: str) -> bool:
        """Whether `name` now belongs to this process; False: another live process has it."""
        ...

    def release(self, name: str) -> None:
        """Releases `name`, which this process holds, for others."""
        ...

    def holder(self, name: str) -> str:
        """The process that holds `name`, for an error message."""
        ...

    def send(self) -> None:
        """Sends what changed here."""
        ...

    def refresh(self, changed: bool = False) -> None:
        """Fetches what others have sent and is missing here; if `changed`, also what they have changed. A
        file that was changed here is kept."""
        ...

    def following(self) -> contextlib.AbstractContextManager[None]:
        """Within the block nothing is sent from here, and nothing is fetched but by `refresh`: another
        process writes the folder for this one too."""
        ...


@contextlib.contextmanager
def announced(exchange: Exchange) -> Iterator[None]:
    """Within the block, `of` gives `exchange` for paths in its folder."""
    _announced.append(exchange)
    try:
        yield
    finally:
        _announced.remove(exchange)


def of(path: Path | str) -> Exchange | None:
    """The exchange in whose folder a path lies; None: it is on a disk, and that is all there is."""
    path = Path(os.path.realpath(path))  # of a link to itself too, which `resolve` refuses
    inside = (exchange for exchange in _announced if path.is_relative_to(exchange.folder.resolve()))
    return next(inside, None)


@contextlib.contextmanager
def written_by_first(folder: Path | str) -> Iterator[None]:
    """Within the block the first process of a run writes `folder` for all of them, where each has a copy of
    its own; at its end all copies are alike. All processes must enter it, and the first one holds the lock.

    Raises:
      MechdiffError: in all processes, where the first can't send what it wrote.
    """
    others = of(folder)
    if others is None or jax.process_count() == 1:
        yield
        return
    with contextlib.nullcontext() if processes.is_first() else others.following():
        yield
        processes.in_first(others.send)


def check_shared(folder: Path | str) -> None:
    """Checks that all processes of a run see the same `folder`; all must call it. Each of them would write
    its part of a checkpoint to its own, and none could be read.

    Raises:
      ConfigError: in all processes, where one path is two folders, such as on disks of two machines.
    """
    if jax.process_count() == 1 or of(folder) is not None:
        return
    mark = Path(folder) / f".seen-{processes.from_first(uuid.uuid4().int % 2**31)}"
    processes.in_first(lambda: files.write_atomic(mark, b""))
    blind = processes.where_not(_appears(mark))
    processes.in_first(lambda: mark.unlink(missing_ok=True))
    if blind:
        raise ConfigError(
            f"process {blind[0]} does not see what process 0 writes to {folder}: these are two folders; give "
            "all the absolute path of one on a disk that they share, or an address in a bucket"
        )


def _appears(path: Path) -> bool:
    """Whether there is a file, or will be within `SEEN_SECONDS`."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def has_copies(folder: Path | str) -> bool:
    """Whether each of a run's several processes has a copy of `folder` for itself."""
    return jax.process_count() > 1 and of(folder) is not None


def catch_up(folder: Path | str) -> None:
    """Fetches, where each process has a copy of `folder`, what the first one has sent until now."""
    others = of(folder)
    if others is not None and not processes.is_first():
        others.refresh()


def in_writers(folder: Path | str, action: Callable[[], None]) -> None:
    """Runs `action` where `folder` is written: in the first process, or in each that has its own copy."""
    if has_copies(folder):
        action()
    else:
        processes.in_first(action)


def address_of(path: Path | str) -> str:
    """A path for messages: its address in a bucket, or the path itself."""
    others = of(path)
    if others is None:
        return str(path)
    relative = Path(path).resolve().relative_to(others.folder.resolve()).as_posix()
    return f"{others.address}/{relative}" if relative != "." else others.address


def name_of(kind: str, path: Path | str, exchange: Exchange) -> str:
    """The name of a lock or of a store's pieces between processes: its path in their folder."""
    relative = Path(path).resolve().relative_to(exchange.folder.resolve()).as_posix()
    return f"{kind}/{relative}" if relative != "." else kind
