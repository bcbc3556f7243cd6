"""Images side by side: rows with labels, as one image that a notebook shows and a script saves."""

import dataclasses
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from mechdiff.core.errors import ConfigError, DataError, shorten
from mechdiff.core.types import Images
from mechdiff.data import to_bytes
from mechdiff.data.arrays import whole_array
from mechdiff.storage import files

SIDE = 96  # pixels of an image on the sheet, at least
GAP = 4
TEXT = 14  # pixels
BEYOND = 1.5  # samples that are not clipped leave [-1, 1] a little, which is cut off


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images that a model drew.

    Attributes:
      images: `(n, height, width, channels)` in [-1, 1].
      label: the model and what was done to it.
      seed: of the noise.
      precision_error: largest root mean square difference of an image's pixels from what float32 draws, as
        measured on the first images; 0 in float32.
    """

    images: Images
    label: str
    seed: int
    precision_error: float = 0.0

    def __len__(self) -> int:
        return len(self.images)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.images, dtype=dtype)

    def __repr__(self) -> str:
        side = "x".join(map(str, self.images.shape[1:]))
        precise = f", precision {self.precision_error:.2g}" if self.precision_error else ""
        return f"Samples({len(self)} images {side} of {self.label}, seed {self.seed}{precise})"

    def _repr_png_(self) -> bytes:
        return show(self)._repr_png_()

    def save(self, path: str | Path) -> None:
        """Writes them as one PNG."""
        show(self).save(path)


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
    """Rows of images with labels.

    Attributes:
      rows: uint8, each `(n, height, width, channels)`.
      labels: one per row.
    """

    rows: tuple[UInt8[np.ndarray, "n height width channels"], ...]
    labels: tuple[str, ...]

    @functools.cached_property
    def image(self) -> Image.Image:
        """The whole sheet."""
        height, width = self.rows[0].shape[1:3]
        zoom = max(1, math.ceil(SIDE / height))
        height, width, columns = height * zoom, width * zoom, max(map(len, self.rows))
        line = TEXT + 2 * GAP + height
        font = ImageFont.load_default(TEXT)
        wide = max(int(font.getlength(label)) for label in self.labels) + 2 * GAP
        size = max(wide, columns * (width + GAP) + GAP), len(self.rows) * line + GAP
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        for row, (images, label) in enumerate(zip(self.rows, self.labels, strict=True)):
            draw.text((GAP, row * line + GAP // 2), label, fill="#1d1d1f", font=font)
            for column, image in enumerate(images):
                pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
                corner = GAP + column * (width + GAP), row * line + TEXT + 2 * GAP
                sheet.paste(pixels.resize((width, height), Image.Resampling.NEAREST), corner)
        return sheet

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        rows = "1 row" if len(self.rows) == 1 else f"{len(self.rows)} rows"
        return f"Sheet({rows}: {'; '.join(self.labels)[:200]})"

    def save(self, path: str | Path) -> None:
        """Writes the sheet as PNG, whole or not at all; ConfigError for a name that ends otherwise."""
        if Path(path).suffix.lower() in Image.registered_extensions().keys() - {".png"}:
            raise ConfigError(f"{path}: images are written as PNG; call it {Path(path).stem}.png")
        files.write_atomic(Path(path), self._repr_png_())


def show(*rows: Any, labels: Sequence[str] | None = None) -> Sheet:
    """Images of several models under each other, column i being image i of each.

    Args:
      rows: what `Model.sample` returns, or arrays `(n, height, width, channels)`, bytes or in [-1, 1].
      labels: one per row; default: the model and intervention of each.

    Raises:
      ConfigError: no rows, another number of labels than rows, images of different sizes, or numbers far
        outside [-1, 1].

    Example:
      >>> show(np.zeros((2, 8, 8, 3), np.float32), labels=["gray"])
      Sheet(1 row: gray)
    """
    if not rows:
        raise ConfigError("nothing to show; give samples, such as md.show(model.sample(8))")
    if labels is not None and len(labels) != len(rows):
        raise ConfigError(f"{len(labels)} labels for {len(rows)} rows; give one per row")
    pixels = [to_bytes(row.images) if isinstance(row, Samples) else _pixels(row) for row in rows]
    for images in pixels:
        if images.ndim != 4 or images.shape[1:] != pixels[0].shape[1:] or images.shape[-1] not in (1, 3):
            beside = "" if images.shape == pixels[0].shape else f" beside {pixels[0].shape}"
            raise ConfigError(
                f"images of shape {images.shape}{beside}: each row is "
                "(images, height, width, channels), all of one size, with 1 or 3 channels last"
            )
    default = [getattr(row, "label", f"row {number}") for number, row in enumerate(rows)]
    return Sheet(tuple(pixels), tuple(str(label) for label in labels or default))


def _pixels(images: Any) -> np.ndarray:
    """Bytes as they are; floats in [-1, 1] as bytes."""
    try:
        array = whole_array(images)
        values = array if array.dtype == np.uint8 else np.asarray(array, np.float32)
    except (TypeError, ValueError, DataError):
        raise ConfigError(
            f"{shorten(images)} is not images; show samples, such as md.show(model.sample(8)), or arrays"
        ) from None
    if values.dtype == np.uint8:
        return values
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not -BEYOND <= low <= high <= BEYOND:
        raise ConfigError(f"images to show hold [{low:g}, {high:g}]; expected bytes, or floats in [-1, 1]")
    return to_bytes(values)
