"""Batches made ahead of time: order, lead, and errors when their turn comes."""

import threading

import pytest

from mechdiff.training.prefetch import prefetched


def test_steps_come_in_order_and_only_so_many_are_made_ahead():
    made, third = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 5:
            third.set()
        return step**2

    steps = prefetched(make, 3, 9, ahead=2)
    assert next(steps) == (3, 9)
    assert third.wait(300)  # 4 and 5 are made while nobody asks for them
    assert made == [3, 4, 5]
    assert list(steps) == [(4, 16), (5, 25), (6, 36), (7, 49), (8, 64)] and made == [*range(3, 9)]


def test_an_error_is_raised_at_its_step_and_ends_the_thread():
    def make(step):
        if step >= 2:
            raise ValueError(step)
        return step

    seen = []
    with pytest.raises(ValueError, match=r"^2$"):
        for step, _ in prefetched(make, 0, 10):
            seen.append(step)
    assert seen == [0, 1]
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_no_steps():
    assert list(prefetched(lambda step: step, 4, 4)) == []
