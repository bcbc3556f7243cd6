"""CelebA (Liu et al., ICCV 2015) in its official layout, and as Kaggle packs it.

A *pack* is a folder with

    img_align_celeba.zip      or the same images unpacked in img_align_celeba/
    list_attr_celeba.txt      count, attribute names, then a line an image: name and -1 or 1 for each
    list_eval_partition.txt   a line an image: name and 0 (train), 1 (validation) or 2 (test)
    identity_CelebA.txt       a line an image: name and the number of its person; may be absent

directly in it or in the `Img`, `Anno` and `Eval` of the official download. The lists may be tables as others
save them (`.csv`; column names; commas, semicolons or tabs; 0 for -1), the images PNG, and one folder deeper,
each by itself. Landmarks are not needed; without identities, images of one person count as independent in
every interval.

Packs are joined: `path` may list several folders with commas, and a folder's own sub-folders count when they
are packs too. An image (a name) that several packs hold is taken from the first. Images of validation and
test whose person is in training too, as packs cut or joined otherwise have them, are left out and counted in
a warning.

The archive is read in place; nothing is unpacked to disk. Where it lies beside unpacked images, it is what is
read, and must not contradict them.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from mechdiff.core.errors import DataError
from mechdiff.data.cache import Source
from mechdiff.data.celeba_images import (
    UNPACKED,
    Entry,
    contradicts,
    innermost,
    open_archive,
    open_folder,
)
from mechdiff.data.celeba_lists import read_attributes, read_identities, read_partition
from mechdiff.data.celeba_records import read_lists
from mechdiff.data.dataset import fingerprint
from mechdiff.data.folder import TABLES, way_out

ARCHIVE = "img_align_celeba.zip"
ATTRIBUTES = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
IDENTITY = "identity_CelebA.txt"
OFFICIAL_FOLDERS = ("", "Img", "Anno", "Eval")
READERS = {ATTRIBUTES: read_attributes, PARTITION: read_partition, IDENTITY: read_identities}
WAY_OUT = f"data.path must name folders that hold {ARCHIVE} (or {UNPACKED}/), {ATTRIBUTES} and {PARTITION}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Pack:
    """One folder in the official layout; rows in the order of the partition file, as in `Lists`."""

    folder: Path
    names: tuple[str, ...]
    splits: Int[np.ndarray, " count"]
    attributes: tuple[str, ...]
    flags: Bool[np.ndarray, "count attributes"]
    people: Int[np.ndarray, " count"]
    read: Callable[[str], bytes]
    content: str
    stamp: str
    files: dict[str, str]


def open_source(path: str) -> Source:
    """All packs that `path` names, joined; reads the lists and the archive's directory but no image.

    Raises:
      DataError: anything absent, truncated or foreign, in one line.
    """
    packs = [read_pack(folder) for folder in find_packs(path)]
    for pack in packs[1:]:
        if pack.attributes != packs[0].attributes:
            raise DataError(f"{pack.folder} and {packs[0].folder} list different attributes; give only one")
    owner = {}
    for number, pack in enumerate(packs):
        for row, name in enumerate(pack.names):
            owner.setdefault(name, (number, row))
    # Packs in their order, of each the rows that no earlier pack has.
    ids, packs_of = np.array(list(owner)), np.array([number for number, _ in owner.values()])
    rows_of = [[row for number, row in owner.values() if number == k] for k in range(len(packs))]
    splits, flags, people = (
        np.concatenate([getattr(pack, name)[rows] for pack, rows in zip(packs, rows_of, strict=True)])
        for name in ("splits", "flags", "people")
    )
    in_training = _seen_in_training(splits, people, path)
    ids, packs_of, splits, flags, people = (
        column[~in_training] for column in (ids, packs_of, splits, flags, people)
    )
    content = [pack.content for pack in packs]
    return Source(
        name="celeba",
        where=path,
        content=fingerprint([content, ids.tolist()] if in_training.any() else content),
        stamp=fingerprint([pack.stamp for pack in packs]),
        ids=ids,
        splits=splits,
        labels=dict(zip(packs[0].attributes, flags.T, strict=True)),
        people=people if (people >= 0).any() else None,
        read=lambda index: packs[packs_of[index]].read(str(ids[index])),
        about={"packs": [pack.files for pack in packs]},
    )


def _seen_in_training(
    splits: Int[np.ndarray, " count"], people: Int[np.ndarray, " count"], path: str
) -> Bool[np.ndarray, " count"]:
    """Which held-out images are of people who are in training images too: not held out, so they are left out
    with a warning. CelebA's own splits share nobody."""
    of_trained = (splits > 0) & (people >= 0) & np.isin(people, people[splits == 0])
    if of_trained.any():
        logging.warning(
            "%s: %d of %d held-out images are of people who are in training images too; they are left out",
            *(path, of_trained.sum(), (splits > 0).sum()),
        )
    return of_trained


def find_packs(path: str) -> list[Path]:
    """The folders in `path` (joined by commas) that are packs, each followed by its sub-folders that are.

    Raises:
      DataError: a path that is no folder, or has no CelebA in it.
    """
    packs_by_path: dict[Path, Path] = {}
    for text in filter(None, (part.strip() for part in path.split(","))):
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise DataError(f"no folder {text!r}; {WAY_OUT}")
        packs = packs_in(folder)
        if not packs:
            tables = [path.suffix for path in folder.rglob("*") if path.suffix in TABLES]
            raise DataError(f"no CelebA in {text!r}; {way_out(tables) if tables else WAY_OUT}")
        packs_by_path |= {pack.resolve(): pack for pack in packs}
    if not packs_by_path:
        raise DataError(f"data.path={path!r} names no folder; {WAY_OUT}")
    return list(packs_by_path.values())


