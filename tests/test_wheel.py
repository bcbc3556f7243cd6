"""A wheel of the tree works without a checkout: its command draws, README's lines run, a report is built."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from report.test_report import fabricate

from mechdiff.core.config import to_dict
from mechdiff.core.presets import preset
from mechdiff.models.unet import components as unet_components
from mechdiff.models.unet import count_parameters
from mechdiff.storage import files

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("cpu16-synthetic-seed0", "cpu32-celeba-seed0", "cpu32-synthetic-seed0")
PROOFS = ("planted/planted.json", "calibration/calibration.json")
ELSEWHERE = """
import jax, mechdiff
from mechdiff import report

results = Path(sys.argv[4])
config, params, identity, record = mechdiff.load_trained("cpu32-celeba-seed0")
names = [component.name for component in mechdiff.components(config.unet)]
print(mechdiff.__file__)
print(len(names), sum(leaf.size for leaf in jax.tree.leaves(params)))
print(report.build(results))
"""


TEN_LINES = """
import json, sys
from pathlib import Path
import mechdiff as md
import numpy as np
own, head, images = sys.argv[1:4]
small = {"n": 3, "timesteps": 2, "components": "mid.*"}

model = md.load(own)
heads = model.components(type="head")
gone = model.ablate(head).during(0, 30)
rows = (model.sample(2, seed=0, steps=2), gone.sample(2, seed=0, steps=2))
md.show(*rows).save("rows.png")
result = model.sweep(images, folder="sweeps", **small)
top = result.top(10)
result.plot(head).save("head.png"); result.plot().save("map.png")
activations = model.activations(images, sites="mid.*", timesteps=[14, 40], n=2)
changed = md.compare(model, model, images, folder="sweeps", **small)

changed.save("changed"), result.save("result.zarr")
shipped = md.load("cpu32-celeba-seed0").components(type="head")
differ = not np.array_equal(rows[0].images, rows[1].images)
table, sizes = (top.columns.tolist(), top.component.tolist()), dict(activations.sizes)
told = [len(heads), differ, *table, sizes, len(shipped)]
print(json.dumps([*told, changed.top(1).difference.tolist()]))
"""


COMMIT = "mechdiff/COMMIT"  # that the wheel was built from


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what it is made of, so that the tree stays as it is."""
    pytest.importorskip("setuptools", minversion="77", reason="the wheel's metadata need setuptools 77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("mechdiff", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in NETWORKS:
        shutil.copytree(ROOT / "checkpoints" / name, source / "checkpoints" / name)
    for name in PROOFS:
        (source / "checkpoints" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "checkpoints" / name, source / "checkpoints" / name)
    as_nobody = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for words in (["init", "-q"], [*as_nobody, "commit", "-q", "--allow-empty", "-m", "sources"]):
        subprocess.run(["git", "-C", str(source), *words], check=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, f"--wheel-dir={out}", str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """Where the wheel is installed: a folder by itself, on no path of this process."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def outside(site):
    """`outside(folder, *words)` runs Python in a folder with the wheel's package, not the checkout's; a
    notebook's settings of figures, which a report must not need, are about."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }

    def call(folder: Path, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-W", "error", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    return call


def test_wheel_holds_package_launchers_two_networks_and_nothing_else(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.html", "*.css", "*.js", "*.j2", "py.typed")
        for path in (ROOT / "mechdiff").rglob(pattern)
    }
    expected.add(COMMIT)
    expected |= {f"mechdiff/launchers/{path.name}" for path in (ROOT / "experiments").glob("*.py")}
    expected |= {f"mechdiff/checkpoints/{name}" for name in PROOFS}
    for name in NETWORKS:
        folder = ROOT / "checkpoints" / name
        inside = [path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file()]
        expected |= {f"mechdiff/checkpoints/{path.as_posix()}" for path in inside}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    assert set(names) == expected
    assert "mechdiff/py.typed" in names and "mechdiff/report/report.html.j2" in names
    assert "License-Expression: Apache-2.0" in text


def test_the_command_draws_from_a_network_of_the_wheel(wheel, site, outside, tmp_path):
    (entry,) = importlib.metadata.Distribution.at(next(site.glob("*.dist-info"))).entry_points
    assert (entry.name, entry.group) == ("mechdiff", "console_scripts")
    start = f"import sys; from {entry.module} import {entry.attr}; sys.argv[0] = 'mechdiff'; {entry.attr}()"
    words = ["cpu32-synthetic-seed0", "--count=2", "--steps=2", "--json", f"--workdir={tmp_path}/run"]
    done = outside(tmp_path, "-c", start, "sample", *words)
    assert done.returncode == 0, done.stderr
    sheet = tmp_path / "run" / "samples.png"
    printed = json.loads(done.stdout)
    assert printed["written"] == [str(sheet)] and printed["command"].startswith("mechdiff sample --")
    with Image.open(sheet) as drawn:
        assert min(drawn.size) >= 32 and len(np.unique(np.asarray(drawn))) > 20


@pytest.fixture(scope="module")
def elsewhere(trained, outside, tmp_path_factory):
    """What a process outside the checkout prints, and its folder: the ten lines of the README, then a model
    of the wheel and a report."""
    folder = tmp_path_factory.mktemp("elsewhere")
    images, results = folder / "my_images", folder / "results"
    images.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(images / f"{number}.png")
    fabricate(results, "held-seed0", "held-out synthetic pictures", 0)
    manifest = {"config": to_dict(preset("tiny")), "command": ["reproduce.py"], "wall_seconds": 1.0}
    files.write_json(results / "manifest.json", {**manifest, "packages": {}})
    words = [str(trained[0]), "mid.attn0.head1", str(images), str(results)]
    done = outside(folder, "-c", TEN_LINES + ELSEWHERE, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), folder


def test_wheel_loads_a_model_and_builds_a_report_outside_the_checkout(site, elsewhere):
    location, network, page = elsewhere[0][-3:]
    assert Path(location) == site / "mechdiff" / "__init__.py"
    assert network == f"56 {count_parameters(preset('cpu32').unet)}"
    text = Path(page).read_text("utf-8")
    assert "held-seed0" in text and "</html>" in text and "font-family" in text  # template and style sheet


def test_the_ten_lines_of_the_face_run_outside_the_checkout(tiny, elsewhere, site):
    """On a tiny network of ours and a folder of images: what `README.md` shows, from load to compare."""
    lines, folder = elsewhere
    heads, differ, columns, components, sizes, shipped, change = json.loads(lines[-4])
    assert heads == sum(part.component_type == "head" for part in unet_components(tiny.unet))
    assert shipped == 28
    assert differ and change == [0.0]
    assert columns == ["component", "type", "delta_loss", "low", "high", "p", "n"]
    assert "mid.attn0.head1" in components and sizes["t"] == 2 and sizes["image"] == 2
    for name in ("rows.png", "head.png", "map.png"):
        with Image.open(folder / name) as figure:
            assert min(figure.size) > 50
    assert "</html>" in (folder / "changed" / "compare.html").read_text("utf-8")
    result = xr.open_zarr(folder / "result.zarr")
    assert "pooled_delta_loss" in result
    assert len(result.attrs["commit"]) == 40 and f"{result.attrs['commit']}\n" == (site / COMMIT).read_text()
