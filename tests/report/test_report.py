"""The report: what it says is what was saved, it stands alone, and damaged results end in one line."""

import base64
import copy
import dataclasses
import html.parser
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr
from absl.testing import flagsaver
from PIL import Image
from reference.results import IMAGES, T, fabricate, unrendered

from experiments import _launch
from experiments import report as launcher
from mechdiff import report, stats
from mechdiff.analysis import effects
from mechdiff.core.config import UNetConfig, to_dict
from mechdiff.core.errors import DataError, MechdiffError
from mechdiff.core.presets import preset
from mechdiff.models.stages import stages
from mechdiff.report import backend, document, findings, maps, numbers, schematic, style, trust, views
from mechdiff.storage import files, labelled, run_log
from mechdiff.study import results_folder

NAMES = {
    "own-seed0": "own-seed0's own samples (not real images)",
    "held-seed0": "held-out synthetic images",
}
VOID = {"meta", "img", "source", "link", "br", "hr"}


def stated(path, **facts):
    files.write_json(path, {**files.read_json(path), **facts})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A results folder of two subjects, with its report built once."""
    where = tmp_path_factory.mktemp("results")
    for seed, (name, inputs) in enumerate(NAMES.items()):
        fabricate(where, name, inputs, seed)
    other = where / "subjects" / "held-seed0"  # examined by an earlier command, with other settings
    stated(other / "subject.json", seed=7)
    swept = labelled.read(other / "sweep.zarr")
    labelled.replace(other / "sweep.zarr", swept.assign_attrs(reference_images=2))
    config = {**to_dict(preset("tiny")), "name": "<b>sly</b>"}
    manifest = {"config": config, "command": ["reproduce.py", "--preset=tiny"], "wall_seconds": 12.0}
    manifest["models"] = ["own-seed0"]
    files.write_json(where / "manifest.json", {**manifest, "packages": {"jax": "0.10.2", "absent": None}})
    assert report.build(where) == where / "report.html"
    return where


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def models(folder):
    return results_folder.read(folder)[1]


class Outline(html.parser.HTMLParser):
    """Tags with their attributes; wrong nesting is an error."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_is_nested_correctly_and_has_the_landmarks_of_a_document(page):
    outline = Outline(page)
    assert outline.of("html")[0]["lang"] == "en"
    assert all(len(outline.of(tag)) == 1 for tag in ("main", "nav", "header", "footer", "h1", "title"))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in outline.of("a") if link["href"].startswith("#")} <= set(ids)


def test_page_requests_nothing_and_links_only_to_the_paper(page):
    outline = Outline(page)
    sources = [image["src"] for image in outline.of("img")]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert re.findall(r"https?://[^\s\"'<]+", page) == ["https://arxiv.org/abs/2506.17237"]
    assert all("src" not in script for script in outline.of("script")) and not outline.of("link")
    assert "@import" not in page and set(re.findall(r"url\((.)", page)) == {"#"}


def test_every_picture_has_words_and_every_table_a_caption_and_headers(page):
    outline = Outline(page)
    assert all(image["alt"].strip() for image in outline.of("img"))
    drawings = [drawing for drawing in outline.of("svg") if "data-figure" in drawing]
    assert drawings and all(drawing["aria-label"].strip() for drawing in drawings)
    assert len(outline.of("table")) == len(outline.of("caption"))
    assert all(cell.get("scope") in ("row", "col") for cell in outline.of("th"))


def test_figures_follow_the_readers_theme(page):
    inline = re.findall(r"<svg role.*?</svg>", page, re.DOTALL)
    assert inline and all(f"light-dark({style.LIGHT.ink},{style.DARK.ink})" in drawing for drawing in inline)


def test_own_samples_are_labelled_wherever_their_numbers_are_shown(page, models):
    assert page.count('class="notice"') == 1
    assert page.count("badge own") >= 7  # title, findings, models, network, map, attention, ranking
    outline = page.replace("&#39;", "'").replace("&#34;", '"')
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", outline, re.DOTALL)
    about = [text for text in captions if "own-seed0" in text and "n = " in text]
    assert about and all("own samples" in text for text in about)


def test_own_samples_are_told_from_held_out_images(models):
    assert [model.own_samples for model in models] == [False, True]  # held-seed0, own-seed0


def test_text_of_results_is_escaped(page):
    assert "<b>sly</b>" not in page and "&lt;b&gt;sly&lt;/b&gt;" in page


