"""Intervals by coverage and against scipy."""

import functools

import numpy as np
import pytest
import scipy.stats

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
