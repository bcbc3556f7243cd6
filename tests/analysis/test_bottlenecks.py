"""Bottlenecks: chosen on one half of the networks, tested on the other."""

import numpy as np
import pytest
import scipy.stats

from mechdiff.analysis import bottlenecks


def test_the_least_of_the_kinds_that_see_a_component_counts():
    increases = np.array([[[30.0, 5.0, 1.0], [20.0, 9.0, 0.0]]])[..., None]
    seen = np.array([[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(bottlenecks.weakest(increases, seen)[0, :, 0], [20, 5, -np.inf])


def test_each_half_tests_what_the_other_named():
    rng = np.random.default_rng(0)
    increases = rng.normal(10, 2, (8, 5))
    first = np.arange(8) < 4
    increases[first, 1] += 40  # the first half names component 1, which costs the second half nothing
    increases[~first, 3] += 50
    result = bottlenecks.crossed(increases[..., None], first)
    assert result.chosen == (1, 3) and result.share == 0
    student = [
        scipy.stats.ttest_1samp(x, 25, alternative="greater").pvalue
        for x in (increases[4:, 1], increases[:4, 3])
    ]
    assert result.p == pytest.approx(max(student)) and result.p > 0.9
    assert result.estimate == pytest.approx((increases[4:, 1].mean() + increases[:4, 3].mean()) / 2)
    assert result.interval[0] < result.estimate < result.interval[1]


def test_a_component_that_no_kind_sees_is_never_named():
    increases = np.random.default_rng(0).normal(40, 2, (8, 3, 1))
    increases[:, 0] = -np.inf
    assert min(bottlenecks.crossed(increases, np.arange(8) % 2 == 0).chosen) >= 1


def test_none_is_a_bottleneck_only_if_all_are_below():
    rng = np.random.default_rng(1)
    low = rng.normal(5, 2, (8, 4, 1))
    first = np.arange(8) % 2 == 0
    assert bottlenecks.crossed(low, first).p_none < 0.001
    low[:, 2] += 20
    assert bottlenecks.crossed(low, first).p_none > 0.05


def test_what_images_move_moves_both_halves():
    """Images err five times as much as networks: intervals cover .95, not .84 as of independent halves."""
    rng, covered = np.random.default_rng(2), []
    for _ in range(300):
        error, draws = 5 * rng.normal(), 5 * rng.normal(size=100)
        of_networks = 60 + rng.normal(size=(6, 1, 1)) + error
        increases = np.concatenate([of_networks, of_networks + draws], axis=2)
        low, high = bottlenecks.crossed(increases, np.arange(6) % 2 == 0, 40).interval
        covered.append(low <= 60 <= high)
    assert 0.92 < np.mean(covered) < 0.98


def test_halves_are_even_within_data_sets():
    first = bottlenecks.split(["a", "b", "a", "b", "a", "a"], [3, 0, 1, 1, 2, 0])
    np.testing.assert_array_equal(first, [False, True, False, False, True, True])


def test_two_networks_a_half_decide_nothing():
    result = bottlenecks.crossed(np.full((4, 3, 1), 50.0), np.arange(4) % 2 == 0)
    assert np.isnan(result.p) and np.isnan(result.p_none)
