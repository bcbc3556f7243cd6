"""Images of component cards: their pairs are samples of the sampler itself, their maps those of the heads."""

import dataclasses

import jax
import numpy as np
import pytest

from mechdiff.core.config import SweepConfig
from mechdiff.data import to_bytes
from mechdiff.interventions.build import ablate
from mechdiff.models import load
from mechdiff.report import examples as cards
from mechdiff.storage import labelled
from mechdiff.study import choosing, examine, examples, records
from mechdiff.sweeps.execution import drawing


@pytest.fixture(scope="module")
def examined(trained, tmp_path_factory):
    """A tiny model examined, and the folder of results."""
    folder = tmp_path_factory.mktemp("examples")
    _, config, _ = load.load_denoiser(trained[0])
    sweep = SweepConfig(ablations=("zero",), timesteps=3, images=4, reference_images=4, image_block=4)
    config = dataclasses.replace(config, sweep=sweep)
    choose = choosing.ImageChoice(config, None, folder / "cache")
    return examine.examine("tiny", trained[0], choose, config.sweep, 0, folder), folder


def test_pairs_are_samples_of_the_untouched_and_of_the_ablated_network(examined):
    denoiser, shown = examined[0].denoiser, labelled.read(examined[1] / "examples.zarr")
    count = shown.sizes["sample"]
    name = str(shown["component"].values[-1])
    ablated = dataclasses.replace(denoiser, identity=ablate(denoiser.identity, [name]))
    key, kept = examples.sampling_key(0), (shown["untouched"], shown["ablated"].sel(component=name))
    for acting, bytes_ in zip((denoiser, ablated), kept, strict=True):
        drawn = drawing.draw_samples(acting, key, count, examples.STEPS)
        assert np.abs(to_bytes(drawn).astype(int) - bytes_.values.astype(int)).max() <= 1  # of rounding
    assert (shown["untouched"] != shown["ablated"]).any()


def test_components_are_those_of_the_largest_effect(examined):
    shown, sweep = labelled.read(examined[1] / "examples.zarr"), labelled.read(examined[1] / "sweep.zarr")
    loss = sweep["loss"].sel(ablation="zero").mean("image") / sweep["clean_loss"].mean("image")
    ranked = loss.mean("t").to_series().sort_values(ascending=False).index
    assert set(shown["component"].values) == set(ranked[: examples.COMPONENTS])


def test_strongest_images_have_the_largest_activation(examined):
    denoiser, images = examined[0].denoiser, examined[0].images
    site = np.array([[[1.0, 0, 0, 5]], [[2.0, 0, 0, 0]], [[-3.0, 0, 0, 0]]])  # image, position, channel
    first = dataclasses.replace(denoiser.components()[0], site="down0.block0.res", index=(0, 2))
    size = examples.root_mean_square(denoiser, first, site)
    np.testing.assert_allclose(size, np.array([1, 2, 3]) / np.sqrt(2))
    shown = labelled.read(examined[1] / "examples.zarr")
    for row, numbers in zip(shown["strongest"].values, shown["strongest_image"].values, strict=True):
        np.testing.assert_array_equal(row, to_bytes(images.scored[numbers]))


def test_maps_keep_where_a_head_looks():
    small = examples.as_bytes(np.eye(4) / 2)
    assert small.shape == (examples.MAP_SIDE,) * 2 and small[0, 0] == 255 and small[0, -1] == 0
    assert examples.as_bytes(np.full((64, 64), 1 / 64)).min() == 255


def test_examples_are_drawn_once_and_read_with_the_results(examined, monkeypatch):
    analysis, folder = examined
    monkeypatch.setattr(examples, "samples", None)  # would fail if anything were drawn again
    sweep, noise = (
        labelled.read(folder / "sweep.zarr"),
        examples.keys.stream(jax.random.key(0), "scored noise"),
    )
    examples.save(folder / "examples.zarr", analysis.denoiser, analysis.images, sweep, 0, noise)
    read = records._examined(folder).examples
    shown = cards.figures(read)  # the page has a place for all that is saved
    assert set(shown) == {*read["component"].values.tolist(), *read["head"].values.tolist()}
    assert f"t = {read.attrs['strongest_t']}," in shown[str(read["component"].values[0])][1]["caption"]
    assert set(read["head"].values) == {
        component.name for component in analysis.denoiser.components() if component.component_type == "head"
    }
