"""Arrays of images in any of the usual layouts, recognized without guessing, and checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from mechdiff.core.errors import DataError, shorten
from mechdiff.data.images import plain_pixels

SUFFIXES = (".npy", ".npz")
BEGINS = {".npy": b"\x93NUMPY", ".npz": b"PK\x03\x04"}  # how such files begin, whatever they are called
IMAGES = "images"  # name of the images in an .npz that holds several arrays of more than two axes
LABELS = (
    "labels",
    "label",
    "classes",
    "class",
    "y",
    "targets",
    "arr_1",
)  # of the classes; the first is taken
LABELS += ("y_train", "y_test", "train_labels", "test_labels")
ALMOST_BLACK = -0.1  # resizing of [0, 1] overshoots to this; [-1, 1] without anything darker is hardly images
MAX_PERCENT = 100  # whole numbers up to this alone are hardly bytes: percent, or images of 4 to 6 bits


def read_array(path: Path) -> Shaped[np.ndarray, "..."]:
    """The images of an `.npy` (memory-mapped) or `.npz` file; nothing is unpickled.

    Raises:
      DataError: damaged, of objects, or an `.npz` of several arrays of which none is called `images`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(max(map(len, BEGINS.values())))
        suffix = path.suffix.lower()
        for other in SUFFIXES:
            if other != suffix and head.startswith(BEGINS[other]):
                raise DataError(f"{path} is an {other} file; give it that ending")
        if suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            if not content.files:
                raise DataError(f"{path} holds no arrays; save the images as 'images'")
            return content[_images_among(content, path)]
    except DataError:
        raise
    except Exception as error:  # zip, header and value errors alike
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} can't be read as an array ({shorten(reason)}); save it again") from error


def _images_among(content: Mapping[str, np.ndarray], path: Path) -> str:
    """The name of the images among the arrays of a file: `images`, or the only one of more than two axes."""
    sized = [name for name in content if content[name].ndim > 2] if IMAGES not in content else [IMAGES]
    sized = sized or list(content)  # none is images: the first one's shape will say so
    if len(sized) > 1:  # x_train and x_test, say, or images and masks
        raise DataError(
            f"{path} holds {len(sized)} arrays ({shorten(sized)}); call that of the images {IMAGES!r}"
        )
    return sized[0]


def read_labels(path: Path, count: int) -> Shaped[np.ndarray, " count"] | None:
    """The class of each image of an `.npz` file, whole numbers or names: the array called `labels` (or
    another of `LABELS`, in capitals or not); None where it holds none.

    Raises:
      DataError: labels that are not one per image, or neither integers nor text.
    """
    if path.suffix.lower() != ".npz":
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            called = {name.lower(): name for name in content.files} | {name: name for name in content.files}
            name = next((called[name] for name in LABELS if name in called), "")
            labels = content[name] if name else None
    except ValueError as error:  # of objects
        raise DataError(f"{path} can't be read as arrays ({shorten(str(error))}); save it again") from error
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "uiU"):
        raise DataError(
            f"{path}: {name} is of shape {labels.shape} and type {labels.dtype}; expected whole numbers or "
            f"names, one for each of {count} images"
        )
    return labels


def whole_array(images: Any) -> Shaped[np.ndarray, "..."]:
    """Images that a user holds, as one NumPy array.

    Raises:
      DataError: images of several shapes; a masked array, whose mask would be lost; paths; images of Pillow
        that can't be read without a guess.
    """
    if np.ma.isMaskedArray(images):
        raise DataError("the array is masked; say what is under the mask, such as images.filled(0)")
    if isinstance(images, list | tuple) and any(isinstance(image, str | Path) for image in images):
        raise DataError("the array is a list of paths; give the folder that holds these files alone")
    if isinstance(images, list | tuple) and any(isinstance(image, Image.Image) for image in images):
        images = [
            plain_pixels(image, f"{number} of the list") if isinstance(image, Image.Image) else image
            for number, image in enumerate(images)
        ]
    try:
        return np.asarray(images)
    except ValueError:
        raise DataError("images of different shapes can't be one array; give a folder of files") from None
    except (TypeError, RuntimeError) as error:  # a tensor that needs a gradient, say, or lies elsewhere
        reason = shorten(" ".join(str(error).split()))[1:-1]
        raise DataError(f"the array can't be read as a NumPy array ({reason})") from None


