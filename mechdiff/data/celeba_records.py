"""What the lists of a pack of CelebA say of each image, kept while the files stay as they are."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mechdiff.core.errors import DataError
from mechdiff.data.celeba_lists import read_attributes, read_partition, read_people


class Lists(NamedTuple):
    """Splits, attributes and people; rows in the order of the partition file. Nobody is known: -1."""

    names: tuple[str, ...]
    splits: Int[np.ndarray, " count"]
    attributes: tuple[str, ...]
    flags: Bool[np.ndarray, "count attributes"]
    people: Int[np.ndarray, " count"]
    undescribed: tuple[str, ...]  # images that the attributes lack; their flags say nothing


def read_lists(partition: Path, attributes: Path, identity: Path | None) -> Lists:
    """The lists of one pack. CelebA's take seconds to read, and a command opens one source for each split, so
    those of the last packs are kept; a file of another time or size is read anew.

    Args:
      identity: the list of people; None: there is none.

    Raises:
      DataError: a list that can't be read.
    """
    paths = (partition, attributes, identity)
    return _read(paths, tuple(_version(path) for path in paths))


@functools.lru_cache(maxsize=4)  # packs
def _read(paths: tuple[Path, Path, Path | None], versions: tuple) -> Lists:
    partition, attribute, identity = paths
    names, splits = read_partition(partition)
    attributes, flags_of = read_attributes(attribute)
    unknown = [False] * len(attributes)
    flags = np.array([flags_of.get(name, unknown) for name in names])
    undescribed = tuple(sorted(set(names).difference(flags_of)))
    people = read_people(identity, names)
    return Lists(tuple(names), np.array(splits), attributes, flags, people, undescribed)


def _version(path: Path | None) -> tuple[int, int, int] | None:
    """What changes with a file's content, as far as the file system knows."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})") from error
    return status.st_ino, status.st_mtime_ns, status.st_size
