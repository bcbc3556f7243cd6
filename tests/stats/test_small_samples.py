"""Means over few seeds, against Student's interval and the bootstrap."""

import numpy as np
import pytest
import scipy.stats

from mechdiff import stats
from mechdiff.stats import small_samples


def test_seeds_without_spread_give_no_p():
    assert np.isnan(small_samples.over_seeds(np.ones(4))[2])


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
