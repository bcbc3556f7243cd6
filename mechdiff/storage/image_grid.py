"""Image files: sheets of many images."""

import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mechdiff.storage import files


def sheet(
    images: UInt8[np.ndarray, "n height width channels"], columns: int | None = None, gap: int = 1
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Images laid out row by row on white, as square as may be."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    lines = math.ceil(n / columns)
    canvas = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def png(image: UInt8[np.ndarray, "height width channels"], zoom: int = 1) -> bytes:
    """PNG bytes of an image, each pixel drawn as `zoom` x `zoom`; one channel or three."""
    drawn = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    drawn = drawn.resize((drawn.width * zoom, drawn.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_sheet(path: Path, images: np.ndarray, columns: int | None = None, zoom: int = 2) -> None:
    """Writes a sheet of byte images as PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, png(sheet(images, columns), zoom))
