"""Damage of components from a sweep: definitions by hand, rankings, and what is refused."""

import numpy as np
import pytest
from reference.fabricated import random_sweep, sweep

from mechdiff import stats
from mechdiff.analysis import changes, effects, paired, precision, saved_effects, variation
from mechdiff.core.errors import CheckpointError, ConfigError

CLEAN = np.array([[1.0, 3.0], [0.1, 0.3]])  # t, image
LOSS = np.array([[[2.0, 4.0], [0.1, 0.1]], [[1.0, 3.0], [0.1, 0.3]]])  # component, t, image
EVEN = np.full((1, 2), 0.5)


def test_level_damage_is_the_relative_rise_of_the_mean_loss():
    # t0: (3 - 2) / 2 = 50 %; t1: (0.1 - 0.2) / 0.2 = -50 %
    result = effects.relative_loss_increase(CLEAN, LOSS, EVEN)[..., 0]
    np.testing.assert_allclose(result, [[50, -50], [0, 0]], atol=1e-12)


def test_pooled_damage_counts_each_level_alike_and_pooled_losses_by_their_size():
    np.testing.assert_allclose(effects.pooled_relative_increase(CLEAN, LOSS, EVEN)[:, 0], [0, 0], atol=1e-12)
    # (3.1 - 2.2) / 2.2
    np.testing.assert_allclose(
        effects.pooled_loss_ratio_increase(CLEAN, LOSS, EVEN)[:, 0], [100 * 0.9 / 2.2, 0]
    )


def test_weights_choose_images():
    second = np.array([[0.0, 1.0]])
    np.testing.assert_allclose(
        effects.relative_loss_increase(CLEAN, LOSS, second)[0, :, 0], [100 / 3, -200 / 3]
    )


