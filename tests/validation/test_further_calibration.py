"""What decides beside the main tests keeps its word; the old rules do what the audit says of them."""

import numpy as np

from mechdiff import stats
from mechdiff.validation import (
    analysis_calibration,
    attacks,
    circuit_calibration,
    further_calibration,
    image_calibration,
    old_rules,
    sweep_calibration,
)
from mechdiff.validation import checks as checks_of


def test_controls_named_roles_margins_and_pairs_keep_their_word():
    result = further_calibration.checks(np.random.default_rng(6), 20)
    assert [check.name for check in result if not check.holds] == []
    for rule in ("bottleneck beyond", "networks with a role", "roles not supported", "pair:"):
        promises = {check.promise for check in result if check.name.startswith(rule)}
        assert promises == {"errs at most", "finds at least"}, rule
    agreement = {check.promise for check in result if check.name.startswith("rank agreement")}
    assert agreement == {"covers", "errs at most", "finds at least"}


def test_what_is_shown_with_an_interval_or_a_p_keeps_its_word():
    sweeps = sweep_calibration.checks(np.random.default_rng(9), 20)
    assert {check.promise for check in sweeps if not check.name.startswith("rms")} == {"covers"}
    sweeps = [check for check in sweeps if "pooled" not in check.name]  # these are limits, of strong skew
    replaced = [check for check in sweeps if check.before_by and check.promise == "covers"]
    assert len(replaced) == 8 and all(check.found >= check.before for check in replaced)
    circuits = circuit_calibration.checks(np.random.default_rng(11), 20)
    sweeps += circuits
    for rule in ("rms", "completeness"):
        promises = {check.promise for check in sweeps if check.name.startswith(rule)}
        assert promises >= {"errs at most", "finds at least"}, rule
    wrong = [check.before for check in sweeps if check.promise == "errs at most"]
    assert len(wrong) == 3 and min(wrong) > 0.4  # without what allows for noise
    analyses = analysis_calibration.checks(np.random.default_rng(10), 20)
    assert [check.name for check in [*sweeps, *analyses] if not check.holds] == []
    for rule in ("change", "order", "entropy and effects", "role follows", "circuit", "divergence", "sizes"):
        promises = {check.promise for check in analyses if check.name.startswith(rule)}
        assert promises == {"errs at most", "finds at least"}, rule


def test_the_first_listed_component_decided_where_nothing_was_significant():
    rng = np.random.default_rng(0)
    scatter = rng.normal(size=(12, 24))
    damage = 20 + scatter - scatter.mean(axis=0)
    damage[:, 0] -= 3  # surely below the mean of its type, while no other is surely above it
    assert old_rules.first_listed(damage) == (False, True)
    damage = damage[:, ::-1].copy()
    assert old_rules.first_listed(damage) == (False, False)
    damage[:, 5] += 30
    assert old_rules.first_listed(damage) == (True, False)


def test_four_steps_against_other_numbers_of_steps_alone():
    rng = np.random.default_rng(1)
    steps = rng.normal(0, 0.01, (8, 8))
    assert not old_rules.steps_alone(steps)
    steps[:, 3] += 1
    assert old_rules.steps_alone(steps)


def test_a_rate_before_is_that_of_the_same_data_or_of_the_audit():
    check = checks_of.errs("a rule", np.zeros(50, bool))
    same = checks_of.replacing(check, np.arange(50) < 10)
    audit = checks_of.replacing(check, 0.25)
    assert (same.before, same.before_by, audit.before, audit.before_by) == (0.2, "old rule", 0.25, "audit")
    lines = checks_of.table([check, same, audit]).splitlines()
    assert (
        "old rule" not in lines[1]
        and lines[2].endswith("0.200 old rule")
        and lines[3].endswith("0.250 audit")
    )


def test_every_attack_has_a_null_and_a_positive_control():
    result = attacks.checks(np.random.default_rng(7), 20)
    skewed = {check.name: check for check in result if "skewed about a mean of 0" in check.name}
    unequal = {check.name: check.found for check in result if "that scatter twice as much" in check.name}
    known = skewed.keys() | unequal.keys()
    assert [check.name for check in result if not check.holds and check.name not in known] == []
    assert next(iter(unequal.values())) > 0.05 and len(unequal) == 4
    assert [check.found > 0.1 for check in skewed.values()][-1] and next(iter(skewed.values())).holds
    for rule in ("divergence", "bottleneck", "no bottleneck", "four phases", "ladder", "entropy", "max-T"):
        promises = {check.promise for check in result if check.name.startswith(rule)}
        assert promises == {"errs at most", "finds at least"}, rule


def test_sequential_sweeps_decide_what_is_large_and_leave_nothing_out():
    rng = np.random.default_rng(8)
    size = np.where(np.arange(image_calibration.COMPONENTS) < 3, 0.2, 0.0)
    clean = np.exp(0.1 * rng.normal(size=(4, image_calibration.MAX_IMAGES)))
    noise = rng.normal(size=(image_calibration.COMPONENTS, 1, image_calibration.MAX_IMAGES))
    loss = clean * (1 + size[:, None, None] + 0.001 * noise)
    low, high = image_calibration.last_intervals((size, clean, loss), 32, stats.skewed_sequence)
    assert ((low > 0) == (size > 0)).all() and (high - low < 1).all()
    assert image_calibration.stopped((size, clean, loss), 32, stats.skewed_sequence)[1] is False
