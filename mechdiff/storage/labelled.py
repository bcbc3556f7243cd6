"""Labeled results on disk: an `xarray.Dataset` in a Zarr folder, filled piece by piece.

Zarr writes each chunk to a temporary file and renames it, so a process killed at any moment leaves only whole
pieces; missing ones are recognized by the fill value (NaN). Metadata are consolidated, so `xarray.open_zarr`
opens a result without a warning; here variables are listed from the folder, since consolidated metadata
name a lost variable too, which would be read as NaN.
"""

import contextlib
import functools
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from mechdiff.core.errors import CheckpointError, MechdiffError
from mechdiff.core.old_names import ATTRIBUTE_NAMES, DATASET_NAMES
from mechdiff.storage import descriptions, files, locks

ABANDONED_SECONDS = 86_400.0  # age of a half-written result that nobody goes on with
CHUNK = re.compile(r"\d+(\.\d+)*")  # names of chunks in a folder of format 2
BLOSC_HEADER = 16  # bytes, of which the last four say how long the whole chunk is
FORMAT = 2  # Zarr 3 has no stable type for text labels yet


class _Files(zarr.storage.LocalStore):
    """A folder whose files are read and written directly: they are small, and Zarr, which hands each to a
    thread, spent a third of the time to read a result on that."""

    async def get(self, key, prototype=None, byte_range=None):
        content = self.get_sync(key, prototype=prototype, byte_range=byte_range)
        if content is not None and byte_range is None and _is_chunk(self.root / key):
            _check_chunk(self.root / key, memoryview(content.as_numpy_array()))
        return content

    async def set(self, key, value):
        if _is_chunk(self.root / key):
            _note_checksum(self.root / key, value.to_bytes())
        self.set_sync(key, value)


def _is_chunk(file: Path) -> bool:
    return CHUNK.fullmatch(file.name) is not None


def _checksums(chunk: Path) -> Path:
    """The file beside a chunk that holds its CRC-32, of which Zarr knows nothing. Blosc has no checksum: of
    flipped bits it made other numbers without an error."""
    return chunk.with_name(f".{chunk.name}.crc32")


def _note_checksum(chunk: Path, content: bytes) -> None:
    """Adds a line for what is about to be written, behind those of what was there: a process that is killed
    between the two, or reads meanwhile, finds the line of either."""
    with _checksums(chunk).open("a") as lines:
        lines.write(f"{zlib.crc32(content):08x}\n")


def _check_chunk(file: Path, content: memoryview) -> None:
    """Refuses a chunk that was cut short (by a power failure, or an incomplete copy), behind which Blosc
    would read on in memory, and one that was never written so. Chunks of earlier versions have no
    checksum."""
    name = f"{file.parent.name}/{file.name}"
    if _by_blosc(file.with_name(".zarray")):
        told = max(BLOSC_HEADER, int.from_bytes(content[12:BLOSC_HEADER], "little"))
        if len(content) < told:
            raise ValueError(f"{name} holds {len(content)} of {told} bytes")
    with contextlib.suppress(FileNotFoundError):
        checksums = re.findall(r"(.{8})\n", _checksums(file).read_text())  # a line cut short is none
        if checksums and f"{zlib.crc32(content):08x}" not in checksums:
            raise ValueError(f"{name} is not what was written there")


@functools.lru_cache(maxsize=256)
def _by_blosc(described: Path) -> bool:
    compressor = files.read_json(described).get("compressor") if described.is_file() else None
    return (compressor or {}).get("id") == "blosc"


def create(path: Path, dataset: xr.Dataset, chunks: dict[str, tuple[int, ...]]) -> None:
    """Writes an empty result, whole or not at all; an existing one is kept.

    Args:
      dataset: variables full of NaN, with their coordinates and attributes.
      chunks: variable -> chunk shape; one chunk is written at once.
    """
    if path.exists():
        return
    files.ensure_writable(path.parent)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with files.plain_errors(path):
        try:
            _write(aside, dataset, {name: {"chunks": shape} for name, shape in chunks.items()})
            aside.rename(path)
        except OSError:
            if not path.exists():  # else another process was first, with the same content
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, dataset: xr.Dataset, encoding: dict[str, dict]) -> None:
    """Writes a new folder. Zarr hands every file to a thread and waits for it, which took three times as long
    as all else for the small ones of an empty result: it writes to memory, and the files are written here."""
    members: dict[str, zarr.abc.buffer.Buffer] = {}
    described = descriptions.described(dataset)
    store = zarr.storage.MemoryStore(members)
    described.to_zarr(store, zarr_format=FORMAT, encoding=encoding, consolidated=True)
    for name, content in members.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if _is_chunk(file):
            _note_checksum(file, content.to_bytes())
        file.write_bytes(content.to_bytes())


