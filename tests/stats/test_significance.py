"""Tests of differences and corrections: by enumeration, null uniformity and error rates."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mechdiff import stats
from mechdiff.core.errors import ConfigError

SIMULATIONS = 600  # one cell each: an interval's coverage is then known to a standard error of 1.2 %


def near(share, expected, sloppiness, n=SIMULATIONS):
    """Within 3 Monte Carlo standard errors, beyond what the method itself is allowed."""
    return abs(share - expected) < sloppiness + 3 * np.sqrt(expected * (1 - expected) / n)


def test_permutation_test_is_exact_for_few_units():
    differences = np.array([1.2, -0.3, 0.8, 2.0, 0.1])
    means = [np.mean(np.array(s) * differences) for s in itertools.product([1, -1], repeat=5)]
    expected = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    np.testing.assert_allclose(stats.permutation_test(differences), expected)
    greater = np.mean(np.array(means) >= differences.mean() - 1e-12)
    np.testing.assert_allclose(stats.permutation_test(differences, alternative="greater"), greater)


def test_permutation_test_agrees_with_scipy_where_flips_are_drawn():
    differences = np.random.default_rng(12).normal(0.3, 1, 30)
    reference = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    error = np.sqrt(reference.pvalue / 9999)
    np.testing.assert_allclose(stats.permutation_test(differences), reference.pvalue, atol=6 * error)


def test_permutation_p_values_are_uniform_under_the_null():
    null = np.random.default_rng(13).standard_t(3, size=(SIMULATIONS, 24))
    for alternative in ("two-sided", "greater"):
        p = stats.permutation_test(null, repeats=1999, alternative=alternative)
        assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_permutation_test_of_no_difference_is_one_and_of_a_missing_one_missing():
    p = stats.permutation_test(np.stack([np.zeros(8), np.full(8, np.nan), np.ones(8)]))
    np.testing.assert_allclose(p, [1, np.nan, 2 / 256])


def test_max_t_controls_any_false_rejection_in_a_correlated_grid():
    """400 grids of 3 x 4 null cells that share half their variance: 5 % of them may reject, plus noise."""
    rng = np.random.default_rng(14)
    grids = rng.normal(size=(400, 3, 4, 16)) + rng.normal(size=(400, 1, 1, 16))
    for alternative in ("two-sided", "greater"):
        rejected = [stats.max_t(grid, 399, alternative=alternative).min() <= 0.05 for grid in grids]
        assert near(np.mean(rejected), 0.05, 0.0, n=400)


def test_max_t_of_one_cell_is_the_permutation_test_and_of_copies_is_free():
    differences = np.random.default_rng(15).normal(0.4, 1, 14)
    for alternative in ("greater", "two-sided"):
        alone = stats.permutation_test(differences, repeats=999, alternative=alternative)
        np.testing.assert_allclose(stats.max_t(differences, repeats=999, alternative=alternative), alone)
    np.testing.assert_allclose(
        stats.max_t(np.tile(differences, (5, 2, 1)), repeats=999), np.full((5, 2), alone)
    )


def test_max_t_steps_down():
    """A second cell is compared with the rest only: exact by enumeration of all flips of eight units."""
    strong = np.array([3.0, 2.8, 3.1, 2.9, 3.2, 3.0, 2.7, 3.3])
    weak = np.array([1.0, -0.4, 0.9, 1.3, -0.2, 0.8, 1.1, 0.3])
    adjusted = stats.max_t(np.stack([weak, strong]))
    np.testing.assert_allclose(adjusted[1], np.mean(_enumerated_max([weak, strong], strong)))
    np.testing.assert_allclose(adjusted[0], stats.permutation_test(weak))


def _enumerated_max(cells, observed):
    signs = np.array(list(itertools.product([1, -1], repeat=len(observed))))

    def t(values):
        return np.abs(values.mean(-1)) / (values.std(-1, ddof=1) + 1e-12)

    return np.max([t(signs * cell) for cell in cells], axis=0) >= t(observed) * (1 - 1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_max_t_never_prefers_a_weaker_cell_and_is_never_below_the_single_test(seed):
    grid = np.random.default_rng(seed).normal(0.3, 1, (6, 8))
    adjusted = stats.max_t(grid)
    strength = np.abs(scipy.stats.ttest_1samp(grid, 0.0, axis=-1).statistic)
    assert np.all(np.diff(adjusted[np.argsort(strength)]) <= 1e-12)
    assert np.all(adjusted >= stats.permutation_test(grid) - 1e-12)


def test_max_t_leaves_missing_cells_out_and_gives_dead_cells_one():
    live = np.random.default_rng(16).normal(1, 1, (2, 12))
    grid = np.stack([live[0], np.full(12, np.nan), np.zeros(12), live[1]])
    got = stats.max_t(grid, repeats=999)
    np.testing.assert_allclose(got[[0, 3]], stats.max_t(live, repeats=999))
    assert np.isnan(got[1]) and got[2] == 1


def test_holm_and_benjamini_hochberg_of_a_hand_example():
    p = np.array([[0.01, 0.04], [0.03, 0.005]])
    np.testing.assert_allclose(
        stats.holm(p), [[0.03, 0.06], [0.06, 0.02]]
    )  # 4, 3, 2, 1 times, then made monotone
    np.testing.assert_allclose(
        stats.benjamini_hochberg(p), [[0.02, 0.04], [0.04, 0.02]]
    )  # 4/1, 4/2, 4/3, 4/4 times


P_VALUES = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1))


@settings(deadline=None)
@given(p=P_VALUES, alpha=st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_sequential_procedure_rejects(p, alpha):
    expected = np.zeros(p.size, bool)
    for rank, cell in enumerate(np.argsort(p, kind="stable")):
        if (p.size - rank) * p[cell] > alpha:
            break
        expected[cell] = True
    np.testing.assert_array_equal(stats.holm(p) <= alpha, expected)


@settings(deadline=None)
@given(p=P_VALUES)
def test_benjamini_hochberg_follows_its_definition_and_is_bounded_by_holm(p):
    ordered = np.sort(p)
    expected = [min(1, min(p.size * ordered[j] / (j + 1) for j in range(i, p.size))) for i in range(p.size)]
    adjusted = stats.benjamini_hochberg(p)
    np.testing.assert_allclose(np.sort(adjusted), expected, atol=1e-12)
    assert np.all(adjusted >= p - 1e-12) and np.all(stats.holm(p) >= adjusted - 1e-12)


@pytest.mark.parametrize("correct", [stats.holm, stats.benjamini_hochberg])
def test_corrections_refuse_what_is_no_p_value(correct):
    for wrong in (np.nan, -0.1, 1.1):
        with pytest.raises(ConfigError, match="p values"):
            correct(np.array([0.5, wrong]))


def test_equivalence_test_is_the_larger_of_two_one_sided_t_tests():
    values = np.random.default_rng(17).normal(0.1, 1, size=(5, 40))
    below = scipy.stats.ttest_1samp(values, 0.5, axis=-1, alternative="less").pvalue
    above = scipy.stats.ttest_1samp(values, -0.5, axis=-1, alternative="greater").pvalue
    np.testing.assert_allclose(stats.equivalence_test(values, 0.5), np.maximum(below, above), rtol=1e-9)


def test_equivalence_test_rejects_at_its_level_when_the_effect_is_the_margin():
    values = np.random.default_rng(18).normal(0.5, 1, size=(SIMULATIONS, 60))
    assert near(np.mean(stats.equivalence_test(values, 0.5) <= 0.1), 0.1, 0.0)


def test_equivalence_test_of_differences_without_spread_asks_which_side_of_the_margin_they_are():
    got = stats.equivalence_test(np.array([[0.0] * 4, [0.5] * 4, [1.0] * 4]), 0.5)
    assert got[0] == 0 and got[1] >= 0.5 and got[2] == 1
