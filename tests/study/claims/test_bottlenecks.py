"""The claim about bottlenecks, on made-up results whose truth is known."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from reference.made_networks import NAMES, answers_of, network

from mechdiff.core.errors import NotTestable
from mechdiff.study.claims import bottlenecks


def test_a_bottleneck_is_named_by_networks_that_do_not_test_it():
    rng = np.random.default_rng(0)
    made = [
        network(
            "synthetic", seed, np.r_[0.6, np.full(11, 0.1)] * (1 + 0.1 * rng.random(12)), np.linspace(0, 1, 6)
        )
        for seed in range(6)
    ]
    answer = answers_of(made)["bottlenecks"]
    assert answer.verdict == "supported" and "100% of networks" in answer.because
    assert answer.because.count("not testable here") == 2  # neither untrained networks nor random sets
    sets = xr.Dataset(
        {"relative_increase": (("ablation", "component", "set"), np.full((2, 12, 20), 90.0))},
        coords={"ablation": ["zero", "mean"], "component": NAMES},
    )
    beaten = [dataclasses.replace(item, random_sets=sets) for item in made]
    answer = answers_of(beaten)["bottlenecks"]
    assert answer.verdict != "supported" and "points above the 95th percentile of random" in answer.because
    # Of a study of which one network lacks the control, it was left out, and the claim was "supported".
    answer = answers_of([made[0], *beaten[1:]])["bottlenecks"]
    assert answer.verdict != "supported" and "in the 5 of 6 networks that hold them" in answer.because
    by_zero = dataclasses.replace(made[5], sweep=made[5].sweep.sel(ablation=["zero"]))
    with pytest.raises(NotTestable, match="swept in all networks: zero"):  # a ValueError of array shapes
        bottlenecks.examine([*made[:5], by_zero])
    low = [network("synthetic", s, 0.1 * (1 + 0.1 * rng.random(12)), np.linspace(0, 1, 6)) for s in range(6)]
    assert answers_of(low)["bottlenecks"].verdict == "not supported"


def test_people_with_most_of_the_images_count_less(monkeypatch):
    units, test = [], bottlenecks.bottlenecks.crossed
    monkeypatch.setattr(bottlenecks.bottlenecks, "crossed", lambda *a: units.append(a[2]) or test(*a))
    made = [network("celeba", seed, np.full(12, 0.1), np.linspace(0, 1, 6)) for seed in range(2)]
    images = made[0].sweep.sizes["image"]
    person = ("image", np.maximum(np.arange(images) - images // 2, 0))  # one has half of them
    bottlenecks.examine([dataclasses.replace(m, sweep=m.sweep.assign_coords(person=person)) for m in made])
    assert units == [made[0].units.count ** 2 / ((images // 2 + 1) ** 2 + images // 2 - 1)]


def test_a_bottleneck_is_told_by_data_set():
    """A component that costs 20 % in one data set and 90 % in the other: 55 % describes neither."""
    rng, made = np.random.default_rng(1), []
    for data, cost in (("celeba", 0.2), ("synthetic", 0.9)):
        for seed in range(6):
            increases = np.r_[cost, np.full(11, 0.05)] * (1 + 0.05 * rng.random(12))
            made.append(network(data, seed, increases, np.linspace(0, 1, 6)))
    because = answers_of(made)["bottlenecks"].because
    parts = because.split(" % in 6 networks of ")[:2]
    told = [float(part.rsplit(" [", 1)[0].split()[-1].strip("(")) for part in parts]
    assert 20 < told[0] < 21.5 and 90 < told[1] < 95


def test_components_that_an_ablation_can_not_see_do_not_count():
    rng, made = np.random.default_rng(0), []
    for seed in range(6):
        single = network(
            "synthetic", seed, np.r_[0.6, np.full(11, 0.1)] * (1 + 0.1 * rng.random(12)), np.zeros(6)
        )
        hidden = single.sweep.copy(deep=True)
        hidden["loss"][1, 0] = hidden["clean_loss"]  # mean ablation changes nothing of the first
        hidden["change"][1, 0] = 0
        made.append(dataclasses.replace(single, sweep=hidden))
    answer = answers_of(made)["bottlenecks"]
    assert answer.verdict == "supported" and NAMES[0] in answer.because
    assert "mean changes 11 of 12" in answer.because


def test_bottlenecks_of_exchangeable_components_are_not_supported():
    """Audit F1: the component that is named changes, and no half confirms the other's choice."""
    for repeat in range(6):
        rng = np.random.default_rng([1, repeat])
        made = [
            network("synthetic", seed, 0.2 * np.exp(0.4 * rng.standard_normal(12)), np.linspace(0, 1, 6))
            for seed in range(6)
        ]
        assert answers_of(made)["bottlenecks"].verdict == "undecided"


def test_of_one_network_a_data_set_nothing_is_chosen_and_no_effect_is_told():
    """All of them are in one half, and none could be named by the other."""
    increases = np.r_[0.6, np.full(11, 0.1)]
    made = [network(data, 0, increases, np.linspace(0, 1, 6)) for data in ("celeba", "synthetic")]
    answer = answers_of(made)["bottlenecks"]
    assert "too few networks for two halves; " in answer.because
    assert "nan" not in answer.because and "network of" not in answer.because
