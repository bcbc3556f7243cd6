"""The bench of promises: kept ones pass, broken ones are seen."""

import numpy as np
import pytest

from mechdiff import stats
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.stats import small_samples
from mechdiff.validation import calibration, image_calibration, rule_calibration, saved_checks
from mechdiff.validation import checks as checks_of


@pytest.fixture(scope="module")
def checks():
    return {check.name: check for check in calibration.basics(np.random.default_rng(0), 200, 32)}


def test_p_values_are_uniform_under_nulls_and_corrections_hold_their_level(checks):
    tests = [check for check in checks.values() if check.promise != "covers"]
    assert len(tests) == 11
    assert [check.name for check in tests if not check.holds] == []


def test_intervals_cover_nearly_as_often_as_they_say(checks):
    # Bootstraps of skewed losses are known to be a little narrow: 5 % is allowed for it, beside chance.
    intervals = [check for check in checks.values() if check.promise == "covers"]
    assert len(intervals) == 11
    assert [check.name for check in intervals if check.high < check.nominal - 0.05] == []
    assert checks["Student, normal"].holds and checks["Student of 8 seeds' means"].holds


def test_images_counted_twice_and_intervals_too_narrow_are_seen():
    rng = np.random.default_rng(0)
    twice = np.repeat(calibration.shuffled_arms(rng, (300, 1, 1), 16)[:, 0, 0], 2, axis=1)
    assert not checks_of.uniform("copies", stats.permutation_test(twice, 499)).holds
    interval = stats.student_mean(rng.normal(size=(300, 20)), 0.8)
    assert not checks_of.covers("80 % for 95 %", (interval.low <= 0) & (interval.high >= 0)).holds
    assert not checks_of.mean_error("no correction", (rng.random((300, 5)) < 0.05).any(1).astype(float)).holds


def test_the_table_marks_what_is_broken(checks):
    broken = calibration.Check("never", "covers", 0.95, 0.5, 0.4, 0.6, 0.0, 100)
    lines = calibration.table([*checks.values(), broken]).splitlines()
    assert len(lines) == len(checks) + 2
    assert lines[-1].endswith("VIOLATED") and not lines[1].endswith("VIOLATED")


def test_groups_of_checks_that_were_finished_are_not_run_again(checks, tmp_path):
    runs = []

    def group():
        runs.append(1)
        return list(checks.values())

    for seed, count in ((0, 1), (0, 1), (1, 2)):
        kept = saved_checks.kept(tmp_path, "basics", group, seed=seed)
        np.testing.assert_equal([vars(check) for check in kept], [vars(check) for check in checks.values()])
        assert len(runs) == count
    for path in tmp_path.iterdir():
        path.write_text(path.read_text().replace('"p"', '"q"'))
    with pytest.raises(DataError, match=r"basics-\w+\.json is not what was written there .* make it again"):
        saved_checks.kept(tmp_path, "basics", group, seed=0)


def test_too_few_repetitions_are_refused():
    with pytest.raises(ConfigError, match="at least 50"):
        calibration.calibrate(10)


def test_every_rule_of_verdicts_has_a_null_and_a_positive_control():
    """20 made-up studies each: a rule that speaks at random, or never, is seen; rates take the full run."""
    result = rule_calibration.checks(np.random.default_rng(3), 20)
    assert [check.name for check in result if not check.holds] == []
    for rule in (
        "divergence",
        "bottleneck",
        "four phases",
        "complexity",
        "ladder",
        "entropy",
        "role",
        "roles",
    ):
        promises = {check.promise for check in result if check.name.startswith(rule)}
        assert promises == {"errs at most", "finds at least"}, rule


def test_numbers_over_pictures_keep_their_word():
    result = image_calibration.checks(np.random.default_rng(4), 20)
    assert [check.name for check in result if not check.holds] == []
    signs = [check.found for check in result if "wrong sign" in check.name]
    assert len(signs) == len(image_calibration.LAWS) and sum(signs) == 0


def test_a_rule_that_reads_scatter_as_simplicity_is_seen():
    """Effective numbers taken network by network, as the first edition did."""
    rng, wrong = np.random.default_rng(5), []
    for _ in range(60):
        place = rng.normal(size=45)
        sides = [np.exp(place + sd * rng.normal(size=(8, 45))) for sd in (0.3, 0.6)]
        alone = [np.log([stats.effective_number(row[:, None])[0] for row in side]) for side in sides]
        wrong.append(small_samples.between_groups(*alone)[2] <= 0.05)
    assert not checks_of.errs("network by network", np.array(wrong)).holds
