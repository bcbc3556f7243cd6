"""Sentences on pairs of components, and which components the forest plot shows."""

from types import SimpleNamespace

import numpy as np
import xarray as xr

from mechdiff.report import pairs, ranking


def model(named, strength):
    """A stand-in for an examined model with pairs of these names."""
    count = len(named)
    numbers = {
        "estimate": [75.0 - 100 * (name == "common") for name in named],
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
    return SimpleNamespace(network=SimpleNamespace(pairs=table))


def test_a_backup_is_named_with_its_share_and_markup_is_escaped():
    sentence = pairs.about(model(["backup", ""], 0.75))
    assert "<code>a0</code> makes up for 75.0 % of what losing <code>&lt;b&gt;</code> costs" in sentence
    assert "all 2 pairs of the 3 likeliest" in sentence and "of 16 images" in sentence
    assert "a1" not in sentence


def test_common_work_and_more_pairs_than_are_shown():
    sentence = pairs.about(model(["common"] * 7, 1.0))
    assert sentence.count("share 100 % of the lesser") == pairs.SHOWN and "and 2 more" in sentence


def test_nothing_named_and_nothing_examined_are_said():
    assert "No interaction is surely above 1 %" in pairs.about(model([""], 0.1))
    none = SimpleNamespace(network=SimpleNamespace(pairs=None))
    assert "not examined" in pairs.about(none)


def test_the_forest_plot_keeps_rows_for_what_means_hide():
    pooled = np.arange(30, 0, -1.0)
    quantiles = np.stack([pooled - 1, pooled, pooled + 1], axis=1)
    quantiles[25, 2], rms = 400.0, pooled.copy()
    rms[28] = 300.0
    damage = SimpleNamespace(
        order=np.arange(30), rms=SimpleNamespace(estimate=rms), quantiles=quantiles, components=None
    )
    assert ranking.chosen(damage) == [*range(12), 25, 28, 12]
    few = SimpleNamespace(order=np.arange(5))
    assert ranking.chosen(few) == list(range(5))
