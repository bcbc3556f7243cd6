"""A folder in a bucket, and the local copy of it in which one of several processes works.

The bucket has the same files under the same names. Each process has a record there that lists the files
it has sent or fetched; it is written after them and before removed files are deleted. So if a process is
killed, its list names only files that exist, and the next process takes over the list.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from mechdiff.core.errors import BusyError, DataError
from mechdiff.storage.objects import Objects
from mechdiff.storage.ownership import LOCKS, Members, Ownership

# Names of what isn't finished, as this package, Zarr and Orbax write them; a model may be called `a.old`.
UNFINISHED = re.compile(
    r"\.lock|\..+\.tmp(\.old)?|\..+\.partial|.+\.[0-9a-f]{32}\.partial|.+\.orbax-checkpoint-tmp(-\d+)?"
)
LOCAL_ONLY = ("cache",)  # folders that any machine makes again
LOOKS = 10  # at the files of a folder, until two in a row see the same

Stamp = tuple[int, int]  # size and time of change of a local file


class Mirror:
    """A folder in a bucket and its local copy: the `exchange.Exchange` of processes that share a bucket.

    Attributes:
      folder: the local copy.
      sent: files that are in the bucket, by name, with the stamp of the local one.
      versions: the same files, with the stamp of their sender, as lists give it.
    """

    def __init__(self, address: str, folder: Path, lease_seconds: float):
        """See `join`, which must come first."""
        self.address, self.folder = address.rstrip("/"), folder
        self.objects = Objects(self.address)
        self.members = Members(self.objects, lease_seconds)
        self.ownership = Ownership(self.objects, self.members)
        self.sent: dict[str, Stamp] = {}
        self.versions: dict[str, Stamp] = {}
        # Versions of files that were here once, so that removed ones don't come back.
        self._seen: dict[str, set[Stamp]] = {}
        self._held: set[str] = set()
        self._follows = False
        self._busy, self._listing = threading.RLock(), threading.Lock()

    def join(self) -> None:
        """Fetches all that is in the bucket, takes over the lists of the dead, and lives from now on."""
        self._renew()
        others = self.members.others()
        self._fetch(others)
        self._renew()
        alive = {other for other in others if self.members.alive(other)}
        for other in others.keys() - alive:
            self.members.forget(other)
        if not alive:
            self.ownership.forget_work()

    def beat(self) -> None:
        """Reports that this process lives; called by a thread, since sending may take long."""
        self._renew()

    def exchange(self) -> None:
        """Sends what is new here and fetches what is new there, unless it follows another process."""
        if not self._follows:
            self.send()
            self.refresh()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """See `exchange.Exchange`. Its list is empty meanwhile, or it would name files that the process which
        writes has removed; so it stays where the block fails, as what is here may be half of what is there.
        At the end the folder is fetched again."""
        with self._busy:
            self._follows = True
            self._renew()
        yield
        with self._busy:
            for name in _finished(self.folder):  # the other's are other files of the same content
                (self.folder / name).unlink()
            self.sent, self.versions, self._seen = {}, {}, {}
            self._fetch(self.members.others())
            self._follows = False
            self._renew()

    def leave(self) -> None:
        """Sends what is new and lets others do what this process had taken."""
        self.send()
        self._renew(left=True)

    def refresh(self, changed: bool = False) -> None:
        """See `exchange.Exchange`."""
        with self._busy:
            before = dict(self.sent)
            self._fetch(self.members.others(), changed)
            if self.sent != before:  # whoever had sent it may leave now
                self._renew()

    def send(self) -> None:
        """Sends what changed, then the list of all files, then deletes what was removed here.

        Raises:
          BusyError: this process was silent for so long that another took a lock that it held.
          MechdiffError: the bucket can't be written.
        """
        with self._busy:
            if self._follows:
                return
            self._check_locks()
            stamps: dict[str, Stamp] = {}
            for name in _whole_files(self.folder):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile: gone the next time
                    stamp = _stamp(self.folder / name)
                    if self.sent.get(name) != stamp:
                        content = (self.folder / name).read_bytes()
                        self.objects.put(name, content)
                        self._note(name, stamp)
                    stamps[name] = stamp
            gone = self.sent.keys() - stamps.keys()
            if stamps != self.sent:
                self.sent = stamps
                self._renew()
            for name in gone:
                self.objects.remove(name)

    def take(self, name: str) -> bool:
        """See `exchange.Exchange`; locks that were taken are watched over."""
        before = self.ownership.take(name)
        if before is None:
            return False
        if name.split("/")[0] == LOCKS:
            self._held.add(name)
        if before:  # what they have done is not done again
            self.refresh()
        return True

    def release(self, name: str) -> None:
        """See `exchange.Exchange`."""
        self._held.discard(name)
        if self.ownership.holds(name):
            self.ownership.release(name)

    def holder(self, name: str) -> str:
        """See `exchange.Exchange`."""
        return self.ownership.holder(name)

    def _fetch(self, others: dict[str, dict], changed: bool = False) -> None:
        listed: dict[str, set[Stamp]] = {}
        for record in others.values():
            for name, version in record["files"].items():
                listed.setdefault(name, set()).add(tuple(version))
        for name, versions in sorted(listed.items()):
            target = self.folder / name
            if not target.resolve().is_relative_to(self.folder.resolve()):
                raise DataError(f"a list of {self.address} names {name!r}, outside of its folder; remove it")
            if versions <= self._seen.get(name, set()):
                continue
            stands = self._stands(target, name) if changed or name not in self._seen else True
            if not stands and self.objects.get(name, target):  # else its maker has removed it since
                self.sent[name] = _stamp(target)
                self._note(name, max(versions - self._seen.get(name, set())))
                self._seen[name] |= versions

    def _stands(self, target: Path, name: str) -> bool:
        """Whether a local file differs from the one in the bucket: then it is sent with the rest."""
        with contextlib.suppress(FileNotFoundError):
            return self.sent.get(name) != _stamp(target)
        return name in self._seen  # it was removed here

    def _note(self, name: str, version: Stamp) -> None:
        self.versions[name] = version
        self._seen.setdefault(name, set()).add(version)

    def _renew(self, left: bool = False) -> None:
        with self._listing:  # of two threads, the later list is kept
            names = [] if self._follows else sorted(self.sent)
            self.members.renew({name: self.versions[name] for name in names}, left)

    def _check_locks(self) -> None:
        for name in self._held:
            if not self.ownership.holds(name):
                raise BusyError(
                    f"{self.address}: this process sent nothing for {self.members.lease_seconds:.0f} s, and "
                    f"process {self.holder(name)} took over; what was made here since is not sent"
                )


def _whole_files(folder: Path) -> list[str]:
    """Names of the files that are finished, at one moment: that of two looks which see the same. Else the
    last file of a piece of work, the mark that it is done, could be listed without an earlier one."""
    names = _finished(folder)
    for _ in range(LOOKS):
        before, names = names, _finished(folder)
        if names == before:
            break
    return names


def _finished(folder: Path) -> list[str]:
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        unfinished = any(UNFINISHED.fullmatch(part) for part in name.parts)
        if path.is_file() and not unfinished and name.parts[0] not in LOCAL_ONLY:
            names.append(name.as_posix())
    return sorted(names)


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
