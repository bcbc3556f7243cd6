"""Models and images as the flags of launchers name them."""

from types import SimpleNamespace

import pytest
from reference import launching

from experiments import _opening
from mechdiff.core import presets
from mechdiff.core.config import override
from mechdiff.core.errors import ConfigError


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


def test_fields_of_preprocessing_that_the_command_line_names_hold_also_where_they_are_the_defaults(tmp_path):
    def main(config, workdir):
        stated.extend(_opening.chooser(config, workdir, None, "x", mixed=True).stated)

    stated = []
    given = ("data.preprocessing.crop=center", "sweep.images=4", " data.preprocessing.phases =kept")
    flags = (f"--workdir={tmp_path}", "--model=x", f"--images={tmp_path}", *(f"--set={one}" for one in given))
    assert launching.launch("sweep", *flags, main=main) == 0
    assert {"crop", "phases"} <= set(stated) and "filter" not in stated


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("sweep_scaling", "--components=nix"), "unknown component 'nix'; choose from: large.mlp, small.mlp"),
        (("interactions", "--components=["), "pattern '[' is not a regular expression"),
        (("sweep_patterns", "--set=sweep.images=4"), "toy.toy_denoiser: no value is named as a pattern of"),
        (("entropy", "--set=sweep.images=4"), "images of 2 pixels have no 4x4 cells; the side must divide"),
        (("roles",), "images of 2 pixels have no 4x4 cells; the side must divide by 4"),
        (("phases", "--set=sweep.timesteps=5000"), "5000 timesteps wanted of a schedule with 100; choose 1"),
        (
            ("sample", "--ablate=large.mlp", "--steps=3", "--window=1,20"),
            "window [1, 20) holds none of the 3 timesteps that are visited, 32 to 99: the intervention",
        ),
    ],
)
def test_what_a_network_does_not_have_is_refused_before_images_are_read(
    words, line, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(_opening, "chooser", lambda *_: None)
    name, *flags = words
    model = "--model=mechdiff.models.toy:toy_denoiser"
    assert launching.launch(name, f"--workdir={tmp_path}", model, *flags) == 2
    assert launching.only_line(capsys).startswith(f"error: {line}")


def test_only_launchers_that_use_nested_images_take_and_count_them(tmp_path, capsys, monkeypatch):
    words = ["images=4", "timesteps=2", "nested=true", "reference_images=0", "ablations=zero"]
    config = override(presets.preset("tiny"), [f"sweep.{word}" for word in words])
    for nested, count in ((False, 4), (True, 8)):
        opened = _opening.opened(config, tmp_path, "reference.user_network:with_classes", None, nested=nested)
        assert (opened.images.nested is not None) == nested
        assert opened.images.label.startswith(f"{count} of 12 images")
        assert f": {count} of 12 images" in capsys.readouterr().err

    def stop(*_, nested=False, **__):
        raise ConfigError(f"nested={nested}")

    monkeypatch.setattr(_opening, "opened", stop)
    for name, asked in (("sweep_sequential", True), ("sweep_scaling", False)):
        settings = ("--set=sweep.nested=true", "--set=sweep.images=32")
        options = ("--preset=tiny", f"--workdir={tmp_path}", "--model=x", *settings)
        assert launching.launch(name, *options) == 2
        assert launching.only_line(capsys) == f"error: nested={asked}"
