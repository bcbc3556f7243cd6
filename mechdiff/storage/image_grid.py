"""Image files: sheets of many images."""

import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mechdiff.storage import files

GAP = 1  # white pixels between images of a sheet
SHEET = "samples.png"  # in the folder of a model: samples of its own, classes in turn


def sheet(
    images: UInt8[np.ndarray, "n height width channels"], columns: int | None = None
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Images laid out row by row on white, as square as may be."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    lines = math.ceil(n / columns)
    canvas = np.full((lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas


def tiles(
    sheet: UInt8[np.ndarray, "rows columns channels"], height: int, width: int
) -> UInt8[np.ndarray, "n height width channels"] | None:
    """The images of a `sheet` again, without cells that are white; None: it is no sheet of such images.

    Example:
      >>> images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
      >>> tiles(sheet(images), 1, 1).ravel().tolist()
      [0, 1, 2]
    """
    framed = np.pad(sheet, ((0, GAP), (0, GAP), (0, 0)))
    if framed.shape[0] % (height + GAP) or framed.shape[1] % (width + GAP):
        return None
    cells = framed.reshape(-1, height + GAP, framed.shape[1] // (width + GAP), width + GAP, sheet.shape[2])
    images = cells[:, :height, :, :width].swapaxes(1, 2).reshape(-1, height, width, sheet.shape[2])
    return images[(images != 255).any((1, 2, 3))]


def png(image: UInt8[np.ndarray, "height width channels"], zoom: int = 1) -> bytes:
    """PNG bytes of an image, each pixel drawn as `zoom` x `zoom`; one channel or three."""
    drawn = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    drawn = drawn.resize((drawn.width * zoom, drawn.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_sheet(path: Path, images: np.ndarray) -> None:
    """Writes a sheet of byte images, each pixel as four, as PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, png(sheet(images), zoom=2))
