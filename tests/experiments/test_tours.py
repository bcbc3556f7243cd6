"""The tours run, cell by cell, and what they show is light; only sizes are other ones here."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from reference.networks import SMALL, random_params

from mechdiff.core.config import DiffusionConfig, to_dict
from mechdiff.core.presets import preset
from mechdiff.storage import exported

TOURS = Path(__file__).parents[2] / "experiments" / "tours"
UNET = dataclasses.replace(SMALL, image_size=16)  # the side of the faces that the tours draw
FEWER = {  # as many pairs as images of both halves: one program draws the faces of either
    "ten_minutes": {"samples": 2, "steps": 8, "images": 4, "timesteps": 2},
    "your_model_and_images": {"images": 2, "timesteps": 2, "components": r"mid\.block0.*", "side": 32},
    "find_prove_steer": {"images": 4, "timesteps": 2, "pairs": 8, "samples": 2, "steps": 2, "shuffles": 2},
}


def cells(name):
    listed = json.loads((TOURS / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in listed if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The folder of a network of the tours' sites; README's example opens a shipped one."""
    config = dataclasses.replace(preset("tiny"), unet=UNET, diffusion=DiffusionConfig())
    folder = tmp_path_factory.mktemp("network") / "small"
    return exported.export_model(folder, random_params(UNET), to_dict(config), {})


def run(name, network):
    """Values that the cells show, and the names they leave."""
    shown, names = [], {}
    for cell in cells(name):
        source = "".join(cell["source"])
        body = ast.parse(source)
        last = body.body[-1]
        if isinstance(last, ast.Expr):
            body.body.pop()
        exec(compile(body, name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert {"network", *FEWER[name]} <= set(names), "a parameter that the tour doesn't have"
            names |= {"network": network, **FEWER[name]}
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
    return [value for value in shown if value is not None], names


def check_readable(values):
    """Pictures can be drawn, and what a notebook would print is short."""
    for value in values:
        assert len(repr(value)) < 2_000
        if hasattr(value, "_repr_png_"):
            assert value._repr_png_().startswith(b"\x89PNG")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_ten_minutes(network):
    shown, names = run("ten_minutes", network)
    check_readable(shown)
    assert dict(names["result"].dataset.sizes) == {"ablation": 1, "component": 2, "t": 2, "image": 4}
    assert not np.array_equal(names["before"].images, names["after"].images)


def test_your_model_and_images(network):
    shown, names = run("your_model_and_images", network)
    check_readable(shown)
    difference = next(value for value in shown if isinstance(value, float))
    assert difference < 1e-4  # what was written as a diffusers folder predicts what the original does
    compared = shown[-1]
    np.testing.assert_allclose(compared.difference, 0, atol=1e-3)
    assert not Path(names["work"].name).exists()


def test_find_prove_steer(capsys, network):
    shown, names = run("find_prove_steer", network)
    check_readable(shown)
    assert not set(map(bytes, names["searched"])) & set(map(bytes, names["proving"]))
    assert set(names["result"].frame.component) == set(names["chosen"])
    *lines, last = capsys.readouterr().out.splitlines()
    lines = dict(line.split(": ") for line in lines)
    assert list(lines) == ["x 0", "x 1", "x 2", "dark", "unchanged", "bright"]
    assert lines["x 1"] == "saturation +0.000 +- 0.000"
    assert lines["unchanged"] == "brightness +0.000 +- 0.000"  # a strength of zero is no intervention
    assert lines["bright"] != lines["dark"]
    assert names["p"] in (1 / 3, 2 / 3, 1) and last.endswith(f"p = {names['p']:.2f}")


def test_outputs_are_kept_whole_and_light():
    assert {path.stem for path in TOURS.glob("*.ipynb")} == set(FEWER)
    assert sum(path.stat().st_size for path in TOURS.glob("*.ipynb")) < 300_000
    for name in FEWER:
        counts = [cell["execution_count"] for cell in cells(name)]
        assert counts == list(range(1, len(counts) + 1)), f"{name} was not run from top to bottom"
        outputs = [output for cell in cells(name) for output in cell["outputs"]]
        assert all(output["output_type"] != "error" for output in outputs)
        text = json.dumps(outputs)
        assert "/tmp/" not in text and "/home/" not in text  # where it was run is nobody's business