def read_pack(folder: Path) -> Pack:
    """The lists and the directory of one pack, checked against each other."""
    partition_path, attribute_path = find_list(folder, PARTITION), find_list(folder, ATTRIBUTES)
    lists = read_lists(partition_path, attribute_path, _identities(folder))
    images, entries, read = _open_images(folder)
    _same_names(set(lists.names), entries.keys(), partition_path, images)
    _check_described(lists.undescribed, attribute_path)
    ordered = sorted(entries.items())
    files = {
        images.name: _sha256(f"{name} {entry.size} {entry.checksum}\n" for name, entry in ordered),
        ATTRIBUTES: _sha256([attribute_path.read_bytes()]),
        PARTITION: _sha256([partition_path.read_bytes()]),
    }
    return Pack(
        folder=folder,
        names=lists.names,
        splits=lists.splits,
        attributes=lists.attributes,
        flags=lists.flags,
        people=lists.people,
        read=read,
        content=fingerprint(files),
        stamp=_sha256(f"{name} {entry.modified}\n" for name, entry in ordered),
        files=files,
    )


def _open_images(folder: Path) -> tuple[Path, dict[str, Entry], Callable[[str], bytes]]:
    """The archive of a pack, or else its unpacked images: where they lie, what is there, and a reader of one.

    Raises:
      DataError: neither is there, or both are and differ, so that either might be meant.
    """
    archive, unpacked = look_for_file(folder, ARCHIVE), look_for_file(folder, UNPACKED)
    if archive is None:
        images = innermost(find_file(folder, UNPACKED))
        return images, *open_folder(images)
    entries, read = open_archive(archive)
    if unpacked and contradicts(open_folder(innermost(unpacked))[0], entries):
        raise DataError(f"{archive} and {unpacked} hold different images; keep the one that is right")
    return archive, entries, read


def packs_in(folder: Path) -> list[Path]:
    """A folder and its sub-folders, those of them that are packs. One that may not be entered is none, such
    as the `lost+found` of a disk."""
    children = sorted(child for child in folder.iterdir() if child.is_dir() and os.access(child, os.X_OK))
    inner = [child for child in children if child.name not in (*OFFICIAL_FOLDERS, UNPACKED)]
    return [pack for pack in (folder, *inner) if _is_pack(pack)]


def _is_pack(folder: Path) -> bool:
    """Whether any file of the layout is there; `read_pack` then says which one is missing."""
    lists = [look_for_list(folder, name) for name in (ATTRIBUTES, PARTITION)]
    return any([*lists, *(look_for_file(folder, name) for name in (ARCHIVE, UNPACKED))])


def find_list(folder: Path, name: str) -> Path:
    """`find_file` of a list, or of the same list as CSV; a DataError also where both are there and differ."""
    return _agreed(folder, name) or find_file(folder, name)


def look_for_list(folder: Path, name: str) -> Path | None:
    """As `find_list`; None if nowhere."""
    return look_for_file(folder, name) or look_for_file(folder, name.replace(".txt", ".csv"))


def _identities(folder: Path) -> Path | None:
    """The list of people; None if there is none, with a warning of files that seem to be one."""
    listed = _agreed(folder, IDENTITY, IDENTITY.lower())
    inside = (path for inner in OFFICIAL_FOLDERS for path in sorted((folder / inner).glob("*[iI]dentit*")))
    similar = [path for path in inside if path.is_file()]
    if similar and not listed:
        logging.warning(
            "%s is not read, so that intervals take images for independent; call it %s (or .csv) if it says "
            "who is on each image",
            *(similar[0], IDENTITY),
        )
    return listed


def _agreed(folder: Path, *names: str) -> Path | None:
    """Where a list of these names lies, as text or as CSV; a DataError where several are there and differ."""
    lists = [look_for_file(folder, form) for name in names for form in (name, name.replace(".txt", ".csv"))]
    first, *others = [path for path in lists if path] or [None]
    for other in others:
        if first and READERS[names[0]](first) != READERS[names[0]](other):
            raise DataError(f"{first} and {other} say different things; keep the one that is right")
    return first


def find_file(folder: Path, name: str) -> Path:
    """Where a file of the layout lies in `folder`; a DataError if nowhere."""
    path = look_for_file(folder, name)
    if path is None:
        raise DataError(f"{folder} lacks {ARCHIVE if name == UNPACKED else name}; {WAY_OUT}")
    return path


def look_for_file(folder: Path, name: str) -> Path | None:
    """As `find_file`; None if nowhere."""
    paths = (folder / inner / name for inner in OFFICIAL_FOLDERS)
    return next((path for path in paths if path.exists()), None)


# ---- checks


def _same_names(listed: set[str], present: Iterable[str], partition: Path, images: Path):
    """The partition file and the archive must speak of the same images: less is an interrupted copy."""
    absent, extra = sorted(listed - set(present)), sorted(set(present) - listed)
    if len(absent) == len(listed):
        raise DataError(
            f"{images} holds none of the {len(listed)} images of {partition.name} (first: {absent[0]}), but "
            f"{extra[0] if extra else 'no image'}; make them those of the list, by these names"
        )
    if absent:
        raise DataError(
            f"{images} lacks {len(absent)} of the {len(listed)} images of {partition.name} "
            f"(first: {absent[0]}); fetch the images again, or cut the lists to those you have"
        )
    if extra:
        lacks = f"lacks {len(extra)} images of {images.name} (first: {extra[0]})"
        raise DataError(f"{partition} {lacks}; download it again")


def _check_described(absent: tuple[str, ...], path: Path):
    if absent:
        lacks = f"lacks {len(absent)} images of {PARTITION} (first: {absent[0]})"
        raise DataError(f"{path} {lacks}; download it again")


def _sha256(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()
