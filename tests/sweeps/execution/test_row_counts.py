"""Fewer row counts: the cheapest of all ways, by trying all of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.core.presets import preset
from mechdiff.models.stages import stages
from mechdiff.sweeps.execution import row_counts


def cost(joins, costs):
    """Of all rows: each goes through every stage from the one where it joins."""
    return sum(joining * sum(costs[stage:]) for stage, joining in enumerate(joins))


def moved(joins, kept):
    """All ways in which what joins comes to the last of the stages `kept` that is not behind it."""
    merged = [0] * len(joins)
    for stage, joining in enumerate(joins):
        if joining:
            merged[max(place for place in kept if place <= stage)] += joining
    return tuple(merged)


@settings(max_examples=60)
@given(
    joins=st.lists(st.integers(0, 5), min_size=1, max_size=7).filter(any),
    most=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_no_other_choice_of_stages_is_cheaper(joins, most, seed):
    costs = np.random.default_rng(seed).uniform(0.1, 3, len(joins)).tolist()
    merged = row_counts.few_row_counts(joins, costs, most)
    first = next(stage for stage, joining in enumerate(joins) if joining)
    choices = (
        (first, *others)
        for size in range(most)
        for others in itertools.combinations(range(first + 1, len(joins)), size)
    )
    least = min(cost(moved(joins, kept), costs) for kept in choices)
    assert cost(merged, costs) == pytest.approx(least)
    assert sum(merged) == sum(joins) and np.count_nonzero(merged) <= most
    assert (np.cumsum(merged) >= np.cumsum(joins)).all()  # nobody comes late


def test_joins_that_are_few_stay_as_they_are():
    assert row_counts.few_row_counts((0, 3, 0, 2), (1.0,) * 4, 2) == (0, 3, 0, 2)


def test_every_stage_of_a_network_has_a_cost():
    listed = stages(preset("tiny").unet)
    costs = row_counts.stage_costs(listed)
    assert len(costs) == len(listed) and min(costs) > 0
