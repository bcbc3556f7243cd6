"""Files on disk: atomic writes, digests, the lock of a results folder, the manifest of a run."""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from mechdiff.core.errors import BusyError, DataError, MechdiffError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import PyTree

PACKAGE = Path(__file__).parents[1]
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "scipy", "xarray", "zarr", "mechdiff"),
)

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a file stands where a folder is needed; move it or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; move it or choose another folder",
    errno.EISDIR: "a folder stands where a file is needed; move it or choose another name",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EIO: "the disk reports an input/output error; check the disk",
}


def explain(error: OSError, path: Path | str = "") -> str | None:
    """One line for an error of the disk or of a path, or None when `error` is of another kind."""
    reason = _REASONS.get(error.errno)
    return reason and f"{error.filename or path or 'file'}: {reason}"


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
        with tempfile.TemporaryFile(dir=folder):
            return folder


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Writes `data` aside in the same folder, flushes it to the disk and renames it to `path`.

    Whatever happens, `path` then holds either its old content or all of `data`.
    """
    path = Path(path)
    data = data.encode() if isinstance(data, str) else data
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with plain_errors(path):
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(data: Any) -> Any:
    """`data` as JSON would give it back: tuples as lists, numpy and JAX scalars as numbers, no NaN (null)."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(item) for item in data]
    if isinstance(data, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(data).tolist())
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return str(data) if isinstance(data, Path) else data


def write_json(path: Path | str, data: Any) -> None:
    """Writes `data` (see `plain`) as indented JSON, atomically."""
    write_atomic(path, json.dumps(plain(data), indent=2) + "\n")


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
        raise DataError(f"{path}: not valid JSON ({error}); restore the file or make it anew") from None


def digest_json(data: Any) -> str:
    """SHA-256 (hex) of `data` as canonical JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(plain(data), sort_keys=True).encode()).hexdigest()


def digest_file(path: Path | str) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_arrays(tree: PyTree) -> str:
    """SHA-256 (hex) over the leaves of `tree`: path, dtype, shape and bytes of each, ordered by path.

    Device arrays are copied to the host. Equal digests mean bitwise equal trees.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    total = hashlib.sha256()
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for path, leaf in sorted(named.items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{path}|{array.dtype.name}|{np.shape(leaf)}|".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 (hex) of the package's sources, for manifests; `report/`, which computes no numbers, is left
    out. Results are named by `NUMERICS_VERSION` instead: a new docstring must not orphan them."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("report/"):
            total.update(f"{name}|{digest_file(path)}\n".encode())
    return total.hexdigest()


@contextlib.contextmanager
def hold(folder: Path | str, wait: bool = False) -> Iterator[Path]:
    """Holds `folder` (created where needed) for this process alone, until the block ends or the process dies.

    The kernel drops the lock with the process, so nothing is left to clean up after a crash.

    Args:
      wait: until another process lets go of it.

    Raises:
      BusyError: another live process holds it and `wait` is False; the line names the process.
    """
    folder = ensure_writable(folder)
    with _opened(folder / ".lock") as file:
        _take(folder, file, wait)
        yield folder


def _opened(path: Path) -> IO[str]:
    with plain_errors(path):
        return path.open("a+")


def _take(folder: Path, file: IO[str], wait: bool) -> None:
    try:
        with plain_errors(folder):
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}\n")
            file.flush()
    except BlockingIOError:
        file.seek(0)
        holder = re.fullmatch(r"\d+ on \S+", file.read(300).strip())
        who = f"process {holder[0]}" if holder else "another process"
        way_out = "wait for it, stop it, or choose another --workdir"
        raise BusyError(f"results folder {folder} is in use by {who}; {way_out}") from None


def manifest(config: dict, **facts: Any) -> dict:
    """What a run is made with: config, `facts`, versions, devices, command, UTC start, digest of the code."""
    return plain(
        {
            "config": config,
            **facts,
            "packages": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "numerics": NUMERICS_VERSION,
            "code": code_digest(),
            "commit": _commit(),
        }
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of the sources, or None when they are not a checkout."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None
