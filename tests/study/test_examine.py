"""An examination run again in its folder: until it is finished, numbers there are not taken for its own."""

import dataclasses

import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.config import DiffusionConfig, SweepConfig
from mechdiff.core.errors import CheckpointError, DataError, MechdiffError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.storage import files, labelled
from mechdiff.study import choosing, examine, further_results, packing, results_folder


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """`run(seed, studied)`: examines a small network in tmp_path; gives that, its config and folder."""
    few = dataclasses.replace(tiny.sweep, ablations=("zero",), images=2, timesteps=2, reference_images=2)
    config = dataclasses.replace(tiny, unet=SMALL, sweep=few)
    schedule = make_schedule(DiffusionConfig(schedule="cosine", steps=50))
    denoiser = Denoiser("small", SMALL, schedule, random_params(SMALL), identity_of(SMALL))
    monkeypatch.setattr(examine, "load_denoiser", lambda model, name: (denoiser, config, {"steps": 7}))
    choose = choosing.ImageChoice(config, None, tmp_path / "cache")

    files.write_json(tmp_path / "manifest.json", {})

    def run(seed, studied=False):
        folder = tmp_path / "subjects" / "small"
        examined = examine.examine("small", tmp_path, choose, config.sweep, seed, folder, studied=studied)
        return examined, config, folder

    return run


def test_numbers_of_an_earlier_run_are_not_shown_for_one_that_was_interrupted(run, tmp_path, monkeypatch):
    run(0)
    assert results_folder.read(tmp_path)[1][0].seed == 0
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(examine, "ablation_sweep", interrupt)
        run(1)
    with pytest.raises(CheckpointError, match="small is unfinished; run the command"):
        results_folder.read(tmp_path)
    run(1)
    model = results_folder.read(tmp_path)[1][0]
    assert model.seed == model.sweep.attrs["seed"] == model.attention.attrs["seed"] == 1


def test_what_can_not_be_swept_is_refused_before_anything_is_evaluated_or_said(run, tmp_path, capsys):
    def choose(*_):
        raise DataError("no images")

    for timesteps, error in ((51, "51"), (2, "no images")):  # of 50
        asked = SweepConfig(ablations=("zero",), images=2, timesteps=timesteps)
        with pytest.raises(MechdiffError, match=error):
            examine.examine("small", tmp_path, choose, asked, 0, tmp_path / "new")
    assert capsys.readouterr().err == ""


def test_a_sweep_whose_further_results_were_not_run_is_refused_until_they_are(run, tmp_path):
    """Killed between the two it was read as one of which nothing more was asked."""
    examined, config, folder = run(0, studied=True)
    with pytest.raises(CheckpointError, match="small is unfinished; run the command"):
        results_folder.read(tmp_path)
    with pytest.raises(CheckpointError, match="small is unfinished; run the command"):
        packing.pack(folder, tmp_path / "small.zip")
    further_results.run_study(examined, config, folder)
    packing.pack(folder, tmp_path / "small.zip")
    assert results_folder.read(tmp_path)[1][0].name == "small"


def test_the_sweep_of_a_command_is_its_own_whatever_another_saved_there_since(run, monkeypatch):
    saved, examples = [], examine.examples.save

    def save(*args, **kwargs):
        examples(*args, **kwargs)
        if not saved:  # another command ends in the same folder before this one prints
            saved.append(1)
            assert run(1)[0].sweep.attrs["seed"] == 1

    monkeypatch.setattr(examine.examples, "save", save)
    examined, _, folder = run(0)
    assert labelled.read(folder / "sweep.zarr").attrs["seed"] == 1
    assert examined.sweep.attrs["seed"] == 0 and "pooled_delta_loss" in examined.sweep