def test_all_figures_are_there_as_png_and_svg(folder, page):
    svg = {path.stem for path in (folder / "figures").glob("*.svg")}
    png = {path.stem for path in (folder / "figures").glob("*.png")}
    assert png == {name for name in svg if not name.endswith("-dark")}
    assert svg == png | {f"{name}-dark" for name in png}
    assert len(png) == page.count("data-figure=")
    for path in (folder / "figures").glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in (folder / "figures").glob("*.png"):
        with Image.open(path) as picture:
            picture.verify()


def test_each_number_of_the_table_is_that_of_the_sweep(page, models):
    model = models[0]
    increase = effects.measure(model.sweep, "zero")
    for i in (0, len(increase.components) - 1):
        row = re.search(
            rf'<tr><th scope="row">{re.escape(increase.components[i])}</th>(.*?)</tr>', page
        ).group(1)
        shown = re.findall(r"<td[^>]*>([^<]*)<small>([^<]*) … ([^<]*)</small>", row)
        cells = [numbers.value(increase.pooled, i), numbers.value(increase.pooled_losses, i)]
        cells.append(numbers.value(increase.rms, i))
        cells += [numbers.value(increase.cells, i, j) for j in range(len(T))]
        hurt = 100 * increase.hurt.estimate[i]
        assert re.search(rf'<td data-v="{hurt:.7g} [^"]*">{hurt:.0f}<small>', row)
        assert shown == [tuple(map(findings.precise, (v.estimate, v.low, v.high))) for v in cells]


def test_components_that_mean_ablation_cannot_change_are_listed(page, models):
    names = [
        name
        for name, component_type in zip(models[0].lead.components, models[0].lead.component_type, strict=True)
        if component_type == "time"
    ]
    assert models[0].lead.ablation == "mean" and set(
        np.array(models[0].lead.components)[models[0].lead.idle]
    ) == set(names)
    lines = re.findall(r"<li>(.*?)</li>", page[page.index("Components whose ablation changed nothing") :])
    listed = [re.findall(r"<code>(.*?)</code>", line) for line in lines]
    assert listed == [[], names, [], names]  # zero and mean ablation of the two subjects
    assert lines[0].endswith("none.")


def test_extent_leaves_idle_components_out(models):
    model, increase = models[0], models[0].increases["mean"]
    span = numbers.extent(model, increase)
    loss = model.sweep["loss"].sel(ablation="mean").values.astype(np.float64)
    clean = model.sweep["clean_loss"].values.astype(np.float64)
    pooled = (100 * (loss.mean(-1) / clean.mean(-1) - 1)).mean(-1)
    active = [i for i, component_type in enumerate(increase.component_type) if component_type != "time"]
    assert span.low.estimate == pytest.approx(pooled[active].min())
    assert span.high.estimate == pytest.approx(pooled[active].max())
    assert span.most == increase.components[active[int(pooled[active].argmax())]]


def test_part_means_are_means_over_the_components_of_a_kind(models):
    model, increase = models[0], models[0].increases["zero"]
    means = numbers.component_type_means(model, "zero")
    assert set(means) == {"res", "head", "skip", "time"}
    for component_type, (count, mean) in means.items():
        own = increase.pooled.estimate[[other == component_type for other in increase.component_type]]
        assert count == len(own) and mean.estimate == pytest.approx(own.mean())


def test_attention_ends_are_the_cleanest_and_the_noisiest_level(models):
    data = models[0].attention
    clean, noisy = numbers.attention_ends(data)
    by_level = data["normalized_entropy"].mean(("head", "image")).values
    assert clean.estimate == pytest.approx(by_level[0], rel=1e-5)  # t increases, log-SNR decreases
    assert noisy.estimate == pytest.approx(by_level[-1], rel=1e-5)
    few = stats.student_mean(data["normalized_entropy"].mean("head").transpose("t", "image").values)
    assert clean.low <= few.low[0] + 1e-6 and few.high[0] - 1e-6 <= clean.high <= 1


def test_findings_print_intervals_images_and_seeds(page, models):
    assert f"n = {IMAGES} images, n = 1 trained seed" in page
    sentence = findings.about(models[0])[0]
    increase = models[0].increases["zero"]
    place = numbers.largest(increase)
    assert f"<code>{increase.components[place]}</code>" in sentence
    assert findings.between(numbers.value(increase.pooled, place), " %") in sentence
    assert "intervals are of it alone" in sentence