@functools.lru_cache(maxsize=16)
def _variables(path: Path) -> zarr.Group:
    """The result, opened once: shapes and chunks never change, and opening takes longer than a chunk."""
    return zarr.open_group(_Files(path), mode="r+")


def put(path: Path, region: dict[str, tuple[slice, ...]], values: dict[str, np.ndarray]) -> None:
    """Writes arrays into their regions, in the order of `values`: the last is the mark that all are there.

    Raises:
      CheckpointError: a chunk that is overwritten in part was cut short.
    """
    with files.plain_errors(path), _whole(path, ValueError):
        for name, value in values.items():
            _variables(path)[name][region[name]] = value


def written(path: Path, variable: str, index: tuple[int | slice, ...]) -> bool:
    """Whether these elements are there and finite; reads their chunks alone.

    Raises:
      CheckpointError: the result is damaged.
    """
    with _whole(path):
        return bool(np.isfinite(_variables(path)[variable][index]).all())


def region(path: Path, where: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Parts of variables, by NumPy's rules of indexing; reads their chunks alone.

    Raises:
      CheckpointError: the result is damaged.
    """
    with _whole(path):
        return {name: _variables(path)[name][index] for name, index in where.items()}


def opened(path: Path) -> xr.Dataset:
    """The result, its variables read from disk when they are looked at.

    Raises:
      CheckpointError: damaged.
    """
    with _whole(path):
        return xr.open_zarr(_Files(path, read_only=True), consolidated=False, chunks=None)


def read(path: Path) -> xr.Dataset:
    """The result, loaded into memory; names of version 0.1 are read as those of today.

    Raises:
      CheckpointError: absent or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"no results at {path}; run the sweep first")
    dataset = opened(path)
    with _whole(path):
        _check_variables(path, dataset)
        return renamed(dataset.load())


def _check_variables(path: Path, dataset: xr.Dataset) -> None:
    """Refuses a result that lacks a variable which its consolidated metadata, if it has them, name, or of
    which a description differs from theirs."""
    told = files.read_json(path / ".zmetadata")["metadata"] if (path / ".zmetadata").is_file() else {}
    lost = {name.removesuffix("/.zarray") for name in told if name.endswith("/.zarray")} - {
        *dataset.variables
    }
    if lost:
        raise ValueError(f"it lacks {', '.join(sorted(lost))}")
    for name, description in told.items():
        if files.read_json(path / name) != description:
            raise ValueError(f"{name} and .zmetadata differ")


def renamed(dataset: xr.Dataset) -> xr.Dataset:
    """A result with today's names in place of those of earlier versions."""
    result = dataset.rename({old: new for old, new in DATASET_NAMES.items() if old in dataset.variables})
    result.attrs = {ATTRIBUTE_NAMES.get(name, name): value for name, value in dataset.attrs.items()}
    return result


@contextlib.contextmanager
def _whole(path: Path, of: type[Exception] = Exception) -> Iterator[None]:
    try:
        yield
    except of as error:
        raise CheckpointError(
            f"{path} is damaged ({str(error)[:120]}); delete that folder and run again"
        ) from error


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (".zgroup", ".zmetadata", "zarr.json"))


def replace(path: Path, dataset: xr.Dataset) -> None:
    """Writes a finished result in the place of an earlier one; whole or not at all. What a killed process
    left beside it is removed once it is a day old: until then another may be at work.

    Raises:
      MechdiffError: something else stands there, which would be lost.
    """
    files.ensure_writable(path.parent)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not _is_zarr(path)):
        raise MechdiffError(f"{path} is there and is no result, so it is not replaced; choose another name")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with files.plain_errors(path):
        try:
            _write(aside, dataset, {})
            files.swap(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    _clear(path)


def save_once(path: Path, key: str, make: Callable[[], xr.Dataset]) -> None:
    """Saves the result of `make` with its key, unless a result with this key is saved already."""
    with locks.lock(path.parent, wait=True):
        if not path.exists() or read(path).attrs.get("made_of") != key:
            replace(path, make().assign_attrs(made_of=key))


def _clear(path: Path) -> None:
    """Removes what processes that were killed left beside `path`."""
    for left in files.left_beside(path):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
