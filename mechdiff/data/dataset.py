"""The record that every data source returns, and batches as a pure function of the step.

There is no state: `batch_at(dataset, seed, step, batch)` returns the same images whenever it is called, so a
resumed run has no iterator to restore.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

ImageBytes = UInt8[np.ndarray, "count height width channels"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Images of one split, in a fixed order.

    Attributes:
      name: where they come from ("synthetic", "gaussian", "celeba", "tfds", "folder").
      images: bytes in [0, 255], possibly memory-mapped: index it, don't copy it whole.
      digest: sha256 (hex) of what decides the content: source, size, crop, filter, split and count.
      labels: attributes, one value per image; may be empty.
      names: label -> names of its values 0, 1, ..., if they have names (folders).
      ids: the name of each image in its source (a file name, or an index).
      people: number of the person on each image, -1 where unknown; None: all unknown. Images of one person
        are not independent: intervals resample people.
      digests: sha256 (hex) of each image's file, where the source reads them; else None.
    """

    name: str
    images: ImageBytes
    digest: str
    labels: Mapping[str, Shaped[np.ndarray, " count"]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ids: Shaped[np.ndarray, " count"]
    people: Int[np.ndarray, " count"] | None = None
    digests: Shaped[np.ndarray, " count"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        side = "x".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name}: {len(self)} images {side}, sha256 {self.digest[:12]})"


def batch_indices(n: int, seed: int, step: int, batch: int) -> Int[np.ndarray, " batch"]:
    """Which of `n` images step `step` (from 0) sees: each once an epoch, in an order drawn per epoch.

    A batch may straddle two epochs (or more, when it is larger than `n`), so no image is ever dropped.

    Raises:
      ValueError: no images.
    """
    if n < 1:
        raise ValueError(f"n={n} images: at least 1 is needed")
    positions = step * batch + np.arange(batch)
    epochs, offsets = np.divmod(positions, n)
    indices = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        indices[in_epoch] = _permutation(n, seed, int(epoch))[offsets[in_epoch]]
    return indices


def batch_at(
    dataset: Dataset, seed: int, step: int, batch: int, flip: bool = False, rows: slice = slice(None)
) -> UInt8[np.ndarray, "rows height width channels"]:
    """The images of step `step`, as bytes; `flip` mirrors each left-right with probability 1/2.

    Args:
      rows: the part of the batch that is read, if several processes share it.
    """
    images = np.array(dataset.images[batch_indices(len(dataset), seed, step, batch)[rows]])
    if flip:
        mirrored = _mirrored(seed, step, batch)[rows]
        images[mirrored] = images[mirrored, :, ::-1]
    return images


def to_float(
    images: UInt8[Array | np.ndarray, "*shape"],
) -> Float[Array | np.ndarray, "*shape"]:
    """Bytes to float32 in [-1, 1], `x / 127.5 - 1`; NumPy in, NumPy out, and likewise for JAX."""
    return images.astype("float32") / 127.5 - 1


def to_bytes(
    images: Float[Array | np.ndarray, "*shape"],
) -> UInt8[Array | np.ndarray, "*shape"]:
    """The inverse of `to_float`: rounds to the nearest byte and clips what lies outside [-1, 1]."""
    return ((images + 1) * 127.5).round().clip(0, 255).astype("uint8")


def fingerprint(value: Any) -> str:
    """Sha256 (hex) of a JSON-ready value, whatever the order of its dictionaries."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.flags.writeable = False  # shared by every caller
    return order


def _mirrored(seed: int, step: int, batch: int) -> Bool[np.ndarray, " batch"]:
    # The trailing 1 keeps this stream apart from the epochs' permutations.
    return np.random.default_rng([seed, step, 1]).random(batch) < 0.5
