"""Pruning on made-up faithfulness, and the search that it rests on."""

import functools

import numpy as np
import pytest

from mechdiff.circuits import pruning


def _at_least(answer, sizes):
    return sizes >= answer


@pytest.mark.parametrize("high", [1, 2, 7, 40, 500])
def test_the_grid_finds_the_first_of_a_monotone_sequence(high):
    for answer in {1, high, high // 2 or 1, max(1, high - 1)}:
        assert pruning._smallest(functools.partial(_at_least, answer), 0, high) == answer


def test_members_that_are_not_needed_are_dropped_and_all_others_stay():
    needed = np.array([False, True, False, True])  # the ranking puts one that is not needed first
    chosen = pruning.select(lambda sets: sets[:, needed].mean(axis=1), np.array([4.0, 3.0, 2.0, 1.0]), 1.0)
    assert chosen.members.tolist() == needed.tolist() and chosen.prefix == 4
    assert sorted(chosen.dropped) == [0, 2]


def test_each_left_out_lacks_one_member():
    sets = pruning.each_left_out(np.array([True, True, False]), np.array([0, 1]))
    assert sets.tolist() == [[False, True, False], [True, False, False]]
