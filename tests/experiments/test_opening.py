"""Models and images as the flags of launchers name them."""

from types import SimpleNamespace

import pytest
from reference import launching

from experiments import _opening
from mechdiff.core import presets


@pytest.mark.parametrize("name", ["circuits", "phases", "screen", "roles", "entropy"])
def test_models_of_one_name_are_refused_before_any_is_read(name, tmp_path, capsys):
    two = (f"--model={tmp_path}/a/run/model", f"--model={tmp_path}/b/run/model")
    assert launching.launch(name, f"--workdir={tmp_path}", *two) == 2
    assert launching.only_line(capsys).startswith("error: two models are called alike, run")


def test_celeba_without_effect_on_a_network_of_synthetic_faces_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_opening.choosing.ImageChoice, "__call__", lambda *_: "images")
    network, config = SimpleNamespace(name="faces"), presets.preset("tiny")
    for mixed in (False, True):
        choose = _opening.chooser(config, tmp_path, "celeba/", None, mixed)
        assert choose(network, config) == "images"
    assert launching.only_line(capsys) == (
        "warning: --celeba=celeba/ has no effect on faces: it is examined on synthetic images, which are "
        "drawn"
    )
