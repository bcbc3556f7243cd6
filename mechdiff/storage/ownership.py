"""Which of several processes does what, by objects in a bucket: records that only one of them can create.

Every process has a record that it renews: it is alive while the record is younger than the lease, by
the bucket's clock. To take a name is to create `NAME/0`; when its holder is dead or has let go, to create
`NAME/1`, and so on: nothing that others rely on is ever removed, so that of all who try only one succeeds.
If a process is wrongly taken for dead (its machine was suspended for longer than the lease), a piece of work
is done twice, to the same numbers.
"""

import contextlib
import hashlib
import os
import socket
import time
import uuid
from pathlib import Path

from mechdiff.storage.objects import Objects

MEMBERS, OWNERS = "mechdiff-members", "mechdiff-owners"
WORK, LOCKS = "work", "locks"  # kinds of names; those of work are deleted when no process works there
LOOK_SECONDS = 1.0  # how long it is remembered who is alive


class Members:
    """The processes that use an address, each by a record with the files that it has sent or fetched.

    Attributes:
      who: this process, for errors' lines.
    """

    def __init__(self, objects: Objects, lease_seconds: float):
        self.objects, self.lease_seconds = objects, lease_seconds
        self.who = f"{os.getpid()} on {socket.gethostname()}"
        self.id = f"{os.getpid()}-{_machine()}-{uuid.uuid4().hex[:8]}"
        self._clock_ahead: float | None = None  # of the bucket's clock, before this process's
        self._looked: dict[str, tuple[float, bool]] = {}

    def renew(self, files: dict[str, tuple[int, int]], left: bool = False) -> None:
        """Says that this process lives, or that it has ended, and what files of which versions it has in
        the bucket."""
        self.objects.write(_record(self.id), {"who": self.who, "left": left, "files": files})
        if self._clock_ahead is None:
            written = self.objects.modified(_record(self.id))
            self._clock_ahead = 0.0 if written is None else written - time.monotonic()

    def others(self) -> dict[str, dict]:
        """Records of all other processes, the dead too, by their ids."""
        ids = (Path(name).stem for name in self.objects.names(MEMBERS))
        records = {other: self.objects.read(_record(other)) for other in ids if other != self.id}
        return {other: record for other, record in records.items() if record is not None}

    def alive(self, other: str) -> bool:
        """Whether a process is at work; what was seen of it holds for a second."""
        seen_at, alive = self._looked.get(other, (-LOOK_SECONDS, False))
        if time.monotonic() - seen_at >= LOOK_SECONDS:
            alive = self._lives(other)
            self._looked[other] = (time.monotonic(), alive)
        return alive

    def forget(self, other: str) -> None:
        """Removes the record of a process that is dead, once its files are in that of another."""
        self.objects.remove(_record(other))

    def _lives(self, other: str) -> bool:
        if other == self.id:
            return True
        record, written = self.objects.read(_record(other)), self.objects.modified(_record(other))
        if record is None or written is None or record["left"] or _is_gone(other):
            return False
        return time.monotonic() + (self._clock_ahead or 0.0) - written < self.lease_seconds


class Ownership:
    """Names that processes take, each by one at a time."""

    def __init__(self, objects: Objects, members: Members):
        self.objects, self.members = objects, members

    def take(self, name: str) -> int | None:
        """How many had `name` before this process, whose it is now; None: a live one has it."""
        mine = {"member": self.members.id, "who": self.members.who}
        if self.objects.create(_slot(name, 0), mine):
            return 0
        last = self._last(name)
        owner = (self.objects.read(_slot(name, last)) or {}).get("member")
        if owner == self.members.id:
            return last
        if owner is not None and self.members.alive(owner):
            return None
        return last + 1 if self.objects.create(_slot(name, last + 1), mine) else None

    def release(self, name: str) -> None:
        """Lets others take `name`."""
        self.objects.write(_slot(name, self._last(name)), {"member": None})

    def holds(self, name: str) -> bool:
        """Whether `name` is this process's still."""
        return (self.objects.read(_slot(name, self._last(name))) or {}).get("member") == self.members.id

    def holder(self, name: str) -> str:
        """Which process took `name` last."""
        return (self.objects.read(_slot(name, self._last(name))) or {}).get("who", "")

    def forget_work(self) -> None:
        """Removes the owners of all work: what is done is known by its files."""
        for name in self.objects.names(f"{OWNERS}/{WORK}"):
            self.objects.remove(name)

    def _last(self, name: str) -> int:
        """The number of the newest record of a name."""
        below = (Path(other) for other in self.objects.names(f"{OWNERS}/{name}"))
        numbers = [int(path.name) for path in below if path.parent == Path(OWNERS, name)]
        return max(numbers, default=0)


def _record(member: str) -> str:
    return f"{MEMBERS}/{member}.json"


def _slot(name: str, number: int) -> str:
    return f"{OWNERS}/{name}/{number}"


def _machine() -> str:
    """An identifier shared by processes that can see each other's ids: this boot of the machine, and the name
    space of processes."""
    marks = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        marks.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(marks).encode()).hexdigest()[:12]


def _is_gone(member: str) -> bool:
    """Whether it was a process of this machine that has ended."""
    pid, machine, _ = member.split("-")
    if machine != _machine():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return False
