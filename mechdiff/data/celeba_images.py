"""The images of CelebA: of its archive, or of a folder that it was unpacked to."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mechdiff.core.errors import DataError
from mechdiff.data.celeba_lists import SUFFIXES, listed_name

UNPACKED = "img_align_celeba"
MAX_FILE_BYTES = 2**24  # the largest genuine image has some 25 thousand


class Entry(NamedTuple):
    """What is known of an image without reading it.

    Attributes:
      size: in bytes.
      checksum: CRC-32 of an archive's directory; "" in a folder.
      modified: nanoseconds, in a folder; 0 in an archive, where the checksum says more.
    """

    size: int
    checksum: int | str
    modified: int


Opened = tuple[dict[str, Entry], Callable[[str], bytes]]  # entries by name, and a reader of one


def innermost(folder: Path) -> Path:
    """Where the images lie: `folder`, or the folder of its name in it (once or twice), if it has none.

    Raises:
      DataError: images in both, of which either might be meant.
    """
    for _ in range(2):
        inner = folder / UNPACKED
        here, there = (any(_is_image(path.name) for path in side.glob("*")) for side in (folder, inner))
        if here and there:
            raise DataError(f"{folder} and {inner} both hold images; keep one of them")
        folder = inner if inner.is_dir() and not here else folder
    return folder


def open_archive(path: Path) -> Opened:
    """The images of an archive, by their names without folders.

    Raises:
      DataError: no zip, or one that holds two images of one name; the reader, of an image that is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is truncated or no zip ({error}); download it again") from error
    infos = [info for info in archive.infolist() if _harmless(info.filename)]
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        earlier = members.setdefault(listed_name(info.filename.rpartition("/")[2]), info)
        if (earlier.file_size, earlier.CRC) != (info.file_size, info.CRC):
            raise DataError(
                f"{path} holds two images {earlier.filename} and {info.filename}; keep one of them"
            )

    def read(name: str) -> bytes:
        if members[name].file_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: {name} claims {members[name].file_size} bytes; no CelebA image does")
        try:
            return archive.read(members[name])
        except Exception as error:  # bad checksum, truncated, encrypted: as many classes
            raise DataError(f"{path}: {name} can't be read ({error}); download the archive again") from error

    # The directory's CRC-32s make the hash one of content, without reading the images; no times are needed.
    return {name: Entry(info.file_size, info.CRC, 0) for name, info in members.items()}, read


def open_folder(folder: Path) -> Opened:
    """The images of a folder; the reader raises a DataError for one that can't be read."""
    paths: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if _is_image(path.name)):
        earlier = paths.setdefault(listed_name(path.name), path)
        if earlier != path:
            raise DataError(f"{folder} holds {earlier.name} and {path.name}; keep the images of one ending")
    stats = {name: path.stat() for name, path in paths.items()}

    def read(name: str) -> bytes:
        try:
            return paths[name].read_bytes()
        except OSError as error:
            raise DataError(f"{paths[name]} can't be read ({error.strerror}); unpack it again") from error

    return {name: Entry(stat.st_size, "", stat.st_mtime_ns) for name, stat in stats.items()}, read


def contradicts(unpacked: Mapping[str, Entry], archive: Mapping[str, Entry]) -> bool:
    """Whether any image that was unpacked is not in the archive, or of another size there. That fewer were
    unpacked than the archive has is no contradiction."""
    return any(name not in archive or archive[name].size != entry.size for name, entry in unpacked.items())


def _harmless(member: str) -> bool:
    """An image, by a relative name that stays inside the archive."""
    *folders, name = member.split("/")  # a path object for each of 202,599 takes seconds
    inside = not member.startswith("/") and ".." not in folders and "\\" not in member
    return inside and _is_image(name) and "__MACOSX" not in folders


def _is_image(name: str) -> bool:
    """By its name; a Mac leaves `._NAME` beside NAME."""
    return name.lower().endswith(SUFFIXES) and not name.startswith("._")
