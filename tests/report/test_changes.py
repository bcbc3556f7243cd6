"""The page "what changed": its numbers are those of the sweeps, and it works in a browser."""

import csv
import io

import numpy as np
import pytest
import xarray as xr
from reference.results import IMAGES, T, fabricate

from mechdiff.analysis import changes, effects, paired
from mechdiff.core.config import to_dict
from mechdiff.core.errors import CheckpointError
from mechdiff.core.presets import preset
from mechdiff.report import changes as page_of
from mechdiff.storage import labelled

FACTS = {"unet": to_dict(preset("tiny").unet), "inputs": "images <of> a folder"}


def swept(folder, seed):
    fabricate(folder, f"net-seed{seed}", "images", seed)
    return labelled.read(folder / "subjects" / f"net-seed{seed}" / "sweep.zarr")


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """Three sweeps; the second repeats the first but for one component, which costs more on every image."""
    folder = tmp_path_factory.mktemp("sweeps")
    first, other = swept(folder, 0), swept(folder, 1)
    name = first["component"].values[3]
    raised = first["loss"] + 0.5 * (first["component"] == name)
    return first, first.assign(loss=raised.transpose(*first["loss"].dims)), other


@pytest.fixture(scope="module")
def folder(sweeps, tmp_path_factory):
    """Where the page of the first and the third was built."""
    where = tmp_path_factory.mktemp("changes")
    dataset = changes.changes([sweeps[0], sweeps[2]], ["one", "two"], "zero", FACTS)
    labelled.replace(where / "compare.zarr", dataset)
    assert page_of.build(where) == where / "compare.html"
    return where


@pytest.fixture(scope="module")
def dataset(folder):
    return xr.open_zarr(folder / "compare.zarr").load()


def test_numbers_are_those_of_the_sweeps_and_their_paired_difference(sweeps, dataset):
    before, after = (effects.measure(sweep, "zero") for sweep in (sweeps[0], sweeps[2]))
    np.testing.assert_array_equal(dataset["delta_loss_low"], np.stack([before.cells.low, after.cells.low]))
    between = paired.paired_difference(sweeps[0], sweeps[2], "zero")
    np.testing.assert_array_equal(dataset["pooled_difference_high"], between.difference.high)
    np.testing.assert_array_equal(dataset["pooled_difference_p"], between.p)
    difference = after.cells.estimate - before.cells.estimate
    np.testing.assert_allclose(dataset["difference"], difference, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dataset["difference"].mean("t"), between.difference.estimate, rtol=1e-9)
    np.testing.assert_allclose(dataset["contribution"].mean("image"), dataset["pooled_delta_loss"], rtol=1e-9)
    assert dataset.sizes["image"] == int(dataset["delta_loss_n"]) == IMAGES
    assert dataset["difference"].attrs["units"] == "percentage points"
    assert "people" not in dataset.attrs  # they are not known here


def test_a_change_of_one_component_is_a_change_of_that_one_alone(sweeps):
    dataset = changes.changes(sweeps[:2], ["one", "two"], "zero")
    changed = page_of.read(dataset)
    assert changed.order[0] == 3 and changed.difference.pooled.low[3] > 0
    others = np.delete(changed.difference.pooled.estimate, 3)
    np.testing.assert_array_equal(others, 0)
    np.testing.assert_array_equal(np.delete(changed.difference.p, 3, axis=0), 1)
    sentences = " ".join(page_of.findings(changed))
    assert "Largest rise" in sentences and "Largest fall" not in sentences
    assert "no p can fall below" in sentences  # five images allow no p below 0.05


def test_images_of_different_timesteps_stay_apart(sweeps):
    pair = [sweep.assign_attrs(nested=True) for sweep in (sweeps[0], sweeps[2])]
    dataset = changes.changes(pair, ["one", "two"], "zero")
    contribution = dataset["contribution"]
    assert contribution.dims == ("model", "component", "t", "image")
    np.testing.assert_allclose(contribution.mean(("t", "image")), dataset["pooled_delta_loss"], rtol=1e-9)
    models = page_of.data_of(page_of.read(dataset))
    for model, values in zip(models, contribution.values, strict=False):
        quantiles = np.quantile(values.reshape(len(values), -1), effects.QUANTILES, axis=1)
        shown = np.quantile(np.array(model["ablations"]["zero"]["images"]), effects.QUANTILES, axis=1)
        np.testing.assert_allclose(shown, quantiles, rtol=1e-3, atol=1e-9)


