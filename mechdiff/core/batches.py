"""Items split into batches of equal length, so that one compiled program serves all of them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mechdiff.core import ranges


class Batch(NamedTuple):
    """Items that are computed together.

    Attributes:
      indices: of the items, always `size` of them: a short last batch is padded with repeats of its items.
      span: where the results belong; results of the padding are cut off by `results[: batch.count]`.
    """

    indices: Int[np.ndarray, " size"]
    span: slice

    @property
    def count(self) -> int:
        """Number of items without the padding, which comes last."""
        return self.span.stop - self.span.start

    @property
    def weights(self) -> Float[np.ndarray, " size"]:
        """1 for every item, 0 for the padding: for sums over a batch."""
        return (np.arange(len(self.indices)) < self.count).astype(np.float32)


def batches(count: int, size: int) -> Iterator[Batch]:
    """Yields items 0 to `count - 1` in batches of `size`.

    Raises:
      ConfigError: a size that is no whole number above 0; of a negative one there would be no batches, and
        results would stay empty.

    Example:
      >>> [(batch.indices.tolist(), batch.span) for batch in batches(5, 3)]
      [([0, 1, 2], slice(0, 3, None)), ([3, 4, 3], slice(3, 5, None))]
    """
    size = ranges.whole("block", size, 1, meaning="how many at once")
    for start in range(0, count, size):
        span = slice(start, min(start + size, count))
        yield Batch(filled(span, size), span)


def filled(span: slice, size: int) -> Int[np.ndarray, " size"]:
    """The items of a span, padded to `size` with repeats of them.

    Example:
      >>> filled(slice(3, 5), 3)
      array([3, 4, 3])
    """
    return np.resize(np.arange(span.start, span.stop), size)
