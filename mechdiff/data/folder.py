"""Any images: a folder of files, with sub-folders or without, or the array in an `.npy` or `.npz` file.

Names don't matter: the SHA-256 of an image's bytes decides its side of the split and its rank in the order,
so files may be added, moved and renamed. Of equal files one is kept; an image in another encoding counts
as another one. If the sub-folders are called train, val and test (`SPLIT_NAMES`), they are the split, unless
`data.split=digest`; a held-out file that is also in training is left out.

Hidden files, what systems leave in folders and archives (`__MACOSX`, `._NAME`, thumbnails in `@eaDir`), and
files that are not images are passed over; the last are counted in a note. First-level sub-folders (below
train, val and test) are the label `folder` of the images, numbered by name, for `data.classes=folder`.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Int

from mechdiff.core.config import DataConfig
from mechdiff.core.errors import DataError
from mechdiff.data import arrays
from mechdiff.data.cache import Source
from mechdiff.data.dataset import fingerprint, to_bytes
from mechdiff.data.images import Encoded
from mechdiff.data.subfolders import SPLIT_NAMES, check_no_maps, check_no_split, composed

IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
IGNORED = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found")
UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".dng", ".nef", ".cr2", ".arw", ".psd", ".svg")
PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
TABLES = (".parquet", ".arrow")


class ImageFiles(NamedTuple):
    """Different images, in the order of their hashes.

    Attributes:
      names: relative paths in the folder; of an array, positions.
      digests: sha256 of each.
      read: position -> its encoded bytes, or its pixels.
      where: the folder or file.
      notes: what was passed over or converted, in words.
    """

    names: tuple[str, ...]
    digests: tuple[str, ...]
    read: Callable[[int], Encoded]
    where: str
    notes: list[str]

    @property
    def digest(self) -> str:
        """Digest of the set of images, whatever their names."""
        return fingerprint(sorted(self.digests))


def open_source(config: DataConfig) -> Source:
    """The images of `config.path`, split by `config.split`.

    Raises:
      DataError: no such folder or file, no images in it, one that can't be read, or an image in two classes.
    """
    listed = list_images(config.path)
    digests = np.array(listed.digests)
    splits, below, notes = _split(listed, config)
    labels, folders = _labels(listed.names, below)
    first = _kept(listed, splits, labels if "folder" in config.classes else None)
    kept = np.flatnonzero(first)
    if not first.all():
        trained = ~first & (splits > 0) & np.isin(digests, digests[splits == 0])
        held_out = f", {trained.sum()} of them held-out copies of training images" if trained.any() else ""
        notes.append(f"{(~first).sum()} equal images left out{held_out}")
    content = {"folder": sorted(zip(digests[kept].tolist(), splits[kept].tolist(), strict=True))}
    return Source(
        name="folder",
        where=listed.where,
        content=fingerprint(content),
        stamp="",
        ids=np.array(listed.names)[kept],
        splits=splits[kept],
        labels={} if labels is None else {"folder": labels[kept]},
        names={} if labels is None else {"folder": folders},
        read=lambda index: listed.read(int(kept[index])),
        about={"folder": Path(listed.where).name, "folders": folders, "notes": [*listed.notes, *notes]},
        order=np.arange(len(kept)),
        digests=digests[kept],
    )


def list_images(path: str | Path) -> ImageFiles:
    """All images of a folder or of an `.npy` or `.npz` file, equal ones among them, ordered by hash.

    Raises:
      DataError: absent, unreadable, or without images.
    """
    if not str(path):
        raise DataError("data.path is not set; --set=data.path=FOLDER names images (or .npy, .npz)")
    source = Path(path).expanduser()
    if not source.exists():
        raise DataError(
            f"no folder or file {str(path)!r}; data.path (or --images) names images, .npy or .npz"
        )
    if source.is_file():
        return _of_array(source)
    names, other = _walk(source)
    if not names:
        content = f"{sum(other.values())} other files ({_counted(other)})" if other else "empty"
        raise DataError(f"no images in {source} ({content}); {way_out(other)}")
    check_no_maps(str(source), names)
    unread = Counter({suffix: count for suffix, count in other.items() if suffix in UNREAD})
    others = Counter(other) - unread
    kinds = {"images of formats that are not read": unread, "files that are not images": others}
    notes = [
        f"{files.total()} {what} passed over ({_counted(files)})" for what, files in kinds.items() if files
    ]
    tops = Counter(PurePosixPath(name).parent.parts[:1] for name in names)
    if len(tops) > 1:
        shown = [f"{count} in {''.join(top) or 'none'}" for top, count in tops.most_common(4)]
        notes.append(f"of {len(tops)} sub-folders: {', '.join(shown)}{', ...' if len(tops) > 4 else ''}")

    def read(index: int) -> bytes:
        return _content(source / ordered[index])

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda name: hashlib.sha256(_content(source / name)).hexdigest(), names))
    ordered, digests = _by_hash(names, hashes)
    return ImageFiles(ordered, digests, read, str(source), notes)


def way_out(suffixes: Iterable[str]) -> str:
    """What to do where there are files of these endings and no images."""
    suffixes = set(suffixes)
    if suffixes & set(TABLES):
        return (
            "tables of the Hugging Face hub are not read: where `datasets` is installed, save the image of "
            "each row of load_from_disk(FOLDER) or load_dataset('parquet', data_files=FILE) as a file"
        )
    return "unpack it" if suffixes & set(PACKED) else f"it may hold {', '.join(IMAGES)}"


def distinct(listed: ImageFiles) -> tuple[int, ...]:
    """Positions of the different images: of equal ones the first."""
    first: dict[str, int] = {}
    for index, digest in enumerate(listed.digests):
        first.setdefault(digest, index)
    return tuple(first.values())


def drawn_split(digest: str, seed: int, held_out: float) -> int:
    """0 train, 1 validation or 2 test: by an image's own hash, whatever else is in the folder."""
    drawn = int(hashlib.sha256(f"{seed} {digest}".encode()).hexdigest()[:13], 16) / 16**13
    if drawn >= held_out:
        return 0
    return 2 if drawn < held_out / 2 else 1


