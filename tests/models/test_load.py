"""Names of exported models: a folder, a run, a step of a run."""

import re

import numpy as np
import pytest

import mechdiff
from mechdiff.core.errors import CheckpointError
from mechdiff.models.load import load_denoiser, model_folder, name_of, steps_of
from mechdiff.storage.exported import export_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 30 steps, exported after 10, 20 and (twice) 30."""
    run = tmp_path_factory.mktemp("runs") / "faces"
    for step, folder in {10: "snapshots/10", 20: "snapshots/20", 30: "model"}.items():
        export_model(run / folder, {"weight": np.full(2, step, np.float32)}, {}, {"steps": step})
    return run


def test_model_folder_takes_a_run_a_step_and_a_folder(run):
    assert model_folder(run) == model_folder(run / "model") == run / "model"
    first = run / "snapshots" / "10"
    for name in (first, f"{run}@10", f"{run}/model@10", f"{run}/@10", run / "checkpoints" / "10"):
        assert model_folder(name) == first, name
    assert model_folder(f"{run}@30") == run / "model"


def test_model_folder_lists_the_steps_where_one_is_absent(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"no model of step 15 \(exported there: 10, 20, 30\)"):
        model_folder(f"{run}@15")
    with pytest.raises(CheckpointError, match="no step was exported there"):
        model_folder(tmp_path / "checkpoints" / "15")


def test_model_folder_leaves_other_names_alone(tmp_path):
    for name in ("a@b", "nowhere", "@"):
        assert model_folder(tmp_path / name) == tmp_path / name


def test_a_folder_of_another_program_is_refused_with_the_way_in(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is no exported model; .* import it first: mechdiff import"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("read", [load_denoiser, mechdiff.load])
@pytest.mark.parametrize(
    ("inside", "model", "way_out"),
    [
        ("subjects/net/subject.json", "", "holds results of models, and is none; mechdiff report --workdir="),
        (
            "subjects/net/subject.json",
            "subjects/net",
            "to go on, name the model that they are of, and give --workdir={folder}",
        ),
        ("subjects/net/subject.json", "subjects", "mechdiff report --workdir={folder} shows them"),
        ("cells/net.zip", "", "holds results of models, and is none"),
        ("screen.json", "", "holds results of a model, and is none; name the model that they are of"),
        ("checkpoints/3/x", "", "is not finished; start the command again that began it"),
    ],
)
def test_a_folder_of_results_or_of_half_a_training_is_refused_with_what_to_do(
    inside, model, way_out, read, tmp_path
):
    (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside).touch()
    with pytest.raises(CheckpointError, match=re.escape(way_out.format(folder=tmp_path))):
        read(tmp_path / model)


def test_name_of_shows_the_step(run):
    assert name_of(f"{run}@20") == name_of(run / "checkpoints" / "20") == "faces@20"
    assert name_of(run) == name_of(run / "model") == name_of(f"{run}@30") == "faces"


def test_steps_of_lists_snapshots_and_the_end_in_order(run):
    assert steps_of(run) == steps_of(run / "model")
    assert list(steps_of(run)) == [10, 20, 30]
    assert steps_of(run)[30] == run / "model"


def test_a_link_that_leads_to_itself_is_no_model(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError, match="no folder"):
        load_denoiser(tmp_path / "loop")
