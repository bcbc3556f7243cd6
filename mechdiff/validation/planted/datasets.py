"""Images whose denoising needs a single mechanism: three channels, of which `[0]` holds the content.

All are in [-1, 1], NHWC float32, drawn from a NumPy generator. Cells are squares of 2x2 pixels: variation
between cells survives one halving of the resolution, variation within a cell does not.
"""

import math
from collections.abc import Callable

import numpy as np

from mechdiff.core.types import Images

PlantedImages = Callable[[np.random.Generator, int, int], Images]
TINT = 0.9  # channel 2 of `tinted`
ELSEWHERE = 0.3  # content of all but the rare images of `rarely`


def regions(rng: np.random.Generator, count: int, side: int) -> Images:
    """A random half of the cells is marked in channel 1; content has one value on them, another elsewhere.

    The best estimate of a cell's content averages over the distant cells with the same mark.
    """
    cells = (side // 2) ** 2
    mark = np.where(rng.permuted(np.tile(np.arange(cells), (count, 1)), axis=1) % 2, 1.0, -1.0)
    values = rng.uniform(0.4, 0.9, (count, 2)) * rng.choice([-1, 1], (count, 2))
    content = np.where(mark > 0, values[:, :1], values[:, 1:])
    return _cells(np.stack([content, 0.8 * mark, np.zeros_like(mark)], -1), side)


def flat(rng: np.random.Generator, count: int, side: int) -> Images:
    """One color per image, of length 0.9 in any direction: the best estimate averages over all positions."""
    color = rng.normal(size=(count, 3))
    color *= 0.9 / np.linalg.norm(color, axis=1, keepdims=True)
    return np.broadcast_to(color[:, None, None], (count, side, side, 3)).astype(np.float32)


def cells(rng: np.random.Generator, count: int, side: int) -> Images:
    """Independent cells: content +-0.7, channel 1 +-0.5."""
    shape = (count, (side // 2) ** 2)
    content, other = 0.7 * rng.choice([-1, 1], shape), 0.5 * rng.choice([-1, 1], shape)
    return _cells(np.stack([content, other, np.zeros(shape)], -1), side)


def checkers(rng: np.random.Generator, count: int, side: int) -> Images:
    """Content is a checkerboard of pixels of either sign, mean 0 in every cell; channel 1 as in `cells`."""
    image = np.array(cells(rng, count, side))
    board = np.where(np.indices((side, side)).sum(0) % 2, 0.7, -0.7)
    image[..., 0] = rng.choice([-1, 1], (count, 1, 1)) * board
    return image


def tinted(rng: np.random.Generator, count: int, side: int) -> Images:
    """As `cells`, and channel 2 is `TINT` everywhere, in every image."""
    image = np.array(cells(rng, count, side))
    image[..., 2] = TINT
    return image


def rarely(rng: np.random.Generator, count: int, side: int) -> Images:
    """One content per image in channel 0. One image in eight, anywhere among them, has 0.8 of either sign, in
    channel 2 as well; the others have `ELSEWHERE` and nothing in channel 2. Channel 1 as in `cells`."""
    image = np.array(cells(rng, count, side))
    rare = np.arange(count) % 8 == np.repeat(rng.integers(8, size=math.ceil(count / 8)), 8)[:count]
    content = rng.choice([-1, 1], count) * np.where(rare, 0.8, ELSEWHERE)
    image[..., 0] = content[:, None, None]
    image[..., 2] = np.where(rare, content, 0)[:, None, None]
    return image


def quarter(rng: np.random.Generator, count: int, side: int, where: tuple[int, int]) -> Images:
    """One content per image, of size 0.4 to 0.9, in the quarter at row and column `where`, which is marked in
    channel 1; 0 elsewhere."""
    image = np.zeros((count, side, side, 3), np.float32)
    image[..., 1] = -0.8
    half = side // 2
    rows, columns = (slice(half * i, half * (i + 1)) for i in where)
    content = rng.uniform(0.4, 0.9, (count, 1, 1)) * rng.choice([-1, 1], (count, 1, 1))
    image[:, rows, columns, 0], image[:, rows, columns, 1] = content, 0.8
    return image


def either(rng: np.random.Generator, count: int, side: int) -> Images:
    """One content of 0.5 to 0.9 per image, in channel 0 or in channel 1; channel 2 as 1 of `cells`."""
    image = np.zeros((count, side, side, 3), np.float32)
    image[..., 2] = cells(rng, count, side)[..., 1]
    content, first = rng.uniform(0.5, 0.9, count), rng.random(count) < 0.5
    image[..., 0] = np.where(first, content, 0)[:, None, None]
    image[..., 1] = np.where(first, 0, content)[:, None, None]
    return image


def _cells(values: np.ndarray, side: int) -> Images:
    """`(count, cells, channels)` -> images."""
    grid = values.reshape(len(values), side // 2, side // 2, -1)
    return grid.repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)
