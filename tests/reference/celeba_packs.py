"""Small packs of pictures in CelebA's official layout, made anew for each test."""

import io
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from mechdiff.data import celeba
from mechdiff.data.cache import load_split

SHARED = Path(__file__).parents[3] / "shared" / "celeba_subset"
SPLITS = (0,) * 8 + (1,) * 3 + (2,) * 4
MARKS = ("Male", "Smiling", "Young")


@lru_cache
def jpeg(number: int, size: tuple[int, int] = (178, 218)) -> bytes:
    """A picture that no other number has: smooth, so that JPEG keeps it."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [np.sin(6 * x + number), np.cos(5 * y + number), np.sin(4 * (x + y) * (1 + number % 5))]
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(127.5 + 120 * np.stack(waves, -1))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def mark(number: int, column: int) -> bool:
    return (number >> column) % 2 == 1


def write_pack(
    folder: Path,
    splits: tuple[int, ...] = SPLITS,
    first: int = 1,
    size: tuple[int, int] = (178, 218),
    unpacked: bool = False,
    marks: tuple[str, ...] = MARKS,
    end: str = "\r\n",
) -> Path:
    """A pack in the official layout, its pictures numbered from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + len(splits))
    pictures = {f"{number:06}.jpg": jpeg(number, size) for number in numbers}
    if unpacked:
        (folder / celeba.UNPACKED).mkdir()
        for name, encoded in pictures.items():
            (folder / celeba.UNPACKED / name).write_bytes(encoded)
    else:
        write_archive(folder, pictures)
    rows = [
        [f"{number:06}.jpg"] + ["1" if mark(number, c) else "-1" for c in range(len(marks))]
        for number in numbers
    ]
    lines = [str(len(rows)), " ".join(marks), *("  ".join(row) for row in rows)]
    (folder / celeba.ATTRIBUTES).write_text("".join(line + end for line in lines), newline="")
    lines = [f"{name} {split}" for name, split in zip(pictures, splits, strict=True)]
    (folder / celeba.PARTITION).write_text("".join(line + end for line in lines), newline="")
    return folder


def write_archive(folder: Path, pictures: dict[str, bytes]):
    with zipfile.ZipFile(folder / celeba.ARCHIVE, "w") as archive:
        for name, encoded in pictures.items():
            archive.writestr(name if "/" in name else f"{celeba.UNPACKED}/{name}", encoded)


def read_archive(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / celeba.ARCHIVE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def load(path, split: str = "train", size: int = 16, limit: int = 0, folder: Path | None = None):
    return load_split(celeba.open_source(str(path)), size=size, split=split, limit=limit, folder=folder)


def by_id(dataset) -> dict[str, bytes]:
    return {str(name): image.tobytes() for name, image in zip(dataset.ids, dataset.images, strict=True)}


def unpack_beside(number: int):
    """Image 1 lies unpacked beside the archive: itself, or another."""

    def unpack(folder: Path):
        (folder / celeba.UNPACKED).mkdir()
        (folder / celeba.UNPACKED / "000001.jpg").write_bytes(jpeg(number))

    return unpack
