"""How a result is computed piece by piece, by one process or by many."""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from mechdiff.storage import exchange, run_log
from mechdiff.storage.ownership import WORK


def run_missing(
    store: Path,
    pieces: Sequence[Any],
    done: Callable[[Any], bool],
    compute: Callable[[Any], None],
    title: str,
) -> None:
    """Computes the pieces that are missing, with other processes if they work on the same store.

    Every process visits all pieces, each from another start, and skips those that are in the store. They
    exchange no messages; at most the last piece of each is computed twice (to the same numbers), and others
    finish what a dead process left. If the store is in the local copy of a bucket's
    folder, a process does not see at once what others finish: it takes a piece before it computes it, and
    waits at the end for those that others took. A piece that isn't done once it is computed, such as one
    whose losses are not finite, is not computed again by the same process.

    Args:
      store: where the results are put.
      pieces: in an order that is the same in all processes.
      done: whether a piece is in the store, whole.
      compute: computes a piece and puts it there.
      title: of the progress bar.
    """
    first = start_offset(len(pieces))
    indices = [*range(first, len(pieces)), *range(first)]
    others = exchange.of(store)
    computed: set[int] = set()  # here

    def missing(indices: list[int]) -> list[int]:
        return [index for index in indices if index not in computed and not done(pieces[index])]

    def finish(index: int) -> bool:
        """Whether a piece is there now: another process may have been here, or be at it."""
        if done(pieces[index]):
            return True
        if others is not None:
            if not others.take(_name(others, store, index, len(pieces))):
                return False
            if done(pieces[index]):  # between the question and the taking
                return True
        compute(pieces[index])
        computed.add(index)
        if others is not None and not done(pieces[index]):  # others would wait for it as long as this lives
            others.release(_name(others, store, index, len(pieces)))
        return True

    todo = missing(indices)
    with run_log.progress(len(pieces), len(pieces) - len(todo), title, unit="piece") as bar:
        while todo:
            for index in todo:
                if finish(index):
                    bar.update()
            todo = _those_of_others(others, missing, todo)


def _those_of_others(
    others: exchange.Exchange | None, missing: Callable[[list[int]], list[int]], indices: list[int]
) -> list[int]:
    """After a round: which pieces are still missing because other processes took them."""
    if others is None:
        return []
    others.send()
    others.refresh()
    todo = missing(indices)
    if todo:
        time.sleep(exchange.POLL_SECONDS)
        others.refresh()
    return missing(todo)


def _name(others: exchange.Exchange, store: Path, index: int, count: int) -> str:
    return f"{exchange.name_of(WORK, store, others)}/{index}-of-{count}"


def start_offset(pieces: int) -> int:
    """Where this process begins: spread evenly over those that know each other, else anywhere."""
    if jax.process_count() > 1:
        return jax.process_index() * pieces // jax.process_count()
    return random.SystemRandom().randrange(pieces)
