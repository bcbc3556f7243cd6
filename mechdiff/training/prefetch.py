"""Prefetching of batches, so that no device waits for its input."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
AHEAD = 2  # steps: one is being copied to the devices while the next is read


def prefetched(
    make: Callable[[int], T], start: int, stop: int, ahead: int = AHEAD
) -> Iterator[tuple[int, T]]:
    """`(step, make(step))` of the steps from `start` to `stop - 1`, in order, made by a thread.

    Up to `ahead` of them are made in advance. An error of `make` is raised when its step is reached; the
    thread ends with the iterator.

    Example:
      >>> list(prefetched(lambda step: step**2, 2, 5))
      [(2, 4), (3, 9), (4, 16)]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        made = deque(pool.submit(make, step) for step in range(start, min(start + ahead, stop)))
        try:
            for step in range(start, stop):
                value = made.popleft().result()
                if step + ahead < stop:
                    made.append(pool.submit(make, step + ahead))
                yield step, value
        finally:
            for later in made:
                later.cancel()
