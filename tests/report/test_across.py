"""All networks together: every mark says which network it is, and seeds are counted once."""

import dataclasses
import re

import numpy as np
import pytest
import xarray as xr
from matplotlib import rc_context

from mechdiff.core.presets import preset
from mechdiff.report import across, document, numbers, style
from mechdiff.study.claims import across_seeds
from mechdiff.study.examined_model import ExaminedModel
from mechdiff.study.network_results import NetworkResults

IMAGES = 3


def network(name, data, seed):
    """Four components that cost 1, 2, 3 and 4 times as much as the seed's own factor."""
    factors = 1 + 0.1 * (seed + 1) * np.arange(1, 5)
    loss = np.broadcast_to(factors[None, :, None, None], (1, 4, 2, IMAGES))
    dims = ("ablation", "component", "t", "image")
    coords = {"ablation": ["zero"], "component": [f"block{k}.res" for k in range(4)], "t": [1, 5]}
    sweep = xr.Dataset({"loss": (dims, loss), "clean_loss": (dims[2:], np.ones((2, IMAGES)))}, coords=coords)
    return NetworkResults(name, data, 4, seed, sweep, sweep)


@pytest.fixture(scope="module")
def networks():
    faces = [network(f"faces-seed{seed}", "synthetic", seed) for seed in (0, 1)]
    return [*faces, *(network(f"celeba-seed{seed}", "celeba", seed) for seed in (0, 1, 2))]


def test_every_network_has_its_name_in_the_key_and_a_mark_at_its_value(networks):
    with rc_context(style.settings(style.LIGHT)):
        axes = across.draw_increases(style.LIGHT, networks).axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(names) == sorted(each.name for each in networks)
    marks = {}
    for line in axes.lines:
        if line.get_gid():
            _, component, words = line.get_gid().split("|")
            marks[words.split(":")[0], component] = float(line.get_xdata()[0]), line.get_marker()
    assert len(marks) == len(networks) * 4
    for each in networks:
        values = across_seeds.relative_increases(each.sweep, "zero")
        assert [marks[each.name, f"block{k}.res"][0] for k in range(4)] == pytest.approx(values.tolist())
    shapes = {marks[f"celeba-seed{seed}", "block0.res"][1] for seed in (0, 1, 2)}
    assert len(shapes) == 3
    assert len({str(across._shape(rank)) for rank in range(2 * len(across.MARKS))}) == 2 * len(across.MARKS)
    spans = axes.collections[0].get_segments()  # CelebA's: from the least to the largest seed
    expected = [across_seeds.relative_increases(each.sweep, "zero") for each in networks[2:]]
    largest = np.max(expected, axis=0)
    assert sorted(span[1, 0] for span in spans) == pytest.approx(sorted(largest))


def test_a_lone_network_of_the_data_sets_of_claims_is_shown_beside_the_others(networks):
    simple = dataclasses.replace(networks[0], name="simple", complexity=0)
    assert [each.name for each in document._compared([networks[0], simple])] == ["faces-seed0", "simple"]
    assert len(document._compared([*networks, simple])) == len(networks)


def test_a_mark_s_words_become_data_of_the_page(networks):
    with rc_context(style.settings(style.LIGHT)):
        drawn = style.svg(across.draw_increases(style.LIGHT, networks)).decode()
    page = style.inline.themed(drawn, drawn, "seeds", "words")
    told = re.findall(r'data-c="block3\.res" data-told="([^"]*)"', page)
    assert "celeba-seed2: pooled ΔL/L 120 %, zero ablation" in told and len(told) == len(networks)


def test_training_seeds_are_each_said_once():
    def model(seed, data="synthetic"):
        config = preset("tiny")
        config = dataclasses.replace(config, seed=seed, data=dataclasses.replace(config.data, name=data))
        empty = xr.Dataset()
        return ExaminedModel(
            "name", "", 0, config, {}, NetworkResults("name", data, 4, seed, empty, empty), b""
        )

    assert numbers.training_seeds([model(1), model(0)]) == "training seeds 0, 1"
    same = numbers.training_seeds([model(0), model(0), model(0)])
    assert same.startswith("training seed 0: ") and "not replicates" in same
    assert numbers.training_seeds([model(0), model(0, "unknown")]) == ""
    others = model(0), model(1), model(0, "celeba"), model(0, "unknown")
    assert [numbers._relation(model(0), other) for other in others] == [
        "same data, same seed",
        "same data, other seed",
        "other data",
        "training not known",
    ]


def test_the_largest_effect_of_a_row_may_lower_the_loss(networks):
    loss = networks[0].sweep["loss"].copy()
    loss[:, 1] = 0.2
    sweep = networks[0].sweep.assign(loss=loss)
    results = dataclasses.replace(networks[0], sweep=sweep)
    row = across._row(ExaminedModel("name", "", 0, preset("tiny"), {}, results, b""))
    assert row.largest == {"zero": ("block1.res", pytest.approx(-80))}
