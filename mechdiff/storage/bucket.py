"""A work folder in a bucket (`gs://`, `s3://`), through a local copy that is sent there as it grows.

A run reads and writes a plain folder; a thread sends what changed every half minute, and all of it at the
end. Whenever a run is killed, the next one, on any machine, continues from what was sent, to the same
numbers (see `mirror`). Several processes, each with its own copy, share a sweep, and locks hold between
them (see `ownership`): no file system that all of them see is needed.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mechdiff.core.errors import BusyError, ConfigError, MechdiffError
from mechdiff.storage import exchange, files, locks
from mechdiff.storage.mirror import Mirror

SCHEMES = ("gs://", "s3://")
SECONDS = 30.0  # between two sendings
LEASE_SECONDS = 4 * SECONDS  # after which a process that sent nothing is taken for dead
COPIES = 1000  # of one address on one machine, one per process


def is_remote(workdir: str) -> bool:
    """Whether a work folder is named by the address of a bucket."""
    return str(workdir).startswith(SCHEMES)


@contextlib.contextmanager
def local_copy(
    workdir: str, seconds: float = SECONDS, lease_seconds: float = LEASE_SECONDS
) -> Iterator[Path]:
    """The folder to work in: `workdir` itself, or a local copy of one in a bucket, for this process alone.

    Args:
      seconds: between two sendings; there is one more at the beginning and at the end.
      lease_seconds: after which others take a process that sent nothing for dead.

    Raises:
      ConfigError: an address of another kind, or without a bucket; the package for it is not installed.
      MechdiffError: the bucket is not there, or can't be read or written; at the end, with the name of the
        folder in which what was not sent is kept.
    """
    scheme, separator, bucket = str(workdir).partition("://")
    if separator and (f"{scheme}://" not in SCHEMES or bucket[:1] in ("", "/")):
        raise ConfigError(f"{workdir} is no bucket's address; write gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    if not is_remote(workdir):
        yield Path(workdir)
        return
    with _own_folder(workdir) as folder:
        mirror = Mirror(workdir, folder, lease_seconds)
        mirror.join()
        print(f"{workdir}: {len(mirror.sent)} files fetched to {folder}", file=sys.stderr, flush=True)
        with exchange.announced(mirror), _sending(mirror, seconds):
            yield folder


@contextlib.contextmanager
def _own_folder(workdir: str) -> Iterator[Path]:
    """An empty folder that no other process uses; what counts is in the bucket."""
    home = Path(os.environ.get("MECHDIFF_MIRRORS", Path(tempfile.gettempdir()) / f"mechdiff-{os.getuid()}"))
    name = hashlib.sha256(workdir.encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        for copy in range(COPIES):
            folder = home / f"{name}-{copy}"
            try:
                stack.enter_context(locks.lock(folder.with_name(f"{folder.name}-busy")))
                break
            except BusyError:
                continue
        else:
            raise BusyError(f"{home}: all {COPIES} local copies of {workdir} are in use")
        shutil.rmtree(folder, ignore_errors=True)
        yield files.ensure_writable(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _sending(mirror: Mirror, seconds: float) -> Iterator[None]:
    ended = threading.Event()

    def regularly(action: Callable[[], None]) -> None:
        while not ended.wait(seconds):
            try:
                action()
            except MechdiffError as error:  # the next one tries again; the last one raises
                print(f"warning: {error}", file=sys.stderr, flush=True)

    threads = [
        threading.Thread(target=regularly, args=(action,), name="bucket", daemon=True)
        for action in (mirror.exchange, mirror.beat)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        with _kept_unless_sent(mirror.folder):
            mirror.leave()


@contextlib.contextmanager
def _kept_unless_sent(folder: Path) -> Iterator[None]:
    """If the last sending fails, the copy gets another name, under which no later start empties it."""
    try:
        yield
    except BaseException as error:
        kept = folder.rename(folder.with_name(f"{folder.name}-unsent-{uuid.uuid4().hex[:8]}"))
        line = f"what was not sent is kept: --workdir={kept} goes on with it"
        if isinstance(error, MechdiffError):
            error.args = (f"{error}; {line}",)
        else:
            print(f"warning: {line}", file=sys.stderr, flush=True)
        raise
