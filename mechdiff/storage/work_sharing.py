"""How a result is filled piece by piece, by one process or by many."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mechdiff.storage import run_log


def run_missing(
    pieces: Sequence[Any], done: Callable[[Any], bool], compute: Callable[[Any], None], title: str
) -> None:
    """Computes the pieces that are missing, with other processes if they fill the same store.

    Every process goes round all pieces from a place of its own and skips those that are there. So they
    meet without a word between them, at most the last piece of each is computed twice (to the same
    numbers), and what a process that died leaves undone is done by those that go on.

    Args:
      done: whether a piece is in the store.
      compute: computes a piece and puts it there.
      title: of the progress bar.
    """
    first = start_offset(len(pieces))
    todo = [piece for piece in (*pieces[first:], *pieces[:first]) if not done(piece)]
    with run_log.progress(len(pieces), len(pieces) - len(todo), title, unit="piece") as bar:
        for piece in todo:
            if not done(piece):  # another process may have been here by now
                compute(piece)
            bar.update()


def start_offset(pieces: int) -> int:
    """Where this process begins: spread evenly over those that know each other, else anywhere."""
    if jax.process_count() > 1:
        return jax.process_index() * pieces // jax.process_count()
    return random.SystemRandom().randrange(pieces)