def test_the_largest_effect_may_lower_the_loss(models):
    """+2 % is not the largest beside -7 %; a component that changed no prediction is none at all."""
    model = copy.copy(models[0])
    measured = model.increases["zero"]
    pooled = np.full(len(measured.components), 0.5)
    pooled[:3] = 2, -7, -9
    change = np.where(np.arange(len(pooled)) == 2, 0.0, 1.0)
    interval = dataclasses.replace(measured.pooled, estimate=pooled, low=pooled - 1, high=pooled + 1)
    model.__dict__["increases"] = {"zero": dataclasses.replace(measured, pooled=interval, change=change)}
    name = measured.components[1]
    assert f"<code>{name}</code>, pooled ΔL/L = " in findings.about(model)[0]
    assert "−7.00 % [−8.00, −6.00]" in findings.about(model)[0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.004, "0"),
        (-0.25, "−0.25"),
        (3.14159, "3.14"),
        (412.3, "412"),
        (1250, "1.2k"),
        (1e4, "10k"),
    ],
)
def test_labels_have_three_digits_at_most(value, words):
    assert style.number(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.1234, "0.123"), (-0.0001, "0.000"), (1.234, "1.23"), (99.96, "100"), (-1234.5, "−1,234")],
)
def test_numbers_of_sentences_keep_their_sign_and_size(value, words):
    assert findings.precise(value) == words


@pytest.mark.parametrize(
    "config", [preset("tiny").unet, UNetConfig(), preset("paper").unet], ids=str.__class__
)
def test_bridges_of_the_schematic_are_the_skips_of_the_network(config):
    where = schematic.plan(config)
    pops = [i for i, stage in enumerate(stages(config)) if stage.pop]
    pushes = [i for i, stage in enumerate(stages(config)) if stage.push]
    assert sorted(b for _, b, _ in where.bridges) == pops and sorted(a for a, *_ in where.bridges) == pushes
    for a, b, deck in where.bridges:
        assert a < b and where.stages[a].resolution == where.stages[b].resolution
        inside = [other for c, d, other in where.bridges if a < c and d < b and where.row[c] == where.row[a]]
        assert all(deck > other for other in inside)  # nested, never crossing


def test_rows_of_the_map_hold_each_component_once_by_kind_and_depth(models):
    increase = models[0].lead
    order = maps.rows(increase)
    groups = [[]]
    for i in order:
        groups.append([]) if i is None else groups[-1].append(i)
    assert sorted(i for group in groups for i in group) == list(range(len(increase.components)))
    assert [increase.component_type[group[0]] for group in groups] == ["res", "head", "skip", "time"]
    for group in groups:
        assert len({increase.component_type[i] for i in group}) == 1
        assert (np.diff(increase.depth[group]) >= 0).all()


def test_the_same_figure_has_the_same_bytes():
    def draw():
        figure = style.figure(2, 1)
        figure.add_subplot().plot([0, 1], [1, 0], label="x")
        return style.svg(figure)

    with matplotlib.rc_context(style.settings(style.LIGHT)):
        first = draw()
        assert first == draw()
    assert b"<!DOCTYPE" not in first
    assert b"DejaVu" not in first and b"<text style=" in first  # the reader's font, not one that few have


