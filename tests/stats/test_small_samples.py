"""Means over few seeds, against Student's interval and the bootstrap."""

import numpy as np
import pytest
import scipy.stats

from mechdiff import stats
from mechdiff.stats import small_samples


def test_seeds_without_spread_give_no_interval_and_no_p():
    for _, ends, p in (
        small_samples.over_seeds(np.full(3, 0.1)),  # whose mean is not 0.1
        small_samples.between_groups(np.zeros(3), np.ones(3)),
    ):
        assert np.isnan([*ends, p]).all()


def test_equal_sizes_scatter_as_rounding_does_and_others_as_they_do():
    fives, nines = np.log([5.0, 5, 5]), np.log([9.0, 9, 9])
    _, ends, p = small_samples.between_groups(nines, fives, sizes=True)
    assert ends[0] < np.log(9 / 5) < ends[1] and ends[0] > 0 and p < 0.05
    _, ends, p = small_samples.between_groups(fives, nines, sizes=True)
    assert ends[1] < 0 and p > 0.95
    _, (low, high), _ = small_samples.over_seeds(nines, sizes=True)
    half = scipy.stats.t.ppf(0.975, 2) * np.sqrt(1 / 12 / 3) / 9
    assert (low, high) == pytest.approx((np.log(9) - half, np.log(9) + half))
    apart = np.log([8.0, 9, 9, 9])
    assert small_samples.over_seeds(apart, sizes=True) == small_samples.over_seeds(apart)


def test_sizes_that_were_rounded_are_called_larger_no_more_often_than_promised():
    rng, sd = np.random.default_rng(0), 12**-0.5
    wrong, right = [], []
    for _ in range(1000):
        middle = rng.uniform(6, 20)
        first, same, larger = (np.log(np.rint(middle + gap + sd * rng.normal(size=3))) for gap in (0, 0, 2))
        wrong.append(small_samples.between_groups(same, first, sizes=True)[2] < 0.05)
        right.append(small_samples.between_groups(larger, first, sizes=True)[2] < 0.05)
    assert np.mean(wrong) < 0.06 and np.mean(right) > 0.8


def test_groups_of_unequal_size_are_compared_as_scipy_compares_them():
    rng = np.random.default_rng(3)
    many, few = rng.normal(size=12), rng.normal(1, 3, size=3)
    mean, interval, p = small_samples.between_groups(many, few)
    reference = scipy.stats.ttest_ind(many, few, equal_var=False, alternative="greater")
    assert (mean, p) == pytest.approx((many.mean() - few.mean(), reference.pvalue))
    ends = scipy.stats.ttest_ind(many, few, equal_var=False).confidence_interval()
    assert interval == pytest.approx((ends.low, ends.high))


@pytest.mark.parametrize("above", [True, False])
def test_intervals_over_seeds_are_students(above):
    values = np.random.default_rng(0).normal(0.3, 1, 6)
    mean, interval, p = small_samples.over_seeds(values, above=above, null=0.1)
    student = stats.student_mean(values)
    assert (mean, *interval) == pytest.approx((values.mean(), float(student.low), float(student.high)))
    alternative = "greater" if above else "less"
    assert p == pytest.approx(scipy.stats.ttest_1samp(values, 0.1, alternative=alternative).pvalue)


def test_pictures_that_all_seeds_share_widen_the_interval_and_shared_noise_alone_gives_one():
    rng = np.random.default_rng(0)
    images = rng.normal(size=30)  # alike for all seeds
    weights = stats.bootstrap_weights(30, 2000)
    cells = 0.1 * rng.normal(size=(5, 1)) + images
    seeds_alone = small_samples.over_seeds(cells.mean(1))
    both = small_samples.over_seeds(cells.mean(1), cells @ weights.T, 30)
    assert both[0] == seeds_alone[0] and np.diff(both[1]) > 2 * np.diff(seeds_alone[1])
    alike = small_samples.over_seeds(np.full(5, images.mean()), np.tile(weights @ images, (5, 1)), 30)
    expected = stats.student_mean(images)
    assert alike[1] == pytest.approx((float(expected.low), float(expected.high)), abs=0.02)
