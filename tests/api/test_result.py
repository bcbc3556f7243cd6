"""Tables of sweeps and comparisons say what the losses say; everything prints short."""

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from mechdiff import stats
from mechdiff.analysis import paired
from mechdiff.api import compare, load, paired_sweeps, show
from mechdiff.api.compare import Comparison
from mechdiff.api.images import eval_images
from mechdiff.api.model import Model
from mechdiff.api.result import images_wanted
from mechdiff.core.config import override
from mechdiff.core.errors import CheckpointError, ConfigError, DataError, MechdiffError
from mechdiff.data import to_bytes
from mechdiff.data.collection import open_collection
from mechdiff.storage import checksums, image_grid
from mechdiff.study.inputs import DIGEST_LENGTH, TRAINING_IMAGES


@pytest.fixture(scope="module")
def result(model, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    return model.sweep(images, n=6, timesteps=2, components="mid.*", folder=folder)


def test_the_table_is_the_losses(result):
    data = result.dataset
    assert all(variable.attrs.get("long_name") for variable in data.variables.values())
    loss, clean = data.loss.sel(ablation="zero").mean("image"), data.clean_loss.mean("image")
    pooled = (100 * (loss / clean - 1)).mean("t")
    frame = result.frame.set_index("component")
    np.testing.assert_allclose(frame["delta_loss"], pooled.sel(component=frame.index), rtol=1e-3)
    assert frame["delta_loss"].is_monotonic_decreasing
    assert (frame["low"] <= frame["delta_loss"]).all() and (frame["n"] == 6).all()
    assert list(result.top(2).columns) == ["component", "type", "delta_loss", "low", "high", "p", "n"]


def test_components_can_be_ranked_by_how_their_effect_varies(result):
    varied = result.top(3, by="over_images")
    clean, loss = result.dataset.clean_loss, result.dataset.loss.sel(ablation="zero")
    by_image = (100 * (loss - clean) / clean.mean("image")).mean("t")
    expected = np.sqrt((by_image**2).mean("image"))
    np.testing.assert_allclose(varied["over_images"], np.sort(expected)[::-1][:3], rtol=1e-3)
    assert varied.columns[-3:].tolist() == ["over_images", "over_images_low", "over_images_high"]
    assert len(varied) == 3
    assert result.top(by="hurt").columns[-3:].tolist() == ["hurt", "hurt_low", "hurt_high"]
    with pytest.raises(ConfigError, match="over_timesteps"):
        result.top(by="over_timestep")


def test_a_saved_result_opens_with_the_table_in_it(result, tmp_path):
    result.save(tmp_path / "result.zarr")
    opened = xr.open_zarr(tmp_path / "result.zarr").sel(ablation="zero")
    frame = result.frame.set_index("component")
    pooled = opened.sel(component=frame.index.tolist())["pooled_delta_loss_low"]
    np.testing.assert_array_equal(pooled, frame["low"])
    assert pooled.attrs["units"] == "%" and opened.attrs["denoiser"] == "tiny"


def test_screens_rank_all_components(model, images):
    screen = model.screen(images, n=4, timesteps=2)
    assert len(screen.frame) == len(model.components())
    assert np.abs(screen.frame.score).is_monotonic_decreasing
    assert "it ranks, it does not measure" in repr(screen)
    assert "by gradients on 4 images (" in repr(screen) and "of an array" in repr(screen)


def test_images_of_a_first_answer_are_sampled_in_few_steps_and_say_so(model):
    trained_on_unknown_images = Model(model.denoiser, model.intervention)
    brief = eval_images(trained_on_unknown_images, None, 2, brief=True)
    assert brief.label.endswith("not real images), 10 steps of DDIM")
    assert brief.scored.std() > 0.01


def test_a_first_answer_takes_the_samples_that_are_stored_with_the_model(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, *model.denoiser.image_shape), np.uint8)
    (tmp_path / image_grid.SHEET).write_bytes(image_grid.png(image_grid.sheet(pixels)))
    there = dataclasses.replace(model, origin=str(tmp_path))
    assert "stored" not in eval_images(there, None, 3, brief=True).label  # a file of that name, no model's
    checksums.write(tmp_path)
    stored = eval_images(there, None, 3, brief=True)
    assert stored.label.endswith("stored with it")
    np.testing.assert_array_equal(to_bytes(stored.scored), pixels)
    assert "stored" not in eval_images(there, None, 4, brief=True).label  # there are three


def test_loading_imports_nothing_that_only_draws():
    code = "import sys, mechdiff.api; print({'matplotlib', 'scipy.stats', 'jinja2'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_screen_is_the_same_whether_it_is_compiled_beside_its_images_or_after_them(model):
    beside = model.screen(n=4, timesteps=2)
    prepared = eval_images(model, None, 4)
    after = model.screen(prepared.scored, n=4, timesteps=2)
    pd.testing.assert_frame_equal(beside.frame, after.frame)
    pd.testing.assert_frame_equal(beside.frame, model.screen(prepared, timesteps=2).frame)