def test_words_on_colors_have_contrast():
    assert style.readable_on("#ffffff") == "#111111" and style.readable_on("#8e1f2f") == "#ffffff"


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES = {
    "no manifest": (lambda w: (w / "manifest.json").unlink(), "manifest.json"),
    "no subjects": (lambda w: shutil.rmtree(w / "subjects"), "mechdiff reproduce"),
    "torn subject": (lambda w: cut(w / "subjects/own-seed0/subject.json"), "not valid JSON"),
    "no sweep": (lambda w: shutil.rmtree(w / "subjects/own-seed0/sweep.zarr"), "sweep.zarr"),
    "no attention": (lambda w: shutil.rmtree(w / "subjects/own-seed0/attention.zarr"), "attention.zarr"),
    "no entropy": (lambda w: shutil.rmtree(w / "subjects/own-seed0/attention.zarr/entropy"), "lacks entropy"),
    "no samples": (lambda w: (w / "subjects/own-seed0/samples.png").unlink(), "samples.png"),
    "no inputs": (
        lambda w: files.write_json(w / "subjects/own-seed0/subject.json", {"name": "own-seed0"}),
        "lacks inputs, seed, config",
    ),
    "no record": (
        lambda w: stated(w / "subjects/own-seed0/subject.json", record=None),
        "record can't be None",
    ),
    "no config": (
        lambda w: stated(w / "subjects/own-seed0/subject.json", config={"data": 3}),
        "subject.json: ",
    ),
    "null manifest": (lambda w: (w / "manifest.json").write_text("null"), "manifest.json is no object"),
    "no list of results": (lambda w: (w / "subjects/own-seed0/study.json").write_text("[]"), "lacks results"),
    "numbers of other images": (
        lambda w: stated(w / "subjects/own-seed0/subject.json", inputs="held-out images"),
        "own-seed0 is unfinished: its numbers are of inputs",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_results_end_in_one_line_that_names_the_place(folder, tmp_path, name):
    increase, words = DAMAGES[name]
    where = tmp_path / "results"
    shutil.copytree(folder, where, ignore=shutil.ignore_patterns("figures", "report.html"))
    increase(where)
    with pytest.raises(MechdiffError) as caught:
        report.build(where)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (where / "report.html").exists()


def test_launcher_says_where_there_is_no_folder(tmp_path, capsys):
    with flagsaver.flagsaver():
        code = _launch.launch(launcher.main, ["report", f"--workdir={tmp_path / 'absent'}"])
    assert code == 2
    assert "no results folder" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_drawing_shows_how_far_it_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(views.model_figures, "limits", lambda models: None)
    monkeypatch.setattr(views, "_view", lambda *_: object.__new__(views.ModelView))
    monkeypatch.setattr(run_log, "PLAIN_SECONDS", 0)
    models = [object.__new__(views.ExaminedModel) for _ in range(2)]
    assert len(views.views(models, {}, tmp_path)) == 2
    assert "drawing figures: 1/2" in capsys.readouterr().err


def test_data_addresses_hold_their_bytes():
    address = style.data_uri(b"\x00\xff", "image/png")
    assert base64.b64decode(address.removeprefix("data:image/png;base64,")) == b"\x00\xff"


def study(folder, name: str, seed: int) -> None:
    """What `study` adds to a subject: random numbers in its layout."""
    rng, where = np.random.default_rng(seed), folder / "subjects" / name
    swept, attention = (labelled.read(where / f"{name}.zarr") for name in ("sweep", "attention"))
    heads = list(attention["head"].values)
    roles = ["sobel", *["unassigned"] * (len(heads) - 1)]
    axes = {"component": heads, "target": ["sobel", "layout", "color"]}
    models = xr.Dataset(
        {
            "selectivity": (tuple(axes), rng.uniform(-1, 1, (len(heads), 3))),
            "role": ("component", roles),
        },
        coords=axes,
    )
    labelled.replace(where / "roles.zarr", models)
    labelled.replace(where / "control.zarr", swept)
    labelled.replace(where / "control_attention.zarr", attention)
    cells = rng.uniform(1, 9, (3, 2, 2))
    names = {"measure": ["participation", "rank", "variance"], "site": ["a", "b"], "t": [1, 2]}
    labelled.replace(where / "activity.zarr", xr.Dataset({"value": (tuple(names), cells)}, coords=names))
    names = ["roles", "control", "control_attention", "activity"]
    files.write_json(where / "study.json", {"results": names})


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A results folder of seven networks, two seeds of either data set and three simpler faces."""
    where = tmp_path_factory.mktemp("many")
    for seed in range(2):
        for data, level in (("celeba", 4), ("synthetic", 4), ("synthetic", 0)):
            name = f"held-{data}{level}-seed{seed}"
            changes = f"data.name={data}", f"data.complexity={level}", f"seed={seed}"
            fabricate(where, name, f"held-out {data} images", 10 * seed + level, *changes)
            if level == 4:
                study(where, name, seed)
    files.write_json(
        where / "manifest.json", {"config": to_dict(preset("tiny")), "command": ["reproduce.py"]}
    )
    row = {"plant": "redundant", "method": "exact zero", "n": 5, "auroc": [0.5, None, None]}
    manifest = {"command": ["planted.py", "--instances=5"]}
    files.write_json(where / "planted.json", {"summary": [row], "manifest": manifest})
    check = {"name": "max-T", "promise": "uniform", "nominal": None, "found": 0.05, "low": 0.03, "high": 0.07}
    checks = [{**check, "p": 0.4, "n": 900, "holds": True}]
    files.write_json(where / "calibration.json", {"checks": checks, "manifest": manifest})
    with pytest.MonkeyPatch.context() as patch:
        unrendered(patch)
        return report.build(where).read_text("utf-8")


def test_many_networks_are_shown_together_and_one_of_each_data_set_in_detail(many):
    outline = Outline(many)
    assert (
        "All networks together" in many
        and "<b>2 networks</b> trained on CelebA faces, training seeds 0, 1" in many
    )
    alts = [drawing.get("aria-label", "") for drawing in outline.of("svg")]
    maps_drawn = sum("Map of relative loss increase" in alt for alt in alts)
    assert maps_drawn == 2  # the first seed of each data set that claims compare
    for name in ("seed0", "seed1"):
        assert f"held-celeba4-{name}" in many
    assert sum("Ratios of complexity" in alt or "Divergence of attention" in alt for alt in alts) == 2
    assert sum("by complexity of the synthetic faces" in alt for alt in alts) == 1


def test_settings_are_those_of_the_results_not_of_the_last_command(many, page):
    for words in (
        "average over other images",
        "<td>0, 7</td>",
        ">by earlier commands<",
        "12 s of the last start",
    ):
        assert words in page and words not in many
    assert "average over 16 other images" in many and "noise seed</th><td>0</td>" in many


def test_the_paper_s_numbers_are_shown_only_beside_networks_of_both_data_sets(many, page):
    for words in ("The abstract of the paper", "25.6\N{NO-BREAK SPACE}% to 128.3\N{NO-BREAK SPACE}%"):
        assert words in many and words not in page


def test_roles_and_proofs_of_the_instrument_are_shown_where_they_are(many, page):
    assert "sobel: <code>" in many and "AUROC" in many and "max-T" in many and "0.50" in many
    assert (
        "AUROC" not in page
        and "can the results be trusted" in many
        and "can the results be trusted" not in page
    )
    assert len(Outline(many).of("table")) == len(Outline(many).of("caption"))


@pytest.mark.parametrize("name, content", [("planted", {"summary": [{}]}), ("calibration", [])])
def test_proofs_that_are_something_else_are_named(tmp_path, name, content):
    files.write_json(tmp_path / f"{name}.json", content)
    with pytest.raises(DataError, match=rf"{name}\.json.*restore or delete"):
        getattr(trust, name)(tmp_path)


def test_networks_of_unlike_components_or_unknown_pictures_have_a_page_too(tmp_path, monkeypatch):
    unrendered(monkeypatch)
    fabricate(tmp_path, "held-a", "held-out images", 1, "data.name=unknown", "data.path=x")
    files.write_json(tmp_path / "manifest.json", {"config": {}})
    first = report.build(tmp_path).read_text("utf-8")
    assert "held-a" in (tmp_path / "figures" / "seeds-increase.svg").read_text("utf-8")
    assert "no figure can show them side by side" not in first
    fabricate(tmp_path, "held-b", "held-out images", 2)
    path = tmp_path / "subjects" / "held-b" / "sweep.zarr"
    swept = labelled.read(path)
    labelled.replace(path, swept.assign_coords(component=[f"x.{name}" for name in swept["component"].values]))
    models = results_folder.read(tmp_path)[1]
    assert "seeds-increase" not in document._together(models, tmp_path / "figures")["together"]


@pytest.mark.parametrize(
    ("named", "taken"),
    [
        ("nonsense", False),
        ("Qt4Agg", False),
        ("module://no_such_package.backend_inline", None),  # a version of matplotlib may look for it or not
        ("svg", True),
        ("", False),
    ],
)
def test_any_backend_of_the_environment_lets_matplotlib_be_imported(named, taken):
    code = Path(backend.__file__).read_text("utf-8") + (
        "\nmatplotlib = sys.modules['matplotlib']"
        "\nprint(os.environ['MPLBACKEND'], dict.__getitem__(matplotlib.rcParams, 'backend'), sep='|')"
    )
    environment = {**os.environ, "MPLBACKEND": named}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    kept, used = done.stdout.strip().split("|")
    assert kept == named and taken in (used == named, None)


@pytest.mark.parametrize(("timesteps", "inches"), [(2, 7.7), (8, 8.9), (24, 12.1), (50, 22.5)])
def test_a_map_of_many_timesteps_is_no_wider_than_its_cells_need(models, timesteps, inches):
    """Two panels of 24 timesteps fit a page of 12 inches; a cell is never narrower than 0.2."""
    grid = models[0].lead
    places = np.arange(timesteps) % len(grid.t)
    ends = {end: getattr(grid.cells, end)[:, places] for end in ("estimate", "low", "high")}
    taken = {"cells": dataclasses.replace(grid.cells, **ends), "p": grid.p[:, places]}
    many = dataclasses.replace(grid, t=grid.t[places], log_snr=grid.log_snr[places], **taken)
    assert maps.draw(style.LIGHT, [many, many], 10.0).get_figwidth() == pytest.approx(inches)
