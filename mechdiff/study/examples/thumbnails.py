"""Images made small, as bytes."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mechdiff.data import to_bytes


def thumbnails(
    images: Float[np.ndarray, "*leading height width channels"], side: int
) -> UInt8[np.ndarray, "*leading y x channel"]:
    """Images in [-1, 1] as bytes, no larger than `side` pixels; those that are keep their proportions."""
    pixels = to_bytes(np.nan_to_num(images))
    height, width, channels = pixels.shape[-3:]
    if max(height, width) <= side:
        return pixels
    size = (max(1, side * width // max(height, width)), max(1, side * height // max(height, width)))
    flat = [
        image[..., 0] if channels == 1 else image for image in pixels.reshape(-1, height, width, channels)
    ]
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in flat]
    return np.stack(small).reshape(*pixels.shape[:-3], size[1], size[0], channels)
