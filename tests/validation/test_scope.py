"""Limits of the rules of verdicts are measured as limits, and their controls hold."""

import numpy as np
import pytest

from mechdiff.validation import scope


@pytest.fixture(scope="module")
def measured():
    return {check.name: check for check in scope.checks(np.random.default_rng(3), 40)}


def test_what_a_rule_does_not_reach_is_measured(measured):
    assert measured["bottleneck: 20 % in one data set, 84 % in the other"].found > 0.5
    assert measured["four phases not supported: edges of 1 timestep"].found > 0.8
    assert measured["ladder, 3 networks a rung: a measure that rises by 2 sd"].found < 0.7
    assert measured["divergence, equal means: one side scatters twice as much"].found > 0.3


def test_controls_hold(measured):
    for name in (
        "bottleneck: 36 % in one data set, 84 % in the other",
        "four phases not supported: edges of 0.25 timesteps",
        "ladder, 3 networks a rung: a measure that rises by 4 sd",
        "same starts: 12 means of two, no effect",
        "same starts: 12 means of two, an effect of 1 sd",
        "divergence of layers' means: a difference of 0.2 nats",
    ):
        assert measured[name].holds, name
