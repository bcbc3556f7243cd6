"""The report in a real browser: hover, click, keys, tables, links, downloads, dark, phone, print, access."""

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import xarray as xr
from reference.results import fabricate

from mechdiff import report
from mechdiff.analysis import effects
from mechdiff.core.config import to_dict
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.report import findings, inline, page_data, schematic, sequence, style
from mechdiff.storage import files, labelled
from mechdiff.study import results_folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder of one small model, with its report."""
    folder = tmp_path_factory.mktemp("touch")
    fabricate(folder, "held-seed0", "held-out synthetic images", 1)
    files.write_json(folder / "manifest.json", {"config": to_dict(preset("tiny"))})
    subject = folder / "subjects" / "held-seed0"
    labelled.replace(subject / "examples.zarr", fabricated_examples(labelled.read(subject / "sweep.zarr")))
    report.build(folder)
    return folder


def fabricated_examples(sweep) -> xr.Dataset:
    """Random images of two components, one of them a head, in the layout of `study.examples`."""
    rng = np.random.default_rng(3)
    names = sweep["component"].values.tolist()
    head = next(name for name in names if "head" in name)
    axes = ("y", "x", "channel")
    return xr.Dataset(
        {
            "untouched": (("sample", *axes), rng.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)),
            "ablated": (
                ("component", "sample", *axes),
                rng.integers(0, 255, (2, 4, 8, 8, 3), dtype=np.uint8),
            ),
            "strongest": (
                ("component", "rank", *axes),
                rng.integers(0, 255, (2, 3, 8, 8, 3), dtype=np.uint8),
            ),
            "strongest_image": (("component", "rank"), np.array([[4, 0, 1], [2, 3, 0]], np.int32)),
            "pattern": (
                ("head", "t", "image", "query", "key"),
                rng.integers(0, 255, (1, 2, 2, 32, 32), dtype=np.uint8),
            ),
        },
        coords={"component": [names[0], head], "head": [head], "t": [2, 45]},
        attrs={"steps": 12, "strongest_t": 20},
    )


@pytest.fixture(scope="module")
def model(results):
    return results_folder.read(results)[1][0]


@pytest.fixture(scope="module")
def opened(browser, results):
    """The report, opened once; errors of its script fail the test that causes them."""
    errors = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((results / "report.html").as_uri())
    page.errors = errors
    return page


@pytest.fixture
def page(opened):
    yield opened
    if opened.locator("#card").get_attribute("open") is not None:
        opened.keyboard.press("Escape")
    assert opened.errors == []


def wait_for_card(page, name):
    page.locator("#card").wait_for(state="visible")
    page.wait_for_function("name => document.getElementById('h-card').textContent === name", arg=name)


def test_hovered_cell_says_value_interval_p_and_n_of_the_component_beside_it(page, model):
    mesh = page.locator('#maps [data-cells="zero"]').nth(0)
    mesh.scroll_into_view_if_needed()
    box, rows = mesh.bounding_box(), mesh.get_attribute("data-rows").count(",") + 1
    height = box["height"] / rows
    middle = box["y"] + 1.5 * height  # of the second row, at the second timestep
    page.mouse.move(box["x"] + 1.5 * box["width"] / len(model.lead.t), middle)
    words = page.locator("#tip").inner_text()
    increase = model.increases["zero"]
    name = words.splitlines()[0]
    i = increase.components.index(name)
    number = re.search(r"ΔL/L (\S+) \[(\S+), (\S+)\]", words).groups()
    ends = increase.cells.estimate, increase.cells.low, increase.cells.high
    shown = [float(value.replace("−", "-").replace(",", "")) for value in number]
    np.testing.assert_allclose(shown, [end[i, 1] for end in ends], rtol=0.06, atol=0.002)
    assert f"t = {increase.t[1]}" in words and f"n = {model.images} images" in words and "p " in words
    label = page.locator(f'#maps [data-c="{name}"] text').first.bounding_box()
    # An oracle that doesn't know of indices: the cell lies in its label's row.
    assert abs((label["y"] + label["height"] / 2) - middle) < height / 2


def test_click_opens_the_card_with_every_ablation_and_a_link_to_it(page, model):
    name = model.lead.components[int(model.lead.order[0])]
    page.locator(f'#network [data-c="{name}"][data-a="mean"]').first.click()
    wait_for_card(page, name)
    assert page.evaluate("location.hash") == f"#c={name}"
    words = page.locator("#card").inner_text()
    for ablation, increase in model.increases.items():
        assert (
            f"{ablation} ablation: {findings.precise(increase.pooled.estimate[model.lead.order[0]])}" in words
        )
    marks = page.locator("#card svg").nth(1).locator("circle").count()
    assert marks == len(model.increases) * model.images  # the spread over images
    page.keyboard.press("Escape")
    page.wait_for_function("location.hash === ''")
    assert not page.locator("#card").is_visible()


def test_card_shows_images_of_components_that_have_them(page, model):
    head = str(model.examples["head"].values[0])
    for name, expected in ((head, 3), (str(model.examples["component"].values[0]), 2)):
        page.evaluate(f"location.hash = 'c={name}'")
        wait_for_card(page, name)
        images = page.locator("#card figure img")
        assert images.count() == expected
        widths = images.evaluate_all(
            "all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert (
            widths[0] == 4 * 8 + 3 and widths[1] == 3 * 8 + 2
        )  # samples and strongest images beside each other
        assert "from equal noise" in page.locator("#card figcaption").first.inner_text()
        assert "images" in images.nth(1).get_attribute("alt")
    others = [name for name in model.lead.components if name not in model.examples["component"].values]
    page.evaluate(f"location.hash = 'c={others[0]}'")
    wait_for_card(page, others[0])
    assert page.locator("#card figure img").count() == 0


def test_link_to_a_component_opens_its_card_and_an_unknown_one_nothing(page, model):
    page.evaluate(f"location.hash = 'c={model.lead.components[2]}'")
    wait_for_card(page, model.lead.components[2])
    page.locator("#card .next").click()
    wait_for_card(page, model.lead.components[3])
    page.keyboard.press("Escape")
    for nothing in ("nothing.of.the.kind", "%"):  # the second is no link at all
        page.evaluate(f"location.hash = 'c={nothing}'")
        assert not page.locator("#card").is_visible()


def test_keys_reach_a_component_and_open_its_card(page):
    mark = page.locator('#network svg [data-c][tabindex="0"]').first
    mark.focus()
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    wait_for_card(page, mark.get_attribute("data-c"))


def rows(page) -> list[list[str]]:
    """Components and their pooled estimates in the first table of all cells, those that are visible."""
    script = """rows => rows.filter(row => !row.hidden).map(row =>
        [row.cells[0].textContent, row.cells[1].firstChild.textContent])"""
    return page.locator("#maps table.grid").first.locator("tbody tr").evaluate_all(script)


def test_tables_sort_filter_and_download(page, model, tmp_path):
    page.locator("#maps details summary").first.click()
    page.locator("#maps table.grid").first.locator("thead button").nth(1).click()
    increase = model.increases["zero"]
    by_effect = [increase.components[i] for i in increase.order]
    shown = [name for name, value in rows(page)]
    values = [float(value.replace("−", "-").replace(",", "")) for _, value in rows(page)]
    assert sorted(shown) == sorted(by_effect) and values == sorted(values, reverse=True)
    assert shown[0] == by_effect[0]
    page.locator("#maps input[type=search]").first.fill("head1")
    assert rows(page) and all("head1" in name for name, _ in rows(page))
    with page.expect_download() as download:
        page.locator("#maps .tools button", has_text=f"JSON of {len(rows(page))} rows").first.click()
    saved = json.loads(download.value.path().read_text("utf-8"))
    assert [row["component"] for row in saved] == [name for name, _ in rows(page)]
    page.locator("#maps input[type=search]").first.fill("")
    with page.expect_download() as download:
        page.locator("#maps .tools button", has_text="CSV").first.click()
    table = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"))))
    assert [row["component"] for row in table] == shown
    np.testing.assert_allclose(
        [float(row["pooled ΔL/L, %"]) for row in table],
        increase.pooled.estimate[increase.order],
        rtol=1e-6,
    )
    key, active = f"ΔL/L at t = {increase.t[1]}, %", increase.order[~increase.idle[increase.order]]
    ends = ("", "estimate"), (", low", "low"), (", high", "high")
    for end, name in ends:
        of_cells = getattr(increase.cells, name)[active, 1]
        values = [float(row[key + end]) for row in table if row[key]]
        np.testing.assert_allclose(values, of_cells, rtol=1e-5)
    p = [float(row[f"{key}, p (max-T)"]) for row in table if row[key]]
    np.testing.assert_allclose(p, increase.p[active, 1], rtol=1e-5)
    lowest = [float(row["0.05 quantile of images, %"]) for row in table if row[key]]
    np.testing.assert_allclose(lowest, increase.quantiles.estimate[active, 0], rtol=1e-5)
    assert not any(sign in word for word in table[0] for sign in "−|")
    with page.expect_download() as download:
        page.locator("#maps .tools button", has_text="JSON").first.click()
    assert [row["component"] for row in json.loads(download.value.path().read_text("utf-8"))] == shown
    assert download.value.suggested_filename.startswith(f"{model.name}-table-of-")
    with page.expect_download() as download:  # of what is not about one model
        page.locator("#range .tools button", has_text="CSV").first.click()
    assert download.value.suggested_filename == "table-of-ranges.csv"


def test_figures_download_as_svg_that_stands_alone(page):
    with page.expect_download() as download:
        page.locator("#maps figcaption button").first.click()
    drawing = download.value.path().read_text("utf-8")
    assert 'xmlns="http://www.w3.org/2000/svg"' in drawing and "light-dark" not in drawing
    assert style.LIGHT.ink in drawing


def test_text_is_no_smaller_than_11_pixels(page):
    script = """texts => Math.min(...texts.filter(t => t.getBoundingClientRect().width).map(t =>
        parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"""
    upright = page.locator(".drawing svg text:not([transform*='rotate(-90'])")
    assert upright.evaluate_all(script) > 10.9
    script = "all => Math.min(...all.map(word => parseFloat(getComputedStyle(word).fontSize)))"
    assert page.locator("main :is(p, td, th, small, caption, figcaption, li)").evaluate_all(script) >= 11


def test_dark_reader_and_paper_have_their_colors(page):
    ink = "getComputedStyle(document.querySelector('.drawing text')).fill"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ink), page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark", media="print")
    paper = page.evaluate(ink), page.evaluate("getComputedStyle(document.body).backgroundColor")
    heads = page.locator("button.sort").evaluate_all("all => all.map(head => getComputedStyle(head).display)")
    assert set(heads) == {"contents"}  # else Chromium doesn't repeat them on later printed pages
    assert (
        page.evaluate("""() => {
        const figure = document.querySelector("h3 + figure");
        figure.classList.add("wide");
        const head = getComputedStyle(figure.previousElementSibling).page;
        figure.classList.remove("wide");
        return head; }""")
        == "wide"
    )  # else it is left alone on the page before
    page.emulate_media(color_scheme="light", media="screen")
    light = page.evaluate(ink), page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == light and dark[0] != light[0] and dark[1] != light[1]


def test_phone_scrolls_downward_only(page):
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert wide <= 390


def test_nothing_serious_hinders_a_screen_reader(page, model):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page.evaluate(f"location.hash = 'c={model.lead.components[0]}'")
    page.locator("#card").wait_for(state="visible")
    for _ in range(2):  # with the card open, and closed
        issues = axe.Axe().run(page).response["violations"]
        serious = [
            (issue["id"], issue["nodes"][0]["html"][:120])
            for issue in issues
            if issue["impact"] in ("serious", "critical")
        ]
        assert serious == []
        page.keyboard.press("Escape")


def test_page_is_whole_without_scripts(browser, results):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto((results / "report.html").as_uri())
    assert plain.locator(".drawing svg").first.is_visible() and not plain.locator("#card").is_visible()
    assert plain.locator(".tools").count() == plain.locator("#card .tools").count()
    context.close()


def test_contributions_of_images_average_to_the_pooled_effect(model):
    for ablation, increase in model.increases.items():
        contributions = page_data.image_contributions(model, ablation)
        np.testing.assert_allclose(contributions.mean(axis=1), increase.pooled.estimate, rtol=1e-9)


@pytest.mark.parametrize("images", [page_data.MAX_IMAGES // 3, 840])  # all of them, and too many for a card
def test_a_card_of_different_images_at_every_timestep_has_the_quantiles_of_all(model, images):
    rng = np.random.default_rng(4)
    some = model.sweep.isel(component=[0, 1]).drop_vars(["loss", "change", "clean_loss", "image"])
    shape = 2, 2, some.sizes["t"], images
    rare = 1 + 20 * (rng.uniform(size=shape) < 0.08)  # a mean over timesteps would hide these
    losses = ("ablation", "component", "t", "image"), rare * rng.uniform(1, 2, shape)
    clean = ("t", "image"), rng.uniform(0.5, 1, shape[2:])
    sweep = some.assign(loss=losses, change=losses, clean_loss=clean).assign_attrs(nested=True)
    nested = dataclasses.replace(model, results=dataclasses.replace(model.results, sweep=sweep))
    contributions = page_data.image_contributions(nested, "zero")
    marks = page_data.thinned(contributions)
    assert contributions.shape == (2, shape[2] * images)
    assert marks.shape == (2, min(page_data.MAX_IMAGES, contributions.shape[1]))
    of_table = effects.measure(sweep, "zero", repeats=20).quantiles.estimate
    np.testing.assert_allclose(np.quantile(marks, effects.QUANTILES, axis=1).T, of_table, rtol=0.02)


def test_data_cannot_end_its_script_element(model):
    assert "<" not in page_data.page_data([model]) and json.loads(page_data.page_data([model]))["models"]


def test_cells_of_one_color_are_one_path_in_which_neighbors_are_joined():
    cells = [
        f'<path d="M{x} 0H{x + 1}V2H{x}z" style="fill: {color}"/>\n'
        for x, color in enumerate(["red", "red", "blue", "red"])
    ]
    drawn = inline._with_few_paths(f'<g data-cells="zero" data-rows="0">\n{"".join(cells)}</g>')
    assert re.findall(r'd="([^"]*)" style="fill: (\w+)"', drawn) == [
        ("M0 0H2V2H0zM3 0H4V2H3z", "red"),
        ("M2 0H3V2H2z", "blue"),
    ]


def test_drawings_that_differ_in_more_than_colors_are_refused():
    with pytest.raises(ConfigError, match="differs between themes"):
        inline.themed('<svg><path d="M 0 0"/></svg>', '<svg><path d="M 1 0"/></svg>', "x", "words")
    merged = inline.themed(
        '<svg ><path fill="#000000"/></svg>', '<svg ><path fill="#ffffff"/></svg>', "x", "a<b"
    )
    assert "light-dark(#000000,#ffffff)" in merged and 'aria-label="a&lt;b"' in merged


def test_components_without_stages_are_drawn_in_order_of_execution(model):
    names = [f"layers.{i}" for i in range(len(model.lead.components))]
    increase = effects.measure(model.sweep.assign_coords(component=names), "mean")
    drawn = style.svg(schematic.drawing(style.LIGHT, None, increase, 10.0)).decode()
    marked = re.findall(r"mark\|(layers\.\d+)\|mean", drawn)
    assert marked == names


def test_a_block_of_components_stands_on_lines_of_its_own():
    names = ["time", "class", *(f"block0.head{i}" for i in range(5)), "mid.mlp", *["out", "last"]]
    places = sequence.in_lines(names, 4)
    assert places[:2] == [(0, 0), (0, 1)]
    assert places[2:7] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 0),
    ]  # the block, which is too long for one line
    assert places[7:] == [(3, 0), (3, 1), (3, 2)] and sequence.in_lines([], 4) == []
