"""A result that is computed piece by piece: in memory, or in a store that a killed run goes on to fill."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from mechdiff.storage import labelled, work_sharing

Piece = dict[str, slice]  # dimension -> its indices; dimensions that it does not name are whole


def unfilled(
    variables: dict[str, tuple[str, ...]], sizes: dict[str, int], dtype: type[np.floating] = np.float32
) -> xr.Dataset:
    """A result before its first piece: variables, given by the names of their dimensions, full of NaN."""
    shapes = {name: tuple(sizes[dim] for dim in dims) for name, dims in variables.items()}
    return xr.Dataset(
        {name: (dims, np.full(shapes[name], np.nan, dtype)) for name, dims in variables.items()}
    )


def singles(**sizes: int) -> list[Piece]:
    """One piece for every index along each of some dimensions, the last one fastest.

    Example:
      >>> [(piece["t"].start, piece["block"].start) for piece in singles(t=2, block=2)]
      [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    indices = itertools.product(*(range(size) for size in sizes.values()))
    return [{dim: slice(i, i + 1) for dim, i in zip(sizes, at, strict=True)} for at in indices]


def filled(
    empty: xr.Dataset,
    pieces: Sequence[Piece],
    compute: Callable[[Piece], dict[str, np.ndarray]],
    path: Path | None = None,
    title: str = "",
) -> dict[str, np.ndarray]:
    """All variables of a result; the pieces that a store lacks are computed now.

    Args:
      empty: of `unfilled`. A piece is in the store once the last variable is finite there.
      pieces: in an order that is the same in all processes; none is larger than the first.
      compute: of a piece the numbers of every variable, in the shape of its part.
      path: the store, named by a digest of everything that decides the numbers; None: in memory.
      title: of the progress bar.

    Raises:
      CheckpointError: the store is damaged.

    Example:
      >>> empty = unfilled({"square": ("number",)}, {"number": 3})
      >>> filled(empty, singles(number=3), lambda piece: {"square": [piece["number"].start ** 2]})
      {'square': array([0., 1., 4.], dtype=float32)}
    """

    def region(piece: Piece) -> dict[str, tuple[slice, ...]]:
        return {
            str(name): tuple(piece.get(str(dim), slice(None)) for dim in variable.dims)
            for name, variable in empty.items()
        }

    if path is None:
        arrays = {str(name): variable.values for name, variable in empty.items()}
        for piece in pieces:
            values = compute(piece)
            for name, where in region(piece).items():
                arrays[name][where] = values[name]
        return arrays
    chunks = {name: empty[name].values[where].shape for name, where in region(pieces[0]).items()}
    labelled.create(path, empty, chunks)

    def done(piece: Piece) -> bool:
        name, where = list(region(piece).items())[-1]
        return labelled.written(path, name, where)

    def put(piece: Piece) -> None:
        where, values = region(piece), compute(piece)
        labelled.put(path, where, {name: values[name] for name in where})

    work_sharing.run_missing(path, pieces, done, put, title)
    return {str(name): variable.values for name, variable in labelled.read(path).items()}
