"""Measures of several networks side by side."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from reference.made_networks import network

from mechdiff.study.claims import across_seeds


def test_measures_of_complexity_and_their_ratios():
    rng = np.random.default_rng(0)
    made = []
    for seed in range(3):
        for data, factor in (("celeba", 2.0), ("synthetic", 1.0)):
            single = network(data, seed, np.full(12, 0.3), np.linspace(0, 1, 6))
            values = factor * (1 + 0.01 * rng.standard_normal((1, 3, 2)))
            activity = xr.Dataset({"value": (("measure", "site", "t"), values)}, coords={"measure": ["rank"]})
            runs = xr.Dataset(attrs={"sizes": [2 * factor, 3 * factor, 4.0]})
            control = {"control": single.sweep, "control_attention": single.attention}
            made.append(dataclasses.replace(single, activity=activity, circuits={"mean": runs}, **control))
    got = across_seeds.complexity_ratios(made)
    assert (
        got["activations: rank"].estimate == pytest.approx(2, rel=0.02) and got["activations: rank"].low > 1.9
    )
    assert got["circuit to 0.8, mean"].estimate == pytest.approx(2)
    assert got["circuit to 0.95, mean"].estimate == pytest.approx(1)
    assert got["effective components, zero"].estimate == pytest.approx(1, rel=0.01)
    assert "untrained: effective components" in got
    lower = dataclasses.replace(made[1], complexity=0)
    assert set(across_seeds.ladder([*made, lower])) == {0, 4} and len(across_seeds.ladder(made)[4]) == 3


def test_a_missing_network_is_one_network():
    assert across_seeds.too_few([], [], 1).startswith("needs at least 1 network of either data set")
