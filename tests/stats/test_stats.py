"""Intervals by coverage and against scipy; tests by enumeration, null uniformity and error rates."""

import functools
import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mechdiff import stats
from mechdiff.core.errors import ConfigError
from mechdiff.stats import small_samples

LEVEL = 0.9
SIMULATIONS = 600  # one cell each: an interval's coverage is then known to a standard error of 1.2 %


def covered(interval, truth):
    return np.mean((interval.low <= truth) & (truth <= interval.high))


def near(share, expected, sloppiness, n=SIMULATIONS):
    """Within 3 Monte Carlo standard errors, beyond what the method itself is allowed."""
    return abs(share - expected) < sloppiness + 3 * np.sqrt(expected * (1 - expected) / n)


@pytest.fixture(scope="module")
def skewed():
    """Exponential values of mean 1: [simulation, unit]; cells share resamples, their data are independent."""
    return np.random.default_rng(0).exponential(size=(SIMULATIONS, 40))


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_mean_covers_a_skewed_mean_as_often_as_it_says(skewed, method):
    interval = stats.bootstrap_mean(skewed, LEVEL, repeats=1000, method=method)
    # At n = 40 both methods are known to be a little narrow on a skewed mean; 3 % is allowed for it.
    assert near(covered(interval, 1.0), LEVEL, 0.03)
    np.testing.assert_allclose(interval.estimate, skewed.mean(axis=-1))
    assert (interval.confidence, interval.n) == (LEVEL, 40)


def test_bca_leans_with_the_skew_and_misses_more_evenly_than_percentile(skewed):
    bca, percentile = (
        stats.bootstrap_mean(skewed, LEVEL, 1000, method=m, student=False) for m in ("bca", "percentile")
    )
    assert np.mean((bca.low > percentile.low) & (bca.high > percentile.high)) > 0.9

    def imbalance(interval):
        return abs(np.mean(interval.low > 1) - np.mean(interval.high < 1))

    assert imbalance(bca) < imbalance(percentile)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_mean_agrees_with_scipy(method):
    values = np.random.default_rng(1).gamma(2.0, size=50)
    got = stats.bootstrap_mean(values, repeats=20_000, method=method, student=False)
    reference = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        method=method,
        rng=np.random.default_rng(5),
        confidence_level=stats.expanded_level(0.95, 50),
    ).confidence_interval
    error = values.std() / np.sqrt(50)
    # A 2.5 % quantile of 20,000 draws has a standard error of 0.019 of their spread; here, five of those.
    np.testing.assert_allclose([got.low, got.high], [reference.low, reference.high], atol=0.1 * error)


def test_levels_are_expanded_by_students_quantile_and_not_for_many_units():
    half = scipy.stats.norm.ppf((1 + stats.expanded_level(0.95, 10)) / 2)
    np.testing.assert_allclose(half, np.sqrt(10 / 9) * scipy.stats.t.ppf(0.975, 9))
    assert stats.expanded_level(0.95, 100_000) == pytest.approx(0.95, abs=1e-5)


def test_cells_of_one_call_equal_calls_of_one_cell():
    values = np.random.default_rng(2).normal(size=(3, 2, 20))
    together = stats.bootstrap_mean(values, repeats=200)
    alone = stats.bootstrap_mean(values[1, 1], repeats=200)
    for name in ("estimate", "low", "high"):
        assert getattr(together, name).shape == (3, 2) and getattr(alone, name).shape == ()
        np.testing.assert_allclose(getattr(together, name)[1, 1], getattr(alone, name))


def test_bootstrap_is_a_function_of_its_seed():
    values = np.random.default_rng(3).normal(size=30)
    first, again, other = (
        stats.bootstrap_mean(values, repeats=100, seed=seed, student=False) for seed in (0, 0, 1)
    )
    assert first == again and first.low != other.low


def test_constant_and_missing_cells_touch_no_other_cell():
    values = np.random.default_rng(4).normal(size=(3, 20))
    values[0], values[1, 3] = 2.0, np.nan
    got = stats.bootstrap_mean(values, repeats=200)
    np.testing.assert_allclose([got.low[0], got.high[0]], 2.0)
    assert np.isnan([got.estimate[1], got.low[1], got.high[1]]).all()
    np.testing.assert_allclose(got.low[2], stats.bootstrap_mean(values[2], repeats=200).low)


def test_student_mean_agrees_with_scipy_and_covers_normal_means_exactly():
    values = np.random.default_rng(5).normal(1.0, 2.0, size=(SIMULATIONS, 4))
    got = stats.student_mean(values, LEVEL)
    expected = scipy.stats.ttest_1samp(values, 0.0, axis=-1).confidence_interval(LEVEL)
    np.testing.assert_allclose([got.low, got.high], [expected.low, expected.high])
    assert near(covered(got, 1.0), LEVEL, 0.0)