def test_steps_of_a_training_get_a_figure_of_their_course(sweeps, tmp_path):
    facts = {"steps": [1, 10, 100]}
    labelled.replace(
        tmp_path / "compare.zarr", changes.changes(sweeps, ["step 1", "step 10", "step 100"], "mean", facts)
    )
    text = page_of.build(tmp_path).read_text("utf-8")
    assert 'id="course"' in text and (tmp_path / "figures" / "compare-course.png").is_file()
    changed = page_of.read(labelled.read(tmp_path / "compare.zarr"))
    assert page_of.training(changed).steps.tolist() == [1, 10, 100] and changed.unet is None


def test_without_a_saved_comparison_there_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"compare\.zarr"):
        page_of.build(tmp_path)


@pytest.fixture(scope="module")
def page(browser, folder):
    """The page in a browser; errors of its script fail the test that causes them."""
    errors = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((folder / "compare.html").as_uri())
    yield page
    assert errors == []


def test_a_component_tells_its_change_and_its_card_has_both_sides_and_the_difference(page, dataset):
    at = int(np.abs(dataset["pooled_difference"].values).argmax())
    name = str(dataset["component"].values[at])
    mark = page.locator(f'#network [data-c="{name}"]').first
    mark.hover()
    words = page.locator("#tip").inner_text().splitlines()
    assert words[0] == name and "change of pooled ΔL/L" in words[1] and "(Holm)" in words[1]
    assert [line.split(":")[0] for line in words[2:]] == ["before", "after"]
    mark.click()
    heads = page.locator("#card h3").all_inner_texts()
    assert heads == ["before: one", "after: two", "change, last − first"]
    assert page.locator("#card svg polyline").count() == 3  # curves over the timesteps
    assert page.locator("#card svg").nth(5).locator("circle").count() == IMAGES
    page.keyboard.press("Escape")


def test_cells_of_the_map_are_changes(page, dataset):
    mesh = page.locator("#maps [data-cells]").first
    rows = mesh.get_attribute("data-rows").count(",") + 1
    box = mesh.bounding_box()
    mesh.hover(position={"x": 1.5 * box["width"] / len(T), "y": 0.5 * box["height"] / rows}, force=True)
    words = page.locator("#tip").inner_text().splitlines()
    number = float(words[2].split("ΔL/L ")[1].split(" [")[0].replace("−", "-").replace(",", ""))
    expected = float(dataset["difference"].sel(component=words[0])[1])
    assert f"t = {T[1]}" in words[1] and number == pytest.approx(expected, rel=0.01, abs=0.005)


def test_the_table_is_filtered_and_saved(page, dataset):
    page.locator("#components input[type=search]").fill("residual")
    shown = page.locator("#components tbody tr:not([hidden]) th").all_inner_texts()
    types = dataset["component_type"].sel(component=shown)
    assert shown and set(types.values.tolist()) == {"res"}
    with page.expect_download() as download:
        page.locator("#components .tools button", has_text=f"CSV of {len(shown)} rows").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"))))
    saved = dataset.sel(component=[row["component"] for row in rows])
    assert [row["component"] for row in rows] == shown
    key = "change of pooled ΔL/L, percentage points"
    for end, name in (("", "pooled_difference"), (", low", "pooled_difference_low")):
        np.testing.assert_allclose([float(row[key + end]) for row in rows], saved[name], rtol=1e-6)
    np.testing.assert_allclose(
        [float(row["p (Holm)"]) for row in rows], saved["pooled_difference_p"], rtol=1e-6
    )
    written = [float(row[key]) for row in rows]
    assert [abs(value) for value in written] == sorted(map(abs, written), reverse=True)
    page.locator("#maps summary").click()
    with page.expect_download() as download:
        page.locator("#maps .tools button", has_text="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"))))
    saved = dataset.sel(component=[row["component"] for row in rows]).isel(t=1)
    key = f"change of ΔL/L at t = {T[1]}, percentage points"
    for end, name in (("", ""), (", low", "_low"), (", high", "_high"), (", p (max-T)", "_p")):
        values = [float(row[key + end]) for row in rows]
        np.testing.assert_allclose(values, saved["difference" + name], rtol=1e-5, atol=1e-9)


def test_a_phone_scrolls_downward_only_and_a_screen_reader_is_not_hindered(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    issues = axe.Axe().run(page).response["violations"]
    serious = [issue["id"] for issue in issues if issue["impact"] in ("serious", "critical")]
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390 and serious == []


def test_paper_cuts_no_figure(page):
    page.set_viewport_size({"width": 700, "height": 1000})
    page.emulate_media(media="print")
    ends = page.locator("figure .drawing").evaluate_all(
        "all => all.map(d => d.getBoundingClientRect().right)"
    )
    page.emulate_media(media="screen")
    assert len(ends) >= 3 and max(ends) <= 700