def test_effective_number_counts_equal_shares_and_ignores_signs():
    damage = np.array([[1.0, 5.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    result = stats.effective_number(damage)
    np.testing.assert_allclose(result[:2], [4, 1])
    assert np.isnan(result[2])


def test_measure_agrees_with_a_float64_loop():
    data = random_sweep(0)
    result = effects.measure(data, "zero", repeats=50)
    clean, loss = (data[name].values.astype(np.float64) for name in ("clean_loss", "loss"))
    for i in range(6):
        ratios = [100 * (loss[0, i, t].mean() / clean[t].mean() - 1) for t in range(3)]
        np.testing.assert_allclose(result.cells.estimate[i], ratios)
        np.testing.assert_allclose(result.pooled.estimate[i], np.mean(ratios))
    assert result.n == 9 and result.component_type == ("res",) * 6
    assert (np.diff(result.pooled.estimate[result.order]) <= 0).all()
    assert (result.pooled.low <= result.pooled.estimate).all()
    assert (result.pooled.estimate <= result.pooled.high).all()


def test_a_pooled_interval_is_that_of_measure():
    data = random_sweep(0)
    alone, measured = effects.pooled_interval(data, "zero"), effects.measure(data, "zero").pooled
    for end in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(alone, end), getattr(measured, end))


@pytest.mark.parametrize("people", [False, True])
def test_rounding_of_a_component_that_changes_nothing_is_no_effect_anywhere(people):
    """Losses that all rise in the last digit: significant, were they taken for a change."""
    rng = np.random.default_rng(1)
    data = random_sweep(0, images=12)
    data["change"][0, 2] = effects.ROUNDING
    data["loss"][0, 2] = data["clean_loss"] * (1 + np.float32(2e-7) * rng.uniform(0.5, 1.5, (3, 12)))
    if people:
        person = rng.permuted(np.tile(np.arange(12) // 2, (3, 1)), axis=1)
        data = data.assign_coords(person=(("t", "image"), person)).assign_attrs(images_total=36)
    result, table = effects.measure(data, "zero"), saved_effects.effect_table(data, "zero")
    for interval in (result.cells, result.pooled, result.pooled_losses, result.rms, result.hurt):
        assert all(np.all(getattr(interval, end)[2] == 0) for end in ("estimate", "low", "high"))
    assert np.all(result.p[2] == 1) and np.all(result.quantiles.estimate[2] == 0)
    assert table.iloc[-1][["delta_loss", "low", "high", "p"]].tolist() == [0, 0, 0, 1]
    varied = variation.variation(data, "zero").iloc[2]
    assert varied[["over_timesteps", "over_images", "hurt"]].tolist() == [0, 0, 0]
    other = data.assign(loss=data["loss"] * np.float32(1 + 2e-7))
    between = paired.paired_difference(data, other, "zero")
    assert between.p[2] == 1 and between.difference.low[2] == 0 == between.difference.high[2]
    assert np.all(changes.cell_differences(data, other, "zero")[1][2] == 1)
    assert np.all(np.delete(result.p, 2, axis=0) < 0.05) or people  # the others are seen


def test_damage_is_free_of_the_unit_of_loss():
    data = random_sweep(1)
    scaled = data.assign(loss=data["loss"] * 4, clean_loss=data["clean_loss"] * 4)  # exact in binary
    ours, theirs = (effects.measure(each, "zero", repeats=50) for each in (data, scaled))
    np.testing.assert_allclose(ours.cells.low, theirs.cells.low)
    np.testing.assert_allclose(ours.pooled.high, theirs.pooled.high)
    np.testing.assert_array_equal(ours.p, theirs.p)


def test_a_component_that_changed_nothing_is_idle_and_certain_of_nothing():
    change = np.zeros((1, 2, 2, 2))
    change[0, 1] = 1e-6
    result = effects.measure(sweep(np.stack([CLEAN, CLEAN])[None], CLEAN, change=change), "zero", repeats=20)
    assert result.idle.tolist() == [True, False]
    assert (result.p == 1).all() and (result.pooled.estimate == 0).all()


def test_an_unfinished_sweep_is_refused_in_one_line():
    data = random_sweep(6)
    data["loss"][0, 0, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match="1 losses are missing") as caught:
        effects.measure(data, "zero")
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="zero"):
        effects.measure(random_sweep(7), "zeros")


def test_a_component_that_helps_at_some_levels_and_hurts_at_others_is_seen_in_the_rms():
    """Audit: cells of +34 and -22 average to little, and rank among decoys."""
    clean = np.random.default_rng(0).uniform(0.5, 1.5, (4, 40))
    rises = np.array([[0.34, -0.22, 0.10, -0.22], [0.01, 0.01, 0.01, 0.01]])
    result = effects.measure(sweep([clean * (1 + rises[:, :, None])], clean), "zero", repeats=200)
    np.testing.assert_allclose(result.pooled.estimate, [0, 1], atol=1e-4)
    np.testing.assert_allclose(result.rms.estimate, 100 * np.sqrt((rises**2).mean(1)), rtol=1e-4)
    assert result.rms.low[0] > 20


def test_a_component_that_matters_for_one_picture_in_ten_is_seen_in_the_spread():
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.9, 1.1, (3, 60))
    rare = np.where(np.arange(60) % 10 == 0, 0.5, -0.01)
    loss = clean * (1 + np.stack([rare, np.full(60, rare.mean())])[:, None])
    result = effects.measure(sweep([loss], clean), "zero", repeats=200)
    np.testing.assert_allclose(result.pooled.estimate[0], result.pooled.estimate[1], rtol=0.1)
    np.testing.assert_allclose(result.hurt.estimate, [0.1, 1.0])
    assert (
        result.hurt.high[0] < 0.35
        and result.quantiles.estimate[0, 0] < 0 < 40 < result.quantiles.estimate[0, 2]
    )
    assert np.ptp(result.quantiles.estimate[1]) < 2


@pytest.mark.parametrize("own", [False, True])
def test_what_pictures_add_has_pooled_damage_as_its_mean(own):
    data = random_sweep(3)
    clean, loss = effects.losses(data, "zero")
    cells = effects.increase_by_image(clean, loss, own)
    assert cells.shape == (6, 3 if own else 1, 9)
    even = np.full((1, 9), 1 / 9)
    np.testing.assert_allclose(cells.mean((1, 2)), effects.pooled_relative_increase(clean, loss, even)[:, 0])


def test_some_images_of_a_crossed_sweep_are_crossed_and_older_results_say_so_by_their_number():
    whole = random_sweep(3).assign_attrs(images_total=9)
    part = whole.isel(image=slice(0, 4))
    assert not effects.nested(whole) and effects.nested(part)  # from before sweeps said it
    assert not effects.nested(part.assign_attrs(nested=False))
    assert effects.nested(random_sweep(3).assign_attrs(nested=True, images_total=27))
    # Two timesteps whose effects have opposite signs: each image is hurt on average, each at one of them.
    data = sweep([[np.array([[1.5] * 4, [0.9] * 4])]], np.ones((2, 4))).assign_attrs(images_total=8)
    hurt = [effects.measure(data.assign_attrs(nested=own), "zero", repeats=20).hurt for own in (False, True)]
    assert [float(share.estimate[0]) for share in hurt] == [1, 0.5]


def test_excess_relative_increase_is_relative_to_what_could_still_be_gained():
    even = np.full((1, 2), 0.5)
    got = effects.excess_relative_increase(CLEAN, LOSS, np.array([1.0, 0.1]), even)[:, 0]
    np.testing.assert_allclose(got, [100 * (1 / 1 - 0.1 / 0.1) / 2, 0], atol=1e-9)
    with pytest.raises(ConfigError, match="floor 2 at timestep index 0"):
        effects.excess_relative_increase(CLEAN, LOSS, np.array([2.0, 0.1]), even)


def test_pictures_of_one_person_count_as_one():
    """Each picture taken five times: intervals over pictures shrink by sqrt 5, over people they stay."""
    data = random_sweep(1, images=12)
    thrice = data.isel(image=np.repeat(np.arange(12), 5)).assign_coords(
        person=("image", np.repeat(np.arange(12) + 100, 5))
    )
    whole, people = (effects.measure(each, "zero", repeats=500) for each in (data, thrice))
    naive = effects.measure(thrice.drop_vars("person"), "zero", repeats=500)
    assert (people.n, people.people, whole.people) == (60, 12, 0)
    for name in ("pooled", "rms", "cells", "effective"):
        for end in ("estimate", "low", "high"):
            single, other = (getattr(getattr(each, name), end) for each in (whole, people))
            np.testing.assert_allclose(single, other, rtol=2e-3)  # BCa counts draws on either side
    np.testing.assert_array_equal(whole.p, people.p)
    width = [each.pooled.high - each.pooled.low for each in (naive, people)]
    assert (width[0] < 0.6 * width[1]).all()


def test_error_of_precision_widens_intervals_and_takes_certainty_away():
    """Components of 2 and of 50 %: an error of 5 points leaves the second certain and the first not."""
    rng = np.random.default_rng(3)
    clean = rng.uniform(0.9, 1.1, (3, 24))
    rise = np.array([0.02, 0.5])[None, :, None, None] * rng.uniform(0.9, 1.1, (1, 2, 3, 24))
    exact = sweep(clean * (1 + rise), clean)
    reduced = exact.assign(precision_error=(("ablation", "component"), np.array([[5.0, 5.0]])))
    reduced = reduced.assign_attrs(precision="tf32", precision_images=8, precision_timesteps=4)
    before, after = (effects.measure(each, "zero", repeats=200) for each in (exact, reduced))
    for name in ("cells", "pooled", "pooled_losses"):
        single, other = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(single.estimate, other.estimate)
        np.testing.assert_allclose(single.low - other.low, 5)
        np.testing.assert_allclose(other.high - single.high, 5)
    assert (before.p < 0.01).all()
    assert (after.p[0] == 1).all() and (after.p[1] == before.p[1]).all()
    assert after.pooled.low[0] < 0 < after.pooled.low[1]
    assert precision.statement(exact, before.pooled, before.precision_error) is None
    uneven, half = np.array([4.0, 0.0, 0.0]), np.array([5.0, 1.0, 5.0])  # sampling errors of 1, 1, 5 points
    pooled = stats.Interval(estimate=uneven, low=uneven - half, high=uneven + half, confidence=0.95, n=24)
    assert "sampling 1 (" in (precision.statement(reduced, pooled, uneven) or "")
    between, doubtful = (
        paired.paired_difference(exact, exact.assign(loss=other.loss * 1.04, **more), "zero", repeats=20)
        for other, more in ((exact, {}), (reduced, {"precision_error": reduced.precision_error}))
    )
    np.testing.assert_allclose(doubtful.difference.high - between.difference.high, 5)
    assert (between.p < 0.01).all() and doubtful.p[0] == 1
    pairs = [changes.cell_differences(side, reduced, "zero")[0] for side in (exact, reduced)]
    np.testing.assert_allclose(pairs[0].low - pairs[1].low, 5)
    line = precision.statement(reduced, after.pooled, after.precision_error)
    assert line.startswith("products in tf32: precision 5 points, sampling 0.") and "8 images x 4" in line


def test_an_error_of_precision_that_was_not_measured_is_refused():
    reduced = random_sweep(1).assign(precision_error=(("ablation", "component"), np.full((1, 6), np.nan)))
    with pytest.raises(CheckpointError, match="error of its precision is missing; run it again"):
        effects.measure(reduced, "zero", repeats=20)
