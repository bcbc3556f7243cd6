"""A work folder in a bucket (`gs://`, `s3://`), through a local copy that is sent there as it grows.

A run reads and writes a plain folder; a thread sends what changed every half minute, and all of it at the
end. The bucket has the same files under the same names, and a list of them that is written after them and
before what is gone is removed: whenever a run is killed, the list names files that are there, and the next
run, on whatever machine, goes on from them to the same numbers. No file locks are needed: a lease, renewed
with each sending, keeps a second run out.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mechdiff.core.errors import BusyError, ConfigError, DataError, MechdiffError
from mechdiff.storage import files, locks

SCHEMES = ("gs://", "s3://")
SECONDS = 30.0  # between two sendings
LEASE_SECONDS = 4 * SECONDS  # after which a run that sent nothing is taken for dead
LIST, LEASE = "mechdiff-files.json", "mechdiff-lease.json"
UNFINISHED = (".tmp", ".partial", ".old", ".lock", "orbax-checkpoint-tmp")  # in names of what isn't whole
LOCAL_ONLY = ("cache",)  # folders that any machine makes again


def is_remote(workdir: str) -> bool:
    """Whether a work folder is named by the address of a bucket."""
    return str(workdir).startswith(SCHEMES)


@contextlib.contextmanager
def local_copy(workdir: str, seconds: float = SECONDS) -> Iterator[Path]:
    """The folder to work in: `workdir` itself, or the local copy of one in a bucket.

    Args:
      seconds: between two sendings; those at the beginning and the end come besides.

    Raises:
      BusyError: another live run has the folder in the bucket.
      ConfigError: the package for this kind of bucket is not installed; or the run has several processes.
      MechdiffError: the bucket is not there, or can't be read or written.
    """
    if not is_remote(workdir):
        yield Path(workdir)
        return
    if jax.distributed.is_initialized():
        raise ConfigError(
            f"--workdir={workdir}: several processes that know of each other need a file system that all of "
            "them see; name a folder on it"
        )
    home = Path(os.environ.get("MECHDIFF_MIRRORS", Path(tempfile.gettempdir()) / f"mechdiff-{os.getuid()}"))
    folder = home / hashlib.sha256(workdir.encode()).hexdigest()[:16]
    with locks.lock(folder.with_name(f"{folder.name}-busy")):
        shutil.rmtree(folder, ignore_errors=True)  # what counts is in the bucket
        mirror = Mirror(workdir, files.ensure_writable(folder))
        mirror.take_lease(LEASE_SECONDS / SECONDS * seconds)
        mirror.fetch()
        print(f"{workdir}: {len(mirror.sent)} files fetched to {folder}", file=sys.stderr, flush=True)
        with _sending(mirror, seconds):
            yield folder
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _sending(mirror: "Mirror", seconds: float) -> Iterator[None]:
    ended = threading.Event()

    def send_regularly() -> None:
        while not ended.wait(seconds):
            try:
                mirror.send()
            except MechdiffError as error:  # the next one tries again; the last one raises
                print(f"warning: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=send_regularly, name="bucket", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        mirror.send()
        mirror.drop_lease()


class Mirror:
    """A folder in a bucket and its local copy.

    Attributes:
      sent: files that are in the bucket, by name, with size and time of change of the local one.
    """

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address.rstrip("/"), folder
        self.sent: dict[str, tuple[int, int]] = {}
        self._who = f"{os.getpid()} on {socket.gethostname()} {uuid.uuid4().hex[:8]}"
        self._lease_seconds = LEASE_SECONDS
        self._system = _file_system(self.address)

    def take_lease(self, seconds: float) -> None:
        """Keeps other runs out until `seconds` after the last `send`.

        Raises:
          BusyError: another run has the folder.
        """
        self._lease_seconds = seconds
        lease = self._read(LEASE)
        if lease and lease["until"] > time.time() and not _is_dead(lease["who"]):
            who, left = lease["who"].rsplit(" ", 1)[0], lease["until"] - time.time()
            raise BusyError(
                f"{self.address} is in use by process {who}; stop it, choose another --workdir, or wait "
                f"{left:.0f} s if it is dead already"
            )
        self._renew()

    def drop_lease(self) -> None:
        """Lets the next run in at once."""
        with self._plain_errors():
            self._system.rm_file(self._path(LEASE))

    def fetch(self) -> None:
        """Copies what the list in the bucket names into the local folder."""
        names = (self._read(LIST) or {"files": []})["files"]
        for name in names:
            target = self.folder / name
            if not target.resolve().is_relative_to(self.folder.resolve()):
                raise DataError(f"{self._path(LIST)} names {name!r}, outside of its folder; remove that line")
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._plain_errors():
                self._system.get_file(self._path(name), str(target))
            self.sent[name] = _stamp(target)

    def send(self) -> None:
        """Sends what changed, then the list of all that is there, then removes what is gone.

        Raises:
          MechdiffError: the bucket can't be written.
        """
        self._renew()
        here: dict[str, tuple[int, int]] = {}
        with self._plain_errors():
            for name in _whole_files(self.folder):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile: gone the next time
                    stamp = _stamp(self.folder / name)
                    if self.sent.get(name) != stamp:
                        self._system.pipe_file(self._path(name), (self.folder / name).read_bytes())
                    here[name] = stamp
            gone = self.sent.keys() - here.keys()
            if here != self.sent:
                self._write(LIST, {"files": sorted(here)})
            self.sent = here
            for name in gone:
                self._system.rm_file(self._path(name))

    def _renew(self) -> None:
        with self._plain_errors():
            self._write(LEASE, {"who": self._who, "until": time.time() + self._lease_seconds})

    def _path(self, name: str) -> str:
        return f"{self.address}/{name}"

    def _write(self, name: str, content: dict) -> None:
        self._system.pipe_file(self._path(name), (json.dumps(content, indent=1) + "\n").encode())

    def _read(self, name: str) -> dict | None:
        with self._plain_errors():
            self._system.invalidate_cache()
            try:
                return json.loads(self._system.cat_file(self._path(name)))
            except FileNotFoundError:
                return None
            except ValueError:
                raise DataError(f"{self._path(name)} is not JSON; remove it to begin anew") from None

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Whatever the client of a bucket raises, as one line."""
        try:
            yield
        except MechdiffError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise MechdiffError(
                f"{self.address}: {reason}; check the bucket's name, your credentials and rights"
            ) from error


def _file_system(address: str) -> Any:
    """The client of a bucket, of fsspec's family."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(address)[0]
    except ImportError as error:
        raise ConfigError(f"{address}: {error}; pip install 'mechdiff[bucket]'") from None


def _whole_files(folder: Path) -> list[str]:
    """Names of the files that are finished."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        unfinished = any(mark in part for part in name.parts for mark in UNFINISHED)
        if path.is_file() and not unfinished and name.parts[0] not in LOCAL_ONLY:
            names.append(name.as_posix())
    return sorted(names)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_dead(who: str) -> bool:
    """Whether a lease is of a process of this machine that is gone."""
    pid, host = who.split(" ")[0], who.split(" ")[2]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