def test_ratio_effect_is_exact_per_cent_for_proportional_damage():
    baseline = np.random.default_rng(7).exponential(size=(2, 25))
    changed = np.stack([baseline, 1.5 * baseline, 0.8 * baseline])
    got = stats.ratio_effect(baseline, changed, repeats=200)
    for bound in (got.estimate, got.low, got.high):
        np.testing.assert_allclose(bound, np.repeat([[0.0], [50.0], [-20.0]], 2, axis=1), atol=1e-10)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_ratio_effect_covers_the_ratio_of_means(method):
    rng = np.random.default_rng(8)
    baseline = rng.gamma(4.0, 0.25, size=(SIMULATIONS, 50))
    changed = baseline * rng.gamma(4.0, 0.3, size=baseline.shape)  # mean 1.2 times the baseline's
    got = stats.ratio_effect(baseline, changed, LEVEL, repeats=1000, method=method)
    assert near(covered(got, 20.0), LEVEL, 0.03)


def test_ratio_effect_refuses_a_baseline_without_loss():
    with pytest.raises(ConfigError, match="baseline mean"):
        stats.ratio_effect(np.zeros(4), np.ones(4))


def test_bootstrap_takes_any_statistic_of_weights():
    """Here a weighted variance, whose estimate is NumPy's and whose interval is scipy's."""
    values = np.random.default_rng(9).normal(size=80)

    def variance(weights):
        return weights @ values**2 - (weights @ values) ** 2

    got = stats.bootstrap(variance, stats.bootstrap_weights(80, 20_000))
    reference = scipy.stats.bootstrap(
        (values,),
        np.var,
        n_resamples=20_000,
        method="bca",
        rng=np.random.default_rng(1),
        confidence_level=stats.expanded_level(0.95, 80),
    )
    np.testing.assert_allclose(got.estimate, values.var())
    expected = [reference.confidence_interval.low, reference.confidence_interval.high]
    np.testing.assert_allclose([got.low, got.high], expected, atol=0.1 * reference.standard_error)


def test_weights_are_shares_of_whole_units():
    counts = stats.bootstrap_weights(7, 50) * 7
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-12)
    np.testing.assert_allclose(counts.sum(axis=-1), 7)
    for crossed in (False, True):
        weights = stats.hierarchical_weights(3, 5, 400, crossed=crossed)
        np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1)
        np.testing.assert_allclose(weights.sum(axis=2) * 3, np.rint(weights.sum(axis=2) * 3), atol=1e-12)
    shares = weights[0] / weights[0].sum(axis=1, keepdims=True).clip(1e-9)
    used = weights[0].sum(axis=1) > 0
    np.testing.assert_allclose(shares[used], np.broadcast_to(shares[used][0], shares[used].shape))  # crossed


@pytest.mark.parametrize("crossed", [False, True])
def test_hierarchical_bootstrap_has_the_variance_of_its_design(crossed):
    """Percentile widths against the plug-in variance: seeds' part, images' part, and the rest.

    Nested: Var* = (1/S) var_s(mean) + (1/(S n)) mean_s var_i(x). Crossed, for additive x = a_s + b_i:
    Var* = var(a)/S + var(b)/n.
    """
    rng = np.random.default_rng(10)
    seeds, images = 12, 60
    a, b = rng.normal(0, 1.0, (seeds, 1)), rng.normal(0, 3.0, (1, images))
    values = a + b
    got = stats.hierarchical_bootstrap(values, repeats=8000, crossed=crossed)
    variance = a.var() / seeds + b.var() / (images if crossed else images * seeds)
    half = scipy.stats.norm.ppf((1 + stats.expanded_level(0.95, seeds)) / 2) * np.sqrt(variance)
    np.testing.assert_allclose((got.high - got.low) / 2, half, rtol=0.05)
    assert got.n == seeds


def test_hierarchical_bootstrap_covers_where_a_pooled_bootstrap_is_far_too_sure():
    rng = np.random.default_rng(11)
    values = rng.normal(0, 1, (SIMULATIONS, 10, 1)) + rng.normal(0, 1, (SIMULATIONS, 10, 16))
    hierarchical = stats.hierarchical_bootstrap(values, LEVEL, repeats=500)
    pooled = stats.bootstrap_mean(values.reshape(SIMULATIONS, -1), LEVEL, repeats=500)
    assert near(
        covered(hierarchical, 0.0), LEVEL, 0.05
    )  # ten seeds: the percentile method is a little narrow
    assert covered(pooled, 0.0) < 0.6


