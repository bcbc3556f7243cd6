"""Encoded images to a memory-mapped uint8 array, decoded once.

A cache is two files in one folder, `NAME-HASH.npy` and `NAME-HASH.json`; the hash covers the source, the
size, the crop and the filter, so changing any of them makes another cache. Both are written aside and then
renamed, the JSON last: a killed run leaves nothing that is taken for a cache, and racing processes write the
same bytes.
"""

import errno
import hashlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from jaxtyping import Int, Shaped, UInt8
from tqdm import tqdm

from mechdiff.core.config import Preprocessing
from mechdiff.core.errors import DataError
from mechdiff.data.dataset import Dataset, fingerprint
from mechdiff.data.images import DEFAULT, Encoded, thumbnail

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SPLITS = ("train", "validation", "test")  # CelebA's codes 0, 1, 2
CENTER = "centered square of the shorter side"  # what caches call this crop
FORMAT = 1  # raise it when the same key must give other bytes
BLOCK = 1024  # images decoded between two writes
ELSEWHERE = "choose another --workdir, or data.cache in training (in Python, XDG_CACHE_HOME)"
STALE_SECONDS = 3600  # a partial file not written to for this long belongs to a killed run
FRESH_SECONDS = 2  # of one younger than this the writer may not have its lock yet


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Encoded images of all splits, not yet decoded.

    Attributes:
      name: short, for file names and messages.
      where: what to call it in an error (usually its path).
      content: sha256 of what decides the pixels.
      stamp: what else tells an old copy from a new one (modification times) but isn't content.
      ids: one name an image.
      splits: 0 train, 1 validation, 2 test.
      labels: attributes, one value an image; or a function of the cache folder, where costly to read.
      names: label -> what its values 0, 1, ... are called.
      read: index -> the encoded file, or pixels; raises DataError. Called from several threads.
      about: JSON-ready facts for the cache's metadata.
      people: number of the person on each image, -1 where it is unknown; None: nobody is known.
      order: rows in the order in which a split is read; None: a fixed shuffle.
      digests: sha256 of each image's file, where they were read to draw the split.
    """

    name: str
    where: str
    content: str
    stamp: str
    ids: Shaped[np.ndarray, " count"]
    splits: Int[np.ndarray, " count"]
    labels: dict[str, np.ndarray] | Callable[[Path | None], dict[str, np.ndarray]]
    read: Callable[[int], Encoded]
    about: dict = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    people: Int[np.ndarray, " count"] | None = None
    order: Int[np.ndarray, " count"] | None = None
    digests: Shaped[np.ndarray, " count"] | None = None


WAYS_OUT = {  # by the name of a source, where a split is empty
    "celeba": "join a folder that has some, of people who are not in training too: data.path=FOLDER,OTHER",
    "folder": "equal images count once, those in training too as training images; add images, raise "
    "data.held_out, or change data.split_seed",
}


def load_split(
    source: Source,
    *,
    size: int,
    split: str,
    limit: int,
    folder: Path | None,
    preprocessing: Preprocessing = DEFAULT,
) -> Dataset:
    """One split of `source` as `size` x `size` images, decoding all of it on the first call: a network may be
    examined without its training images, of which there are ten times as many.

    Within a split the order is a fixed shuffle of the source's (or the source's own), so the first `limit`
    images (0: all) are a fair sample of it. `folder` None decodes into memory and keeps nothing.

    Raises:
      DataError: no images in the split, one that can't be decoded, a folder that can't be written.
    """
    code = SPLITS.index(split)
    counts = np.bincount(source.splits, minlength=len(SPLITS))
    if not counts[code]:
        have = ", ".join(f"{name} {count}" for name, count in zip(SPLITS, counts, strict=True))
        way_out = WAYS_OUT.get(source.name, "take other images")
        raise DataError(f"no images in the {split!r} split of {source.where} ({have}); {way_out}")
    if split == "train" and 0 < limit < counts[code]:
        used = f"{limit} of {counts[code]} training images are used (data.n_train={limit}; 0: all)"
        print(f"{source.where}: {used}", file=sys.stderr)
    count = int(min(counts[code], limit or counts[code]))
    images = _decoded(source, size, split, preprocessing, folder)[:count]
    rows = _order(source, code)[:count]
    labels = source.labels(folder) if callable(source.labels) else source.labels
    content = _key(source, size, preprocessing) | {"stamp": "", "split": split, "count": count}
    return Dataset(
        name=source.name,
        images=images,
        digest=fingerprint(content),
        labels={name: values[rows] for name, values in labels.items()},
        names={name: tuple(called) for name, called in source.names.items()},
        ids=source.ids[rows],
        people=None if source.people is None else source.people[rows],
        digests=None if source.digests is None else source.digests[rows],
    )


def stored(
    folder: Path | None,
    name: str,
    key: dict,
    shape: tuple[int, ...],
    blocks: Callable[[], Iterable[np.ndarray]],
    about: dict | None = None,
) -> UInt8[np.ndarray, "..."]:
    """The uint8 array of `shape` that `blocks()` yields row block by row block, kept in `folder` under `key`.

    A cache that is absent, damaged or of another key is written anew. `folder` None keeps it in memory only.

    Raises:
      DataError: the folder can't be written, or the disk is full; nothing half-written stays behind.
    """
    if folder is None:
        return np.concatenate(list(blocks()))
    path = Path(folder) / f"{name}-{fingerprint(key)[:16]}.npy"
    array = _open(path, key, shape)
    if array is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path)
            _write(path, {"key": key, "shape": list(shape)} | (about or {}), shape, blocks())
        except OSError as error:
            raise DataError(_why_not_written(path, shape, error)) from error
        array = _open(path, key, shape)
    if array is None:
        raise DataError(f"cache {path} can't be read back; {ELSEWHERE}")
    return array


def _decoded(
    source: Source, size: int, split: str, preprocessing: Preprocessing, folder: Path | None
) -> UInt8[np.ndarray, "count size size channels"]:
    """All images of a split."""
    order = _order(source, SPLITS.index(split))

    def decode(index: int) -> np.ndarray:
        return thumbnail(source.read(index), size, str(source.ids[index]), preprocessing)

    def blocks() -> Iterator[np.ndarray]:
        title = f"decoding {source.name} ({split}) to {size}x{size}"
        bar = tqdm(total=len(order), desc=title, unit=" images", disable=None)  # None: only on a terminal
        # Threads, not processes: Pillow drops the lock while it works, and JAX does not like to be forked.
        with bar, ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            for start in range(0, len(order), BLOCK):
                block = np.stack(list(pool.map(decode, order[start : start + BLOCK].tolist())))
                bar.update(len(block))
                yield block

    counts = np.bincount(source.splits, minlength=len(SPLITS)).tolist()
    about = {
        "source": source.about,
        "images": dict(zip(SPLITS, counts, strict=True)),
        "pillow": PIL.__version__,
    }
    shape = (len(order), size, size, preprocessing.channel_count)
    key = _key(source, size, preprocessing) | {"split": split}
    return stored(folder, f"{source.name}-{size}-{split}", key, shape, blocks, about)


def _key(source: Source, size: int, preprocessing: Preprocessing) -> dict:
    """Everything that decides the bytes. Settings added later count only where they differ from the defaults,
    so that digests of version 0.1 stay valid."""
    crop = CENTER if preprocessing.crop == "center" else preprocessing.crop
    later = {name: getattr(preprocessing, name) for name in ("channels", "background", "phases", "white")}
    return {
        "source": source.content,
        "stamp": source.stamp,
        "size": size,
        "crop": crop,
        "filter": f"Pillow {preprocessing.filter}, antialiased",
        "format": FORMAT,
    } | {name: value for name, value in later.items() if value != getattr(DEFAULT, name)}


def _order(source: Source, code: int) -> Int[np.ndarray, " count"]:
    """Rows of a split, shuffled (always alike) among those of all, unless the source has an order."""
    rows = source.order
    if rows is None:
        rows = np.random.default_rng(0).permutation(len(source.splits))
    return rows[source.splits[rows] == code]


def _open(path: Path, key: dict, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cache at `path`, memory-mapped; None when it is absent, damaged or something else."""
    try:
        if json.loads(path.with_suffix(".json").read_text())["key"] != key:
            return None
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _write(path: Path, metadata: dict, shape: tuple[int, ...], blocks: Iterable[np.ndarray]):
    """Write the array, then its metadata, each aside and then renamed."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{uuid.uuid4().hex}.partial")
    sha256 = hashlib.sha256()
    try:
        # Plain writes: on a full disk they raise, where a store into a memory map would kill the process.
        with partial.open("wb") as file:
            _hold(file)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                data = np.ascontiguousarray(block, np.uint8).tobytes()
                file.write(data)
                sha256.update(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        versions = {"numpy": np.__version__, "sha256": sha256.hexdigest()}
        partial.write_text(json.dumps(metadata | versions, indent=1))
        partial.replace(path.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale(path: Path):
    """Removes what killed runs left of this cache: of this machine, where locks tell who lives, at once."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        with suppress(OSError):  # its writer may have renamed it by now
            age = time.time() - partial.stat().st_mtime
            here = partial.name.startswith(f".{path.name}.{socket.gethostname()}-")
            if age > STALE_SECONDS or (age > FRESH_SECONDS and here and not _is_held(partial)):
                partial.unlink()


def _hold(file: IO[bytes]) -> None:
    """Locks a file that is being written, until it is closed or this process is gone."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)


def _is_held(partial: Path) -> bool:
    """Whether its writer lives, as far as is known; an OSError where the file system has no locks."""
    if fcntl is None:
        return True
    with partial.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _why_not_written(path: Path, shape: tuple[int, ...], error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        needed = f"{np.prod(shape) / 2**20:.1f} MiB"
        return f"no room for the {needed} of {path} ({error.strerror}); free some, or {ELSEWHERE}"
    return f"cache folder {path.parent} can't be written ({error.strerror}); {ELSEWHERE}"