@pytest.mark.parametrize(
    "measure", [Model.sweep, Model.screen, lambda model, *a, **k: compare(model, model, *a, **k)]
)
def test_a_number_that_prepared_images_do_not_have_is_refused(model, measure):
    with pytest.raises(ConfigError, match="n=3: 4 images are prepared already"):
        measure(model, eval_images(model, None, 4), n=3, timesteps=2)


def test_transparent_images_are_compared_over_the_background_that_is_given(model, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for red in range(3):
        Image.new("RGBA", (16, 16), (red, 9, 9, 0)).save(images / f"{red}.png")
    settings = {"n": 2, "timesteps": 1, "components": "mid.block0.res", "folder": tmp_path / "sweeps"}
    with pytest.raises(MechdiffError, match="has transparent pixels"):
        compare(model, model, images, **settings)
    with pytest.raises(ConfigError, match="background 'pink'"):
        compare(model, model, images, background="pink", **settings)
    with pytest.raises(ConfigError, match="background='white' is for pixels of image files"):
        compare(model, model, background="white", **settings)
    with pytest.raises(ConfigError, match="white=255 is for pixels of image files"):
        eval_images(model, "images.npy", 2, white=255)
    compared = compare(model, model, images, background="white", **settings)
    assert "over white" in compared.before.dataset.attrs["preprocessing"]
    assert eval_images(model, images, 2, background="white").scored.min() == 1


def test_dark_images_of_sixteen_bits_are_compared_by_the_white_that_is_given(model, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for value in (1000, 2000, 4095):
        Image.fromarray(np.full((16, 16), value, np.uint16)).save(images / f"{value}.png")
    settings = {"n": 2, "timesteps": 1, "components": "mid.block0.res", "folder": tmp_path / "sweeps"}
    with pytest.raises(MechdiffError, match=r"in Python mechdiff.api.images.eval_images\(..., white=65535"):
        compare(model, model, images, **settings)
    compared = compare(model, model, images, white=4095, **settings)
    assert "white is 4095" in compared.before.dataset.attrs["preprocessing"]
    assert eval_images(model, images, 3, white=4095).scored.max() == 1


def test_without_a_number_all_images_that_are_given_are_examined(model, images):
    def wanted(images, ablation="zero", n=None):
        return images_wanted(model, images, n, ablation)

    assert wanted(images) == 6 and wanted(images, "mean") == 3 and wanted(images, n=4) == 4
    many = np.concatenate([images * size for size in np.linspace(0.4, 1, 7)])
    assert wanted(many) == wanted(None) == wanted(many, "optimal") == 16
    with pytest.raises(DataError, match="1 different images"):
        model.sweep(images[:1], timesteps=1)


def test_images_of_one_s_own_data_say_whose_where_the_other_has_others(model):
    images = eval_images(model, None, 2)
    other = Model(model.denoiser, model.intervention, config=override(model.config, ["data.complexity=1"]))
    assert paired_sweeps._of_one(model, [model, model], images).label == images.label
    label = paired_sweeps._of_one(model, [model, other], images).label
    assert label == "held-out synthetic images, of the data that tiny was trained on"


def test_a_model_compared_with_itself_has_not_changed(model, images, result, tmp_path, caplog):
    twin = Model(dataclasses.replace(model.denoiser, name="twin"), model.intervention)
    settings = {"n": 6, "timesteps": 2, "components": "mid.*", "folder": tmp_path}
    with pytest.raises(ConfigError, match="under an intervention"):
        compare(model, model.ablate("mid.*"), images, **settings)
    assert "the same network" not in caplog.text
    compared = compare(model, twin, images, **settings)
    assert "tiny and twin are the same network" in caplog.text
    assert (compared.frame["difference"] == 0).all() and (compared.frame["p"] == 1).all()
    assert "tiny (before), twin (after)" in repr(compared) and "no p can fall below 0.19" in repr(compared)
    assert compared.before.dataset.attrs["inputs"] in compared._repr_html_()
    assert len(compared.dataset.attrs["parameters_sha256"]) == 2


def test_models_that_would_be_swept_on_different_images_are_refused_before_any_sweep(
    model, images, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(paired_sweeps, "sweep", lambda *_, **__: pytest.fail("swept"))
    squashed = override(model.config, ["data.preprocessing.crop=squash"])
    with pytest.raises(ConfigError, match=r"center crop, .* / squashed to .*array of images in the models'"):
        compare(model, dataclasses.replace(model, config=squashed), str(tmp_path), n=2)
    first = open_collection(tmp_path)
    seen = {TRAINING_IMAGES: [first.digests[first.rows[0]][:DIGEST_LENGTH]]}
    with pytest.raises(ConfigError, match=r"different images: .* none of them was trained on"):
        compare(model, dataclasses.replace(model, record=seen), str(tmp_path), n=2)


def made_up(rng, effect=0.0, images=16, components=6):
    """A sweep whose losses are noise about 1, the first component's ablation `effect` above it."""
    loss = 1.5 + 0.2 * rng.standard_normal((1, components, 1, images))
    loss[0, 0] += effect
    return xr.Dataset(
        {
            "loss": (("ablation", "component", "t", "image"), loss),
            "clean_loss": (("t", "image"), np.ones((1, images))),
        },
        coords={
            "ablation": ["zero"],
            "component": [f"c{i}" for i in range(components)],
            "t": [300],
            "image": np.arange(images),
        },
    )


def test_paired_differences_err_as_often_as_they_say_and_can_succeed():
    rng = np.random.default_rng(0)
    null = [paired.paired_difference(made_up(rng), made_up(rng), "zero", repeats=50) for _ in range(60)]
    wrong = np.mean([(p.p < 0.05).any() for p in null])
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    changed = paired.paired_difference(made_up(rng), made_up(rng, 0.5), "zero")
    assert changed.p[0] < 0.01 and (changed.p[1:] > 0.05).all()
    assert changed.difference.low[0] < 50 < changed.difference.high[0]


def test_what_can_not_be_paired_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="image by image"):
        paired.paired_difference(made_up(rng), made_up(rng, images=8), "zero")
    first, second = (made_up(rng).assign_attrs(noise_seed=seed) for seed in (0, 1))
    with pytest.raises(ConfigError, match="noise_seed 0 and 1"):
        paired.paired_difference(first, second, "zero")


def test_nothing_prints_more_than_a_kilobyte(model, result, images, tiny):
    import jax

    from mechdiff.data import load as load_data
    from mechdiff.diffusion.eval_set import EvalSet

    samples = model.ablate(".*head.").sample(2, steps=2)
    data = load_data(tiny.data, 8, "test", 0, None)
    eval_set = EvalSet(images, [1, 2], jax.random.key(0))
    shown = [model, model.denoiser, model.ablate(".*").intervention, result, samples, show(samples)]
    for value in [*shown, result.plot(), tiny, data, eval_set]:
        assert len(repr(value)) < 1000, type(value)
        html = getattr(value, "_repr_html_", str)()
        assert len(html) < 3000
    assert "zero" in repr(model.ablate("mid.block0.res"))


def test_figures_are_saved_whatever_the_backend(result, tmp_path):
    result.plot().save(tmp_path / "map.png")
    result.plot("mid.block0.res").save(tmp_path / "one.svg")
    assert Image.open(tmp_path / "map.png").convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # as paper is
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    with pytest.raises(ConfigError, match="unknown component"):
        result.plot("mid.block9.res")


def test_sweeps_of_a_changed_model_are_refused(model, images, tmp_path):
    with pytest.raises(ConfigError, match="untouched"):
        model.ablate("mid.block0.res").sweep(images, folder=tmp_path)


def test_rows_of_a_sheet_are_one_size(images):
    sheet = show(images[:2], images[2:4], labels=["a", "b"])
    height, width = images.shape[1:3]
    zoom = -(-96 // height)
    assert sheet.image.height >= 2 * height * zoom and sheet.image.width >= 2 * width * zoom
    with pytest.raises(ConfigError, match="all of one size"):
        show(images, images[:, :4])
    with pytest.raises(ConfigError, match="one per row"):
        show(images, labels=[])


def test_load_takes_functions_and_lists_what_there_is(denoiser, monkeypatch):
    import sys
    import types

    module = types.ModuleType("my_denoisers")
    module.make, module.wrong = (lambda: denoiser), (lambda: 3)
    monkeypatch.setitem(sys.modules, "my_denoisers", module)
    assert load("my_denoisers:make").name == "my_denoisers.make"  # as launchers call it
    with pytest.raises(MechdiffError, match="returns 3, which is not a denoiser"):
        load("my_denoisers:wrong")
    with pytest.raises(CheckpointError, match=r"no shipped network of that name: .*cpu16-synthetic-seed0"):
        load("cpu99-celeba-seed0")


def test_few_images_and_equal_ones_are_said(model, images, result, tmp_path, caplog):
    few = model.sweep(images[:1].repeat(4, 0), n=4, timesteps=1, components="mid.*res", folder=tmp_path)
    assert "n = 4 is few, intervals may be too narrow" in repr(few)
    assert "4 images, but only 1 are different" in caplog.text
    people = stats.few_images(16, 2.2), stats.few_images(16, 16.0)
    assert "16 people count as 2.2" in people[0] and people[1] == ""
    between = paired.paired_difference(few.dataset, few.dataset, "zero")
    compared = Comparison(few, few, between)
    assert "n = 4 is few, intervals may be too narrow; no p can fall" in repr(compared)
    assert "n = 4 is few" in compared._repr_html_()
    assert all("each component alone; p" in each._repr_html_() for each in (few, compared))
    with pytest.raises(ConfigError, match="n=-1 is too small"):
        few.top(-1)
