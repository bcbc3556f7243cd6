"""Shipped networks are found by name, in whatever home they lie."""

from pathlib import Path

import pytest

from mechdiff.core.errors import CheckpointError
from mechdiff.core.presets import PRESETS
from mechdiff.models import shipped

ROOT = Path(__file__).parents[2]


def test_the_checkout_ships_the_pair_of_the_quickstart():
    assert {"cpu32-celeba-seed0", "cpu32-synthetic-seed0"} <= set(shipped.names())
    assert shipped.folder("cpu32-celeba-seed0") == ROOT / "checkpoints" / "cpu32-celeba-seed0"


@pytest.mark.parametrize("name", PRESETS)
def test_the_networks_of_every_preset_are_shipped(name):
    models = PRESETS[name].study.models
    assert [shipped.folder(model).name for model in models] == list(models)


def test_only_exported_models_count(tmp_path, monkeypatch):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "SHA256SUMS").write_text("")
    (tmp_path / "study").mkdir()
    monkeypatch.setattr(shipped, "HOMES", (tmp_path / "absent", tmp_path))
    assert shipped.names() == ("net",)
    assert shipped.folder("net") == tmp_path / "net"


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(CheckpointError, match=r"'cpu32-celebs-seed0'; closest: cpu32-celeba-seed0"):
        shipped.folder("cpu32-celebs-seed0")


def test_a_folder_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find("cpu32-celeba-seed0") == shipped.folder("cpu32-celeba-seed0")
    (tmp_path / "cpu32-celeba-seed0").mkdir()
    assert shipped.find("cpu32-celeba-seed0") == Path("cpu32-celeba-seed0")
    with pytest.raises(
        CheckpointError, match=r"no folder absent, and no shipped network .*cpu16-celeba-seed0"
    ):
        shipped.find("absent")