def as_images(
    array: Shaped[np.ndarray, "..."], where: str, value_range: tuple[float, float] | None = None
) -> tuple[Shaped[np.ndarray, "count height width channels"], list[str]]:
    """The images of an array as uint8 or, where they were floats, float32 in [-1, 1]; NHWC.

    Args:
      array: whole numbers in [0, 255], or floats in [-1, 1]; `(count, height, width, channels)`,
        `(count, channels, height, width)`, or `(count, height, width)` of gray images; 1 or 3 channels.
      where: what to call it in an error.
      value_range: of numbers that span another range, such as (0, 1): what becomes -1 and 1.

    Returns:
      The images, and what was done to them, in words.

    Raises:
      DataError: another layout, or values that leave open what is black and what is white.

    Example:
      >>> images, notes = as_images(np.zeros((5, 3, 8, 8), np.uint8), "x")
      >>> images.shape, notes
      ((5, 8, 8, 3), ['channels moved last'])
    """
    images, notes = _channels_last(array, where)
    if images.dtype.kind in "ui" and value_range in (None, (0, 255)):
        low, high = (int(images.min()), int(images.max())) if images.size else (0, 255)
        black = high == 0 and images.dtype == np.uint8
        if low < 0 or high > 255 or (high <= MAX_PERCENT and not black and value_range is None):
            raise DataError(
                f"{where} holds whole numbers in [{low}, {high}]; expected [0, 255], or floats in [-1, 1]"
            )
        return images.astype(np.uint8, copy=False), notes
    if images.dtype.kind not in ("f" if value_range is None else "fui"):
        raise DataError(
            f"{where} holds {images.dtype}; expected whole numbers in [0, 255], or floats in [-1, 1]"
        )
    images, scaled = _scaled(np.asarray(images, np.float32), where, value_range)
    return images, notes + scaled


def _channels_last(array: np.ndarray, where: str) -> tuple[np.ndarray, list[str]]:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3) and shape[-1] not in (1, 3):
        raise DataError(
            f"{where} has shape {shape}: {shape[0]} gray images, or one of {shape[0]} channels? Add the axis "
            "of channels, or that of images"
        )
    if array.ndim == 3 and shape[-1] not in (1, 3):
        return array[..., None], ["a channel axis added"]
    if array.ndim == 4 and shape[-1] in (1, 3):
        return array, []
    if array.ndim == 4 and shape[1] in (1, 3):
        return np.moveaxis(array, 1, -1), ["channels moved last"]
    raise DataError(
        f"{where} has shape {shape}; expected (images, height, width, channels) with 1 or 3 channels"
    )


def _scaled(images: np.ndarray, where: str, value_range) -> tuple[np.ndarray, list[str]]:
    """Floats in [-1, 1]."""
    if not np.isfinite(images).all():
        raise DataError(f"{where} holds NaN or Inf; expected floats in [-1, 1]")
    low, high = (float(images.min()), float(images.max())) if images.size else (-1.0, 1.0)
    if value_range is not None:
        least, most = value_range
        if not -np.inf < least < most < np.inf:
            raise DataError(f"value_range={value_range} of {where} is not (black, white), as in (0, 1)")
        images, notes = (
            (images - least) * (2 / (most - least)) - 1,
            [f"[{least:g}, {most:g}] scaled to [-1, 1]"],
        )
        if images.size and not -1.001 <= images.min() <= images.max() <= 1.001:
            raise DataError(
                f"{where} holds numbers in [{low:g}, {high:g}], outside value_range={value_range}"
            )
        return np.clip(images, -1, 1), notes
    if low < -1.001 or high > 1.001:
        raise DataError(
            f"{where} holds floats in [{low:g}, {high:g}]; expected [-1, 1], or whole numbers in [0, 255]"
        )
    if images.size and (low >= 0 or (low > ALMOST_BLACK and high > 0.5)):
        raise DataError(
            f"{where} holds floats in [{low:g}, {high:g}]: is black 0 or -1? Scale [0, 1] by 2 x - 1, or "
            "give bytes in [0, 255], which leave no doubt"
        )
    if max(-low, high) <= 0.501 and high - low > 0.8:
        raise DataError(
            f"{where} holds floats in [{low:g}, {high:g}]: is white 1 or 0.5? Scale [-0.5, 0.5] by 2, or "
            "give bytes in [0, 255], which leave no doubt"
        )
    return np.clip(images, -1, 1), []
