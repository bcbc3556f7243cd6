"""Files on disk: atomic writes, JSON, and the disk's errors in one line."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mechdiff.core.errors import ConfigError, DataError, MechdiffError, shorten
from mechdiff.storage.digests import to_jsonable

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "larger than a file may be here; raise the limit (ulimit -f) or choose another folder",
    errno.EACCES: "permission denied; change its permissions or choose another path",
    errno.EPERM: "permission denied; change its permissions or choose another path",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a file stands where a folder is needed; move it or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; move it or choose another folder",
    errno.EISDIR: "a folder stands where a file is needed; move it or choose another name",
    errno.ELOOP: "a link that leads to itself; choose another path",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EIO: "the disk reports an input/output error; check the disk",
}

REMAKE = "restore the file, or delete it to make it again"


def explain(error: OSError, path: Path | str = "") -> str | None:
    """One line for an error of the disk or of a path, or None when `error` is of another kind."""
    reason = _REASONS.get(error.errno)
    return f"{error.filename or path or 'file'}: {reason}" if reason else None


@contextlib.contextmanager
def plain_errors(path: Path | str = "") -> Iterator[None]:
    """Turns the disk's errors (full, read-only, not permitted, ...) into a one-line MechdiffError."""
    try:
        yield
    except OSError as error:
        line = explain(error, path)
        if line is None:
            raise
        raise MechdiffError(line) from error


def ensure_writable(folder: Path | str) -> Path:
    """`folder`, created where needed and tried by writing into it.

    Raises:
      MechdiffError: a file stands there, or it cannot be created or written to.
    """
    folder = Path(folder)
    with plain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            error.filename = str(folder)
            raise


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Writes `data` aside in the same folder, flushes it to the disk and renames it to `path`.

    Whatever happens, `path` then holds either its old content or all of `data`.
    """
    path = Path(path)
    data = data.encode() if isinstance(data, str) else data
    with plain_errors(path):
        if path.name in ("", ".."):  # as of "." and "/": no name that a file could have
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            if isinstance(error, OSError):
                error.filename = str(path)  # which the user knows
            raise
        sync(path.parent)


def swap(aside: Path, folder: Path) -> None:
    """Puts the folder `aside` in the place of `folder`; an earlier `folder` is removed afterwards, and put
    back if this is stopped between the two."""
    old = folder.with_name(f"{aside.name}.old")
    try:
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        sync(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def left_beside(folder: Path) -> list[Path]:
    """What writers of `folder`, of which some may have been killed, have beside it: `.NAME.XXXXXXXX.tmp`,
    which `swap` was to put in its place, and `.NAME.XXXXXXXX.tmp.old`, an earlier `folder`."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.tmp(\.old)?")
    return [path for path in folder.parent.glob(".*") if pattern.fullmatch(path.name)]


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path | str, data: Any) -> None:
    """Writes `data` (see `digests.to_jsonable`) as indented JSON, atomically."""
    write_atomic(path, json.dumps(to_jsonable(data), indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file.

    Raises:
      DataError: absent, not readable, or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(explain(error, path) or f"{path}: {error}") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); restore the file or make it again") from None


Kinds = dict[str, Any]  # name of an entry -> the type or types that its value may have


def read_record(
    path: Path | str, entries: Iterable[str] | Kinds, optional: Kinds | None = None
) -> dict[str, Any]:
    """The content of a JSON file that is an object with these entries.

    Args:
      entries: their names, or names and the types of their values.
      optional: of entries that may be absent.

    Raises:
      DataError: as `read_json`, another kind of content, or an entry that is absent or of another type.
    """
    return check_record(path, read_json(path), entries, optional)


def check_record(
    path: Path | str, content: Any, entries: Iterable[str] | Kinds, optional: Kinds | None = None
) -> dict[str, Any]:
    """As `read_record`, of content that was read already."""
    absent = [name for name in entries if not isinstance(content, dict) or name not in content]
    if absent:
        raise DataError(f"{path} lacks {', '.join(absent)}; {REMAKE}")
    if not isinstance(content, dict):
        raise DataError(f"{path} is no object of entries; {REMAKE}")
    kinds = (optional or {}) | (entries if isinstance(entries, dict) else {})
    for name, kind in kinds.items():
        if name in content and not isinstance(content[name], kind):
            raise DataError(f"{path}: {name} can't be {shorten(content[name])}; {REMAKE}")
    return content


@contextlib.contextmanager
def interpreting(path: Path | str) -> Iterator[None]:
    """What files of ours hold deep inside is not checked entry by entry: whatever goes wrong while it is put
    to use says that the file is damaged, in one line.

    Raises:
      DataError: in place of the errors that absent values, and those of a wrong type or range, give.
    """
    try:
        yield
    except ConfigError as error:
        raise DataError(f"{path}: {error}; {REMAKE}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {shorten(str(error))[1:-1]}"
        raise DataError(f"{path} is not what was written there ({reason}); {REMAKE}") from error
