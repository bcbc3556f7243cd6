"""Sentences on pairs of components, and which components the forest plot shows."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from reference.results import fabricate

from mechdiff.report import pairs, ranking
from mechdiff.storage import files
from mechdiff.study import results_folder


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    fabricate(folder, "tiny", "held-out synthetic images", 0)
    files.write_json(folder / "manifest.json", {})
    return results_folder.read(folder)[1][0]


def with_pairs(model, named, strength):
    """The model with pairs of these names."""
    count = len(named)
    numbers = {
        "estimate": [-25.0 if name == "common" else 75.0 for name in named],
        "low": [70.0] * count,
        "high": [80.0] * count,
        "single_a": [0.0] * count,
        "single_b": [25.0] * count,
        "strength": [strength] * count,
        "named": named,
    }
    coords = {
        "a": ("pair", [f"a{i}" for i in range(count)]),
        "b": ("pair", ["<b>"] * count),
        "image": range(16),
    }
    table = xr.Dataset({name: ("pair", values) for name, values in numbers.items()}, coords)
    return dataclasses.replace(model, results=dataclasses.replace(model.results, pairs=table))


def test_a_backup_is_named_with_its_share_and_markup_is_escaped(examined):
    sentence = pairs.about(with_pairs(examined, ["backup", ""], 0.75))
    assert "<code>a0</code> makes up for 75.0 % of what ablating <code>&lt;b&gt;</code> costs" in sentence
    assert "all 2 pairs of the 3 likeliest" in sentence and "of 16 images" not in sentence
    assert "16 images" in sentence and "a1" not in sentence
    model = with_pairs(examined, ["backup"], 0.75)
    ends = {"strength_low": ("pair", [0.6]), "strength_high": ("pair", [np.inf])}
    known = dataclasses.replace(model.results, pairs=model.results.pairs.assign(ends))
    assert "makes up for 75.0 [60.0, ∞] % of" in pairs.about(dataclasses.replace(model, results=known))


def test_common_work_and_more_pairs_than_are_shown(examined):
    sentence = pairs.about(with_pairs(examined, ["common"] * 7, 1.0))
    assert sentence.count("sum, by 100 % of the smaller cost") == pairs.SHOWN and "and 2 more" in sentence
    more_than_all = pairs.about(with_pairs(examined, ["common"], 1.2))
    assert (
        "costs less than ablating the costlier alone (interaction" in more_than_all
        and "120" not in more_than_all
    )


def test_a_group_of_which_any_one_may_go_is_named_once_and_not_as_pairs(examined):
    model = with_pairs(examined, ["backup"] * 4, 1.0)
    pair = {"a": list("rrsr"), "b": list("sttu"), "single_a": [0.2] * 4, "single_b": [0.2, 0.2, 0.2, 25.0]}
    joint = {"joint": [50.0, 60.0, 70.0, 80.0]}
    table = model.results.pairs.assign({name: ("pair", values) for name, values in (pair | joint).items()})
    table = table.set_coords(["a", "b"])
    results = dataclasses.replace(model.results, pairs=table)
    sentence = pairs.about(dataclasses.replace(model, results=results))
    group = "of <code>r</code>, <code>s</code> and <code>t</code> any one may go and no two"
    assert group in sentence and "two together 50.0 to 70.0 %" in sentence
    assert sentence.count("makes up for") == 1 and "<code>u</code>" in sentence


def test_nothing_named_and_nothing_examined_are_said(examined):
    assert "No pair interacts by more than 1 %" in pairs.about(with_pairs(examined, [""], 0.1))
    assert "not examined" in pairs.about(examined)


def test_the_forest_plot_keeps_rows_for_what_means_hide(examined):
    increase = examined.lead
    order = increase.order.tolist()
    hidden = order[-1], order[-2]  # the least on average
    quantiles, rms = increase.quantiles.estimate.copy(), increase.rms.estimate.copy()
    quantiles[hidden[0], -1], rms[hidden[1]] = 1e6, 1e5
    varied = dataclasses.replace(
        increase,
        quantiles=dataclasses.replace(increase.quantiles, estimate=quantiles),
        rms=dataclasses.replace(increase.rms, estimate=rms),
    )
    chosen = ranking.chosen(varied)
    largest = ranking.SHOWN - ranking.VARIED
    assert chosen[:largest] == order[:largest] and len(set(chosen)) == ranking.SHOWN
    assert chosen[largest : largest + 2] == [*hidden]
    assert np.isfinite(ranking.forest_ends([varied])).all() and ranking.forest_ends([varied])[1] > 1e6
