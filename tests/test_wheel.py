"""A wheel made of the tree works where there is no checkout: it loads a model and builds a report."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from report.test_report import fabricate

from mechdiff.core.config import to_dict
from mechdiff.core.presets import preset
from mechdiff.models.unet import count_parameters
from mechdiff.storage import files

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "checkpoints" / "cpu16-synthetic-seed0"
ELSEWHERE = """
import sys
from pathlib import Path
import jax, mechdiff
from mechdiff import report

model, results = map(Path, sys.argv[1:])
config, params, identity, record = mechdiff.load_trained(model)
names = [component.name for component in mechdiff.components(config.unet)]
print(mechdiff.__file__)
print(len(names), sum(leaf.size for leaf in jax.tree.leaves(params)))
print(report.build(results))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what it is made of, so that the tree stays as it is."""
    pytest.importorskip("setuptools", minversion="77", reason="the wheel's metadata need setuptools 77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "mechdiff", source / "mechdiff", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, f"--wheel-dir={out}", str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    files_in_tree = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.html", "*.css", "*.js", "*.j2", "py.typed")
        for path in (ROOT / "mechdiff").rglob(pattern)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    assert set(names) == files_in_tree
    assert "mechdiff/py.typed" in names and "mechdiff/report/report.html.j2" in names
    assert "License-Expression: Apache-2.0" in text


def test_wheel_loads_a_model_and_builds_a_report_outside_the_checkout(wheel, tmp_path):
    site, results = tmp_path / "site", tmp_path / "results"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    fabricate(results, "held-seed0", "held-out synthetic pictures", 0)
    manifest = {"config": to_dict(preset("tiny")), "command": ["reproduce.py"], "wall_seconds": 1.0}
    files.write_json(results / "manifest.json", {**manifest, "packages": {}})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE, str(MODEL), str(results)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    location, network, page = done.stdout.splitlines()
    assert Path(location) == site / "mechdiff" / "__init__.py"
    assert network == f"56 {count_parameters(preset('cpu16').unet)}"
    text = Path(page).read_text("utf-8")
    assert "held-seed0" in text and "</html>" in text and "font-family" in text  # template and style sheet
