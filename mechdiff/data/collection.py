"""A user's images to examine a network on: a folder, a file of an array, or an array."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from mechdiff.core.config import Preprocessing
from mechdiff.core.errors import DataError
from mechdiff.data.arrays import SUFFIXES, as_images, read_array, read_labels, whole_array
from mechdiff.data.dataset import fingerprint, to_bytes, to_float
from mechdiff.data.folder import ImageFiles, distinct, list_images
from mechdiff.data.images import thumbnail
from mechdiff.data.scrambled import scrambled


@dataclass(frozen=True, eq=False, kw_only=True)
class Collection:
    """Images of one folder or file; those of files are read one by one, by `pixels`.

    Attributes:
      name: for messages, such as `faces` (a folder) or `an array`.
      digests: sha256 (hex) of each.
      rows: the images that are used, in order; of equal ones in a folder or file only one.
      array: the images, uint8 or float32 in [-1, 1]; None: they lie in `files`.
      files: the files of a folder.
      file: of the array.
      notes: what was passed over or converted, in words.
    """

    name: str
    digests: tuple[str, ...]
    rows: tuple[int, ...]
    array: Shaped[np.ndarray, "count height width channels"] | None = None
    files: ImageFiles | None = None
    file: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Digest (SHA-256, hex) of the set of images, whatever their names and order."""
        return fingerprint(sorted(self.digests))

    @property
    def recorded(self) -> tuple[str, ...]:
        """The digests by which a training knows the images: of floats those of the bytes that it makes of
        them."""
        floats = self.array is not None and self.array.dtype != np.uint8
        return _digests(to_bytes(self.array)) if floats else self.digests

    @property
    def names(self) -> Sequence[str]:
        """Paths of the files below their folder; empty for an array."""
        return () if self.files is None else self.files.names

    @property
    def labels(self) -> Shaped[np.ndarray, " count"] | None:
        """The class of each image, as an `.npz` file holds it; errors as `arrays.read_labels`."""
        return None if self.file is None else read_labels(self.file, len(self.digests))

    def pixels(
        self, row: int, size: int, preprocessing: Preprocessing
    ) -> Float[np.ndarray, "{size} {size} channels"]:
        """One image in [-1, 1]; for an array of the network's size and channels unchanged but for its phases.

        Raises:
          DataError: it can't be read, does not fit the crop, or is of floats in another size.
        """
        if self.files is not None:
            return to_float(thumbnail(self.files.read(row), size, self.files.names[row], preprocessing))
        assert self.array is not None  # files or an array
        image, name = self.array[row], f"{row} of {self.name}"
        if self._fits(size, preprocessing):
            if preprocessing.phases == "random":
                return to_float(scrambled(image if image.dtype == np.uint8 else to_bytes(image)))
            return to_float(image) if image.dtype == np.uint8 else np.asarray(image)
        if image.dtype != np.uint8:
            raise DataError(
                f"{self.name} holds floats of shape {image.shape}, but the network takes "
                f"{(size, size, preprocessing.channel_count)}; give that shape, or whole numbers in [0, 255] "
                "that can be resized"
            )
        return to_float(thumbnail(image, size, name, preprocessing))

    def treatment(self, size: int, preprocessing: Preprocessing) -> str:
        """The preprocessing of the images, in words."""
        as_they_are = self._fits(size, preprocessing)
        unchanged = "random phases" if preprocessing.phases == "random" else "as they are"
        done = unchanged if as_they_are else f"{preprocessing.description}, resized to {size}x{size}"
        return "; ".join([done, *self.notes])

    def _fits(self, size: int, preprocessing: Preprocessing) -> bool:
        """Whether it is an array of this size and as many channels."""
        shape = (size, size, preprocessing.channel_count)
        return self.array is not None and self.array.shape[1:] == shape


def open_collection(
    source: str | Path | np.ndarray, value_range: tuple[float, float] | None = None
) -> Collection:
    """The images of a folder, of an `.npy` or `.npz` file, or of an array.

    Images of a folder or file are ordered by their hashes, equal ones taken once; those of an array keep
    their order.

    Args:
      value_range: of numbers in another range, such as (0, 1).

    Raises:
      DataError: no such folder or file, no images, or an array that can't be read without a guess.
    """
    if isinstance(source, str | Path) and Path(source).suffix.lower() not in SUFFIXES:
        listed = list_images(source)
        rows, equal = distinct(listed), len(listed.names) - len(distinct(listed))
        notes = listed.notes + ([f"{equal} equal images left out"] if equal else [])
        name = Path(listed.where).resolve().name
        return Collection(name=name, digests=listed.digests, rows=rows, files=listed, notes=notes)
    if not isinstance(source, str | Path):
        images, notes = as_images(whole_array(source), "the array", value_range)
        return Collection(
            name="an array",
            digests=_digests(images),
            rows=tuple(range(len(images))),
            array=images,
            notes=notes,
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"no file {str(source)!r} with an array of images")
    images, notes = as_images(read_array(path), str(path), value_range)
    if not len(images):
        raise DataError(f"{path} holds no images (shape {images.shape})")
    digests = _digests(images)
    rows = tuple(np.unique(digests, return_index=True)[1].tolist())
    if len(rows) < len(digests):
        notes = [*notes, f"{len(digests) - len(rows)} equal images left out"]
    return Collection(name=path.name, digests=digests, rows=rows, array=images, file=path, notes=notes)


def _digests(images: np.ndarray) -> tuple[str, ...]:
    return tuple(hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images)
