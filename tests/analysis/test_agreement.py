"""Rank agreement of effects: between ablations, between denoisers, with intervals that allow for noise."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.fabricated import random_sweep

from mechdiff import stats
from mechdiff.analysis import agreement, effects
from mechdiff.core.errors import ConfigError
from mechdiff.stats import Units
from mechdiff.validation import old_rules


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_rank_correlation_is_scipys_with_ties(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 4, (2, 12, 3)).astype(float)
    expected = [scipy.stats.spearmanr(first[:, i], second[:, i]).statistic for i in range(3)]
    np.testing.assert_allclose(agreement.rank_correlation(first, second), expected, atol=1e-12)


def test_kinds_agree_fully_when_one_is_the_other_and_idle_components_are_left_out():
    data = random_sweep(2)
    both = xr.concat(
        [data, data.assign_coords(ablation=["mean"])], "ablation", data_vars="minimal", coords="minimal"
    )
    assert agreement.of_ablations(both, "zero", "mean", repeats=50).estimate == pytest.approx(1)
    two = {"ablation": "mean", "component": both["component"][:2]}
    both["change"].loc[two] = 0
    both["loss"].loc[two] = 1e3  # would spoil the ranks if counted
    assert agreement.of_ablations(both, "zero", "mean", repeats=50).estimate == pytest.approx(1)


def test_subjects_agree_over_the_components_they_share():
    first, second = random_sweep(3, images=9), random_sweep(3, images=9).isel(image=slice(0, 5))
    second = second.isel(component=[4, 2, 0, 1])
    result = agreement.of_denoisers(first, second, "zero", repeats=50)
    names = [str(name) for name in second["component"].values]
    sides = [effects.measure(data, "zero", repeats=20) for data in (first, second)]
    values = [[side.pooled.estimate[side.components.index(name)] for name in names] for side in sides]
    assert result.estimate == pytest.approx(scipy.stats.spearmanr(*values).statistic)
    assert result.n == 5 and result.low <= result.high


def test_an_interval_of_rank_agreement_covers_what_noise_hides_and_contains_its_estimate():
    """Two networks whose effects rank alike, each seen through noise: resamples all lie below the truth."""
    rng = np.random.default_rng(0)
    effect = 0.05 * np.exp(0.7 * rng.normal(size=(20, 1, 1)))
    covered, before = [], []
    for _ in range(40):
        clean = np.exp(0.3 * rng.normal(size=(2, 2, 8)))
        sides = [(c, c + effect * (1 + 0.5 * rng.normal(size=(20, 1, 8)))) for c in clean]
        units = [Units(np.arange(8), 8, False)] * 2
        interval = agreement.ranked(sides, units, repeats=200)
        assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
        covered.append(interval.high > 0.999)  # the truth is 1
        before.append(old_rules.resampled_ranks(sides, units, 200)[1] > 0.999)
    assert np.mean(covered) > 0.9 and np.mean(before) < 0.1


@pytest.mark.parametrize("link, shared", [(0.9, False), (0.0, True)])
def test_rank_agreement_allows_for_noise_larger_than_effects(link, shared):
    """That of 8 images hides a correlation, or makes one where both sides have the same images."""
    rng = np.random.default_rng(0)
    covered, units = [], [Units(np.arange(8), 8, False)]
    for _ in range(20):
        first, second = rng.normal(size=(2, 40))
        effect = 0.05 * np.exp(0.7 * np.stack([first, link * first + np.sqrt(1 - link**2) * second]))
        noise = rng.normal(size=(2, 40, 1, 8))
        noise[1] = noise[0] if shared else noise[1]
        clean = np.exp(0.3 * rng.normal(size=(1, 8)))
        sides = [(clean, clean + effect[i][:, None, None] + 0.4 * noise[i]) for i in (0, 1)]
        interval = agreement.ranked(sides, units if shared else units * 2, repeats=100)
        truth = scipy.stats.spearmanr(*effect).statistic
        assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
        covered.append(interval.low <= truth <= interval.high)
    assert np.mean(covered) > 0.8


def test_rank_agreement_of_people_counts_people_and_leaves_out_each():
    data = random_sweep(2, images=12)
    with_people = data.assign_coords(person=("image", np.repeat(np.arange(4), 3)))
    of_people = agreement.of_denoisers(with_people, data, "zero", repeats=50)
    assert of_people.n == 4 and agreement.of_denoisers(data, data, "zero", repeats=50).n == 12
    unrelated = random_sweep(11, images=12)
    assert agreement.of_denoisers(data, unrelated, "zero", repeats=50).low < 0


def test_resamples_that_rank_nothing_leave_an_interval():
    """Of three components two are equal in resamples without one of four images."""
    units = stats.Units(np.arange(4), 4, False)
    of_images = np.array([[0.0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]), np.arange(12.0).reshape(3, 4)
    interval = agreement.rank_interval(
        lambda weights: [side @ weights[0].T for side in of_images],
        [units],
        agreement.rank_correlation,
        repeats=100,
    )
    assert interval.estimate == pytest.approx(-0.866, abs=1e-3)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1


def test_too_few_components_in_common_are_refused():
    other = random_sweep(5, components=2, names=["a.res", "mid.block0.res"])
    with pytest.raises(ConfigError, match="1 components in common"):
        agreement.of_denoisers(random_sweep(4), other, "zero")
