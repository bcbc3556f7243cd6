"""Examples of the largest components, drawn once and read with the results."""

import jax
import pytest

from mechdiff.core import keys
from mechdiff.report import examples as cards
from mechdiff.storage import labelled
from mechdiff.study import examples, results_folder
from mechdiff.study.examples import saving


def test_components_are_those_of_the_largest_effect(examined, shown):
    sweep = labelled.read(examined[1] / "sweep.zarr")
    loss = sweep["loss"].sel(ablation="zero").mean("image") / sweep["clean_loss"].mean("image")
    ranked = loss.mean("t").to_series().sort_values(ascending=False).index
    assert set(shown["component"].values) == set(ranked[: examples.Sizes().components])


def test_examples_are_drawn_once_and_again_in_other_sizes(examined, monkeypatch):
    analysis, folder = examined
    noise = keys.stream(jax.random.key(0), "scored noise")
    sweep = labelled.read(folder / "sweep.zarr")
    saved = (folder / "examples.zarr", analysis.denoiser, analysis.images, sweep, 0, noise)
    monkeypatch.setattr(saving.samples, "draw", None)  # fails if anything is drawn
    examples.save(*saved)
    with pytest.raises(TypeError, match="NoneType"):
        examples.save(*saved, examples.Sizes(strongest=2))


def test_the_page_has_a_place_for_all_that_is_saved(examined):
    read = results_folder._examined(examined[1]).examples
    figures = cards.figures(read)
    assert set(figures) == {*read["component"].values.tolist(), *read["head"].values.tolist()}
    assert f"t = {read.attrs['strongest_t']}," in figures[str(read["component"].values[0])][1]["caption"]
