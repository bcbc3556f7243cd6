"""A study that was interrupted goes on, and its pieces are what `collect` takes."""

import importlib
import signal
import sys
import zipfile

import pytest
from absl import flags
from absl.testing import flagsaver
from reference.launching import launch

from experiments import _launch
from mechdiff.core.config import to_dict
from mechdiff.core.presets import preset
from mechdiff.storage import files
from mechdiff.study import collecting, examination, further_results, plan

SMALL = (
    "--preset=tiny", "--seeds=1", "--data=gaussian,synthetic-level0", "--set=train.steps=2",
    "--set=train.warmup=1", "--set=train.eval_images=8", "--set=data.n_train=16", "--set=data.n_test=16",
    "--set=sweep.images=2", "--set=sweep.timesteps=2", "--set=sweep.reference_images=2",
    "--set=sweep.ablations=mean",
)  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch, tiny):
    """`study()`: its exit code; the launcher's flags are gone afterwards."""
    module = "experiments.study"
    launcher = importlib.import_module(module)
    monkeypatch.setattr(plan, "of_ladder", lambda config: config)  # the sweep alone
    with flagsaver.flagsaver():
        yield lambda: _launch.launch(launcher.main, ["study", *SMALL, f"--workdir={tmp_path / 'out'}"])
    for flag in list(flags.FLAGS.flags_by_module_dict()[module]):
        delattr(flags.FLAGS, flag.name)
    del sys.modules[module]


def test_reproduce_trains_no_network_that_it_could_not_examine(tmp_path):
    settings = ("--preset=tiny", "--set=data.name=synthetic", "--set=sweep.timesteps=51")
    assert launch("reproduce", *settings, f"--workdir={tmp_path}") == 2
    assert not (tmp_path / "models").exists()


def test_two_models_named_by_their_folders_are_examined_under_the_names_of_their_runs(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(examination, "examine_and_pack", lambda name, *_, **__: names.append(name))
    for model in ("a/model", "b", "c/"):
        assert launch("examine", f"--model={tmp_path / model}", f"--workdir={tmp_path / 'out'}") == 0
    assert launch("examine", "--model=a", f"--workdir={tmp_path / 'out'}", "--name=../a") == 2
    assert names == ["a", "b", "c"]


def test_a_study_does_not_go_on_with_other_settings(tmp_path, capsys):
    """What is packed is taken as it is: numbers of the settings before were given as those of today's."""
    name = "tiny-synthetic-seed0"  # of other data: pieces hold both
    files.write_json(tmp_path / "settings.json", to_dict(preset("tiny")))
    cells = files.ensure_writable(tmp_path / "examined" / name / "cells")
    (cells / f"{name}.zip").touch()
    flags = ("--preset=tiny", "--data=gaussian", f"--workdir={tmp_path}", "--set=sweep.images=6")
    assert launch("study", *flags, "--set=sweep.chunk=4") == 2
    assert "another config: sweep.images is 8 there and 6 here" in capsys.readouterr().err
    files.write_json(tmp_path / "settings.json", {**to_dict(preset("tiny")), "of_tomorrow": 1})
    assert launch("study", *flags) == 2
    line = capsys.readouterr().err
    assert (
        f"{tmp_path}/settings.json: unknown field 'of_tomorrow'; " in line
        and "go on with the version" in line
    )


def test_a_step_that_a_training_had_passed_when_it_was_named_is_left_out_with_a_warning(tmp_path, capsys):
    """Every later start ended with an error, once all networks were made."""
    name = "tiny-synthetic-seed0"
    files.write_json(tmp_path / "settings.json", to_dict(preset("tiny")))
    cells = files.ensure_writable(tmp_path / "examined" / name / "cells")
    (cells / f"{name}.zip").touch()
    files.write_json(cells.parent / "manifest.json", {})
    flags = ("--preset=tiny", "--data=synthetic", "--seeds=1", f"--workdir={tmp_path}")
    assert launch("study", *flags, "--set=train.keep=1") == 0
    out, err = capsys.readouterr()
    assert f"warning: {name}@1 is left out: the training exported no model of that step" in err
    assert str(tmp_path / "pieces" / "cells-0.zip") in out


@pytest.mark.slow
def test_a_study_that_was_interrupted_goes_on(tmp_path, monkeypatch, study, capsys):
    out, run_study = tmp_path / "out", further_results.run_study

    def interrupted(examined, config, folder):
        if "gaussian" not in folder.name:
            raise KeyboardInterrupt
        run_study(examined, config, folder)

    monkeypatch.setattr(further_results, "run_study", interrupted)
    assert study() == 128 + signal.SIGINT
    names = ["tiny-gaussian-seed0", "tiny-synthetic-level0-seed0"]
    first, second = (out / "examined" / name / "cells" / f"{name}.zip" for name in names)
    assert first.exists() and not second.exists()
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(further_results, "run_study", run_study)
    assert study() == 0
    assert first.stat().st_mtime_ns == before and second.exists()
    (piece,) = sorted((out / "pieces").iterdir())
    content = piece.read_bytes()
    piece.unlink()  # as if it had been stopped between packing and this
    assert study() == 0 and piece.read_bytes() == content
    assert str(piece) in capsys.readouterr().out
    zipfile.ZipFile(piece).extractall(tmp_path / "home")
    assert collecting.collect([tmp_path / "home"], tmp_path / "study") == names
    made = files.read_json(tmp_path / "study" / "manifest.json")["networks"]
    assert list(made) == names
