"""The bench of promises: kept ones pass, broken ones are seen."""

import numpy as np
import pytest

from mechdiff import stats
from mechdiff.core.errors import ConfigError
from mechdiff.validation import calibration


@pytest.fixture(scope="module")
def checks():
    return {check.name: check for check in calibration.calibrate(200, images=32)}


def test_p_values_are_uniform_under_nulls_and_corrections_hold_their_level(checks):
    tests = [check for check in checks.values() if check.promise != "covers"]
    assert len(tests) == 11
    assert [check.name for check in tests if not check.holds] == []


def test_intervals_cover_nearly_as_often_as_they_say(checks):
    # Bootstraps of skewed losses are known to be a little narrow: 5 % is allowed for it, beside chance.
    intervals = [check for check in checks.values() if check.promise == "covers"]
    assert len(intervals) == 12
    assert [check.name for check in intervals if check.high < check.nominal - 0.05] == []
    assert checks["Student, normal"].holds and checks["Student of 8 seeds' means"].holds


def test_images_counted_twice_and_intervals_too_narrow_are_seen():
    rng = np.random.default_rng(0)
    twice = np.repeat(calibration.shuffled_arms(rng, (300, 1, 1), 16)[:, 0, 0], 2, axis=1)
    assert not calibration._uniform("copies", stats.permutation_test(twice, 499)).holds
    interval = stats.student_mean(rng.normal(size=(300, 20)), 0.8)
    assert not calibration._covers("80 % for 95 %", (interval.low <= 0) & (interval.high >= 0)).holds
    assert not calibration._errs("no correction", (rng.random((300, 5)) < 0.05).any(1).astype(float)).holds


def test_the_table_marks_what_is_broken(checks):
    broken = calibration.Check("never", "covers", 0.95, 0.5, 0.4, 0.6, 0.0, 100)
    lines = calibration.table([*checks.values(), broken]).splitlines()
    assert len(lines) == len(checks) + 2
    assert lines[-1].endswith("BROKEN") and not lines[1].endswith("BROKEN")


def test_too_few_repetitions_are_refused():
    with pytest.raises(ConfigError, match="at least 50"):
        calibration.calibrate(10)