def _split(listed: ImageFiles, config: DataConfig) -> tuple[Int[np.ndarray, " count"], int, list[str]]:
    """The split of each image, how many folders it takes from its path, and notes."""
    shared = os.path.commonpath([str(PurePosixPath(name).parent) for name in listed.names])
    roots = PurePosixPath(shared).parts
    paths = [PurePosixPath(name).parts[len(roots) :] for name in listed.names]
    tops = [path[0].lower() if len(path) > 1 else "" for path in paths]
    codes = [SPLIT_NAMES.get(top, -1) for top in tops]
    by_folder = min(codes) == 0 and max(codes) > 0
    if config.split == "folders" and not by_folder:
        raise DataError(
            f"{listed.where}: data.split=folders needs all images in sub-folders train, and val or test"
        )
    if config.split == "auto" and not by_folder:
        check_no_split(listed.where, sorted(set(tops)))
    if config.split != "digest" and by_folder:
        splits = np.array(codes)
        if 2 not in codes:  # what is held out is for testing
            splits[splits == 1] = 2
        return splits, len(roots) + 1, [f"split by sub-folders {', '.join(sorted(set(tops)))}"]
    drawn = [drawn_split(digest, config.split_seed, config.held_out) for digest in listed.digests]
    named = [code for code, root in enumerate(roots, start=1) if root.lower() in SPLIT_NAMES]
    return np.array(drawn), len(roots) + 1 if min(codes) >= 0 else max(named, default=0), []


def _labels(names: Sequence[str], below: int) -> tuple[Int[np.ndarray, " count"] | None, list[str]]:
    """The number of each image's folder, and the folders; None where some image lies in none."""
    parts = [PurePosixPath(name).parts[below:] for name in names]
    if min(map(len, parts)) < 2:
        return None, []
    folders, codes = np.unique([composed(path[0]) for path in parts], return_inverse=True)
    return codes.astype(np.int32), folders.tolist()


def _kept(listed: ImageFiles, splits: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Whether each image is kept: of equal ones the first by split and name."""
    first: dict[str, int] = {}
    for index in np.argsort(splits, kind="stable").tolist():
        earlier = first.setdefault(listed.digests[index], index)
        if classes is not None and classes[earlier] != classes[index]:
            raise DataError(
                f"{listed.where}: {listed.names[earlier]} and {listed.names[index]} are one image in two "
                "classes; keep one of them"
            )
    return np.isin(np.arange(len(splits)), list(first.values()))


def _walk(folder: Path) -> tuple[list[str], Counter[str]]:
    """Relative names of images below a folder, sorted, and how many other files of each ending there are.

    Each folder is read once: by its own name, and by that of a link only where it lies outside.
    """
    names, other, visited, roots = [], Counter(), set(), [folder]
    walked = (found for root in roots for found in os.walk(root, onerror=_unreadable))
    for parent, folders, entries in walked:
        real = os.path.realpath(parent)
        folders[:] = [] if real in visited else sorted(name for name in folders if not _is_junk(name))
        roots.extend(path for path in map(Path(parent).joinpath, folders) if path.is_symlink())  # read last
        entries = [] if real in visited else [name for name in entries if not _is_junk(name)]
        visited.add(real)
        for name in entries:
            if name.lower().endswith(IMAGES):
                names.append(_readable((Path(parent) / name).relative_to(folder).as_posix()))
            else:
                other[Path(name).suffix.lower() or "no ending"] += 1
    return sorted(names), other


def _readable(name: str) -> str:
    """The name, which reports and records hold as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {name!a} is not UTF-8; rename it (convmv -f cp437, say)") from None
    return name


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} can't be read ({error.strerror}); mend or remove it") from error


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _counted(other: Counter[str]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in other.most_common(4))


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for a writer for ever
            raise DataError(f"{path} is no ordinary file (a pipe, say); remove it from the images")
        return path.read_bytes()
    except OSError as error:
        _unreadable(error)


def _of_array(path: Path) -> ImageFiles:
    suffix = path.suffix.lower()
    if suffix not in arrays.SUFFIXES:
        hint = f"; {way_out([suffix])}" if suffix in (*PACKED, *TABLES) else ""
        endings = " or ".join(arrays.SUFFIXES)
        raise DataError(f"{path} is not a folder; a file of images must be {endings}{hint}")
    images, notes = arrays.as_images(arrays.read_array(path), str(path))
    if not len(images):
        raise DataError(f"{path} holds no images (shape {images.shape})")
    if images.dtype != np.uint8:
        images, notes = to_bytes(images), [*notes, "floats rounded to bytes"]
    hashes = [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]
    names, digests = _by_hash([*map(str, range(len(images)))], hashes)
    return ImageFiles(names, digests, lambda index: np.asarray(images[int(names[index])]), str(path), notes)


def _by_hash(names: Sequence[str], hashes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and hashes, ordered by hash (an arbitrary order), equal ones by name."""
    rows = sorted(range(len(names)), key=lambda index: (hashes[index], index))
    return tuple(names[index] for index in rows), tuple(hashes[index] for index in rows)