def test_sources_of_error_add_up_as_welch_adds_them():
    rng = np.random.default_rng(0)
    single, other = rng.normal(size=7), 3 * rng.normal(size=5)
    parts = [(float(x.var(ddof=1)) / len(x), len(x) - 1) for x in (single, other)]
    error, freedom = stats.satterthwaite(*parts)
    welch = scipy.stats.ttest_ind(single, other, equal_var=False)
    assert (single.mean() - other.mean()) / error == pytest.approx(welch.statistic)
    assert freedom == pytest.approx(welch.df)
    assert stats.satterthwaite((0.25, 4), (0.0, 9)) == (0.5, pytest.approx(4))
    assert stats.satterthwaite((0.0, 4), (0.0, 9)) == (0, 4)


def test_the_variance_of_resampled_means_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(size=12)
    variance, freedom = stats.resampled_variance(stats.bootstrap_weights(12, 40_000) @ values, 12)
    assert variance == pytest.approx(values.var(ddof=1) / 12, rel=0.03) and freedom == 11
    for count, said in ((1, "1 unit"), (np.nan, "nan unit")):
        with pytest.raises(ConfigError, match=said):
            stats.resampled_variance(values, count)


def test_seeds_on_images_of_people_of_whom_one_has_half_cover_by_as_many_as_these_count_as():
    """.84 by all 40 people; six networks whose seeds scatter little."""
    rng, person = np.random.default_rng(0), np.r_[np.zeros(39, int), np.arange(1, 40)]
    units, covered = stats.Units(person, 40, True), []
    weights = units.resamples(200)
    for _ in range(150):
        of_images = rng.normal(size=40)[person] + 0.3 * rng.normal(size=78)
        values, draws = of_images.mean() + 0.05 * rng.normal(size=6), np.tile(weights @ of_images, (6, 1))
        ends = [small_samples.over_seeds(values, draws, n)[1] for n in (units.effective, 40)]
        covered.append([low <= 0 <= high for low, high in ends])
    assert np.mean(covered, axis=0)[0] > 0.93 > 0.9 > np.mean(covered, axis=0)[1]


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


@pytest.mark.parametrize(
    "call",
    [
        stats.bootstrap_mean,
        stats.student_mean,
        stats.permutation_test,
        stats.max_t,
        lambda values: stats.equivalence_test(values, 0.5),
    ],
)
def test_one_unit_cannot_tell_its_own_spread(call):
    with pytest.raises(ConfigError, match="1 unit"):
        call(np.ones((3, 1)))


def test_margins_and_levels_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="margin"):
        stats.equivalence_test(np.ones(3), 0.0)
    for level in (0.0, 1.0):
        with pytest.raises(ConfigError, match="confidence"):
            stats.bootstrap_mean(np.arange(4.0), level)


@pytest.mark.parametrize(
    "n, plain, student",
    [(2, (0.4, 0.6), 0.93), (4, (0.7, 0.9), 0.93), (16, (0.9, 0.935), 0.935)],
)
def test_intervals_reach_as_far_as_students(n, plain, student):
    """Of 2 of 2^n samples every number lies on one side of the mean; of more, resamples scatter."""
    values = np.random.default_rng(n).normal(size=(1000, n))
    weights = stats.bootstrap_weights(n, 200)
    intervals = [stats.bootstrap(lambda w: values @ w.T, weights, student=each) for each in (False, True)]
    covered = [((each.low <= 0) & (each.high >= 0)).mean() for each in intervals]
    assert plain[0] < covered[0] < plain[1] and student < covered[1] < 0.98, covered


def test_means_and_ratios_reach_as_far_as_students_unless_told_not_to():
    """From 4 units: .84 and .86 of resamples alone, instead of .95."""
    rng = np.random.default_rng(3)
    clean, change = np.exp(0.5 * rng.normal(size=(2, 1000, 4)) - 0.125)
    changed = clean + 0.2 * change
    for interval, truth in (
        (functools.partial(stats.bootstrap_mean, clean), 1.0),
        (functools.partial(stats.ratio_effect, clean, changed), 20.0),
    ):
        rates = [covered(interval(repeats=200, **how), truth) for how in ({"student": False}, {})]
        assert rates[0] < 0.9 < 0.91 < rates[1] < 0.98, rates


def test_students_ends_go_with_bca_alone():
    weights = stats.bootstrap_weights(4, 50)
    with pytest.raises(ConfigError, match="student=True goes with method='bca', not with 'percentile'"):
        stats.bootstrap(lambda w: w @ np.arange(4.0), weights, method="percentile", student=True)
