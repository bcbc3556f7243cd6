"""Effective components over trainings, and the gate of the ladder."""

import numpy as np
import pytest
import scipy.stats

from mechdiff.analysis import spread
from mechdiff.stats import effective_number


def test_increases_are_averaged_before_its_effective_number_is_taken():
    increases = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.exp(spread.log_effective_number(increases)) == pytest.approx(2)
    mixed = np.array([[8.0, -1.0], [1.0, 1.0]])  # cube roots 1.5 and 0
    assert np.exp(spread.log_effective_number(mixed)) == pytest.approx(1)
    assert effective_number(increases.T).tolist() == [1, 1]  # network by network
    draws = np.random.default_rng(0).random((3, 4, 5))
    got = [spread.log_effective_number(draws[..., i]) for i in range(5)]
    np.testing.assert_allclose(spread.log_effective_number(draws), np.array(got))


def test_pseudo_values_take_off_what_scatter_makes_of_the_effective_number():
    rng = np.random.default_rng(1)
    place = np.exp(rng.normal(size=45))
    truth = np.log(effective_number(place[:, None])[0])
    plain, corrected = [], []
    for _ in range(300):
        increases = place * np.exp(0.8 * rng.normal(size=(6, 45)))
        plain.append(float(spread.log_effective_number(increases)) - truth)
        corrected.append(spread.pseudo_values(increases).mean() - truth)
    assert abs(np.mean(corrected)) < abs(np.mean(plain)) / 3
    assert np.isnan(spread.pseudo_values(place[None])).all()


def test_the_gate_asks_every_step_to_rise():
    rng = np.random.default_rng(2)
    rungs = [mean + 0.1 * rng.normal(size=6) for mean in (0, 0.3, 0.6)]
    rises, p = spread.ordered(rungs)
    steps = [
        scipy.stats.ttest_ind(high, low, equal_var=False, alternative="greater").pvalue
        for low, high in ((rungs[0], rungs[1]), (rungs[1], rungs[2]))
    ]
    assert rises and p == pytest.approx(max(steps))
    rises, p = spread.ordered(rungs[::-1])
    assert not rises and p > 0.95
    assert np.isnan(spread.ordered([rungs[0][:2], rungs[1]])[1]) and spread.ordered(rungs[:1])[0] is False


def test_sizes_that_are_equal_on_every_rung_pass_the_gate_if_they_rise():
    sizes = [np.log([size] * 3) for size in (5.0, 9.0, 12.0)]
    rises, p = spread.ordered(sizes, sizes=True)
    assert rises and p < 0.05
    flat = spread.ordered([sizes[0], sizes[0], sizes[1]], sizes=True)
    assert not flat[0] and flat[1] == pytest.approx(0.5)
