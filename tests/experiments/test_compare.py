"""The launcher of comparisons: two models, a model and itself, and the steps of one training."""

import importlib
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from reference.launching import launch
from reference.results import unrendered

from mechdiff.api.course import compare_steps
from mechdiff.core.errors import CheckpointError
from mechdiff.report import changes

IMAGES = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 3)).astype(np.float32)
SMALL = ("--preset=tiny", "--set=sweep.images=6", "--set=sweep.timesteps=2", "--set=sweep.ablations=zero")


@pytest.fixture
def launched(tmp_path, capsys, monkeypatch):
    """`launched(*flags)`: exit code and what was printed."""
    unrendered(monkeypatch, changes)  # of such pages, `test_changes` has the figures
    np.save(tmp_path / "images.npy", IMAGES)
    shown = (f"--images={tmp_path / 'images.npy'}", f"--workdir={tmp_path / 'out'}")
    return lambda *options: (launch("compare", *SMALL, *shown, *options), capsys.readouterr())


def test_a_model_compared_with_itself_has_not_changed_and_small_n_is_said(trained, tmp_path, launched):
    code, said = launched(f"--before={trained[0]}", f"--after={trained[0]}")
    assert code == 0, said.err
    frame = pd.read_csv(tmp_path / "out" / "compare.csv")
    assert (frame["difference"] == 0).all() and (frame["p"] == 1).all() and (frame["before"] != 0).any()
    assert (tmp_path / "out" / "compare.png").stat().st_size > 1000
    page = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert said.out.rstrip().endswith("compare.html") and "0 of" in page and frame["component"][0] in page
    assert (
        "n = 6 is few, intervals may be too narrow" in said.out.replace("\n", " ") and "n = 6 is few" in page
    )
    assert f"no p can fall below {min(1, len(frame) * 2 / 2**6):.2g}" in said.out.replace("\n", " ")


@pytest.mark.parametrize("others", [(), ("--after=x", "--steps=all")])
def test_one_of_a_second_model_and_steps_is_asked_for(trained, launched, others):
    code, said = launched(f"--before={trained[0]}", *others)
    assert code == 2 and "--steps=all" in said.err and said.err.count("\n") == 1


def test_classes_are_called_as_flags_state(trained, launched, monkeypatch):
    class Compared(Exception):
        pass

    def compare(before, after, *_, **__):
        raise Compared(before.record["class_names"], after.record.get("class_names"))

    monkeypatch.setattr(importlib.import_module("mechdiff.api.compare"), "compare", compare)
    monkeypatch.setattr("mechdiff.models.conditions.taken", lambda network: SimpleNamespace(classes=2))
    both = (f"--before={trained[0]}", f"--after={trained[0]}")
    code, said = launched(*both, "--before_class_names=cats")
    assert code == 2 and "--before_class_names has 1 names, but" in said.err
    with pytest.raises(Compared) as named:
        launched(*both, "--before_class_names=cats,dogs")
    assert named.value.args == (["cats", "dogs"], None)


def test_steps_of_a_training_are_swept_on_the_same_images(trained, tmp_path, launched):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run / "snapshots" / "10")
    shutil.copytree(trained[0], run / "snapshots" / "20")
    code, said = launched(f"--before={run}", "--steps=all")
    assert code == 0, said.err
    assert "run@10 (before), run@20 (after)" in said.out
    course = pd.read_csv(tmp_path / "out" / "course.csv")
    assert set(course["step"]) == {10, 20}
    assert 'id="course"' in (tmp_path / "out" / "compare.html").read_text("utf-8")
    first, last = (course[course["step"] == step].set_index("component")["delta_loss"] for step in (10, 20))
    pd.testing.assert_series_equal(first, last)
    with pytest.raises(CheckpointError, match=r"train\.keep"):
        compare_steps(trained[0], IMAGES)
