"""Divergence between networks of two data sets: by hand, and what must not matter."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from mechdiff.analysis import network_divergence
from mechdiff.core.errors import ConfigError

LAYERS = ["a"] * 3 + ["b"] * 3


def networks(count, shift=0.0, seed=0):
    return 2 + 0.1 * np.random.default_rng(seed).normal(size=(count, 6, 4)) + shift


def test_excess_is_that_of_all_pairs_matched_by_hand():
    first, second = networks(3, seed=1), networks(4, 0.2, seed=2)
    both = np.concatenate([first, second])
    square = np.zeros((7, 7, 4))
    for i, j in itertools.permutations(range(7), 2):
        for heads in (slice(0, 3), slice(3, 6)):
            cost = ((both[i, heads, None] - both[j, None, heads]) ** 2).sum(-1)
            rows, columns = linear_sum_assignment(cost)
            square[i, j] += ((both[i, heads][rows] - both[j, heads][columns]) ** 2).sum(0) / 6
    across = square[:3, 3:].mean((0, 1))
    within = (square[:3, :3].sum((0, 1)) / 6 + square[3:, 3:].sum((0, 1)) / 12) / 2
    result = network_divergence.compare(first, second, LAYERS)
    np.testing.assert_allclose(result.between, np.sqrt(across))
    np.testing.assert_allclose(result.within, np.sqrt(within))
    excess = across - within
    np.testing.assert_allclose(result.excess, np.sign(excess) * np.sqrt(np.abs(excess)))
    assert result.pooled == pytest.approx(np.sqrt(excess.mean()))


def test_the_order_of_heads_in_a_layer_does_not_matter_and_layers_do():
    first, second = networks(3, seed=1), networks(3, 0.1, seed=2)
    result = network_divergence.compare(first, second, LAYERS)
    mixed = second.copy()
    for network in mixed:
        network[:3] = network[[2, 0, 1]]
    again = network_divergence.compare(first, mixed, LAYERS)
    np.testing.assert_allclose(again.between, result.between)
    assert (again.p, again.pooled) == pytest.approx((result.p, result.pooled))
    other = network_divergence.compare(first, np.roll(second, 3, axis=1), LAYERS)
    assert np.abs(other.between - result.between).min() > 1e-6


def test_p_is_the_rank_of_the_true_grouping_among_all():
    result = network_divergence.compare(networks(3, seed=1), networks(3, 1.0, seed=2), LAYERS)
    np.testing.assert_allclose([result.p, *result.p_by_t], 2 / 20)  # the true one and its mirror
    assert result.pooled == pytest.approx(1.0, rel=0.05)
    assert result.interval[0] < result.pooled < result.interval[1]


def test_a_constant_difference_does_not_vary_and_a_slope_does():
    base = networks(5, seed=3)
    same = network_divergence.compare(base, networks(5, 0.5, seed=4), LAYERS)
    slope = network_divergence.compare(base, networks(5, np.linspace(-0.5, 0.5, 4), seed=4), LAYERS)
    assert same.p < 0.01 and same.p_varies > 0.05 and slope.p_varies < 0.01


def test_pictures_widen_the_interval():
    first, second = networks(4, seed=5), networks(4, 0.3, seed=6)
    noise = 0.2 * np.random.default_rng(7).normal(size=(100, 8, 1, 1))
    draws = np.concatenate([first, second]) + noise
    plain = network_divergence.compare(first, second, LAYERS)
    wide = network_divergence.compare(first, second, LAYERS, draws, 30)
    assert wide.p == plain.p and np.diff(wide.interval) > np.diff(plain.interval)


def test_few_networks_have_no_interval_and_one_is_refused():
    result = network_divergence.compare(networks(2, seed=1), networks(2, seed=2), LAYERS)
    assert np.isnan(result.interval).all() and result.p >= 1 / 3
    with pytest.raises(ConfigError, match="1 and 2 networks"):
        network_divergence.compare(networks(1), networks(2), LAYERS)


def test_exchanging_within_pairs_is_exact_where_pairs_share_a_start():
    rng = np.random.default_rng(11)
    starts = rng.normal(2, 0.5, (6, 8, 1))  # much alike within a pair, unlike between pairs
    first, second = (starts + 0.02 * rng.standard_normal((6, 8, 4)) for _ in range(2))
    layers = [str(head) for head in range(8)]  # a head a layer: nothing is matched
    shifted = network_divergence.compare(first + 0.1, second, layers, paired=True)
    assert shifted.p_paired == pytest.approx(2.0**-5)  # no other way differs as much
    assert shifted.p > 0.05  # unpaired, the spread of starts hides it
    assert network_divergence.compare(first, second, layers, paired=True).p_paired > 0.05
    assert np.isnan(network_divergence.compare(first, second, layers).p_paired)
    with pytest.raises(ConfigError, match="pairs need equally many"):
        network_divergence.compare(first, second[:4], layers, paired=True)


def test_ways_of_exchanging_begin_with_the_true_one_and_are_different():
    ways = network_divergence.exchanges(4)
    assert ways[0].tolist() == [True] * 4 + [False] * 4
    assert len(np.unique(ways, axis=0)) == len(ways) == 8 and (ways.sum(axis=1) == 4).all()
    many = network_divergence.exchanges(20)
    assert len(many) == network_divergence.MAX_GROUPINGS + 1 and (many[:, :20] == ~many[:, 20:]).all()


def test_what_varies_is_the_divergence_of_profiles_without_their_mean():
    first = np.zeros((3, 2, 4))
    second = np.broadcast_to(np.array([1.0, 2.0, 3.0, 4.0]), (3, 2, 4))
    result = network_divergence.compare(first, second, ["a", "b"])
    assert result.varying == pytest.approx(np.sqrt(1.25))  # variance of 1, 2, 3, 4
