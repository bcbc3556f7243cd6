"""The list of settings and the hints made of it agree with what `--set` takes."""

import pytest

from mechdiff.cli import hints, settings
from mechdiff.core.config import override
from mechdiff.core.presets import preset


def test_every_setting_can_be_set_to_what_is_shown():
    config = preset("tiny")
    listed = settings.all_settings("tiny")
    shown = [f"{row.name}={row.default}" for row in listed if row.default and not row.default.endswith("...")]
    assert override(config, shown) == config
    assert len({row.name for row in listed}) == len(listed) > 70


def test_types_choices_and_meanings_are_those_of_the_record():
    rows = {row.name: row for row in settings.all_settings("tiny")}
    assert rows["sweep.images"] == settings.Setting("sweep.images", "int", "8", "scored at every timestep")
    assert rows["unet.widths"].type == "int,..." and rows["unet.widths"].default == "8,16"
    assert rows["train.dtype"].type == "float32 | bfloat16"
    assert rows["unet.timestep_scale"].meaning.startswith("the network is given t *")
    assert rows["data.n_train"].meaning and rows["train.keep"].meaning  # records of other modules, too
    assert all(row.meaning for row in rows.values())
    assert "name" not in rows and rows["seed"].default == "0"


@pytest.mark.parametrize(
    ("flag", "value", "meant"),
    [
        ("imges", "16", "--set=sweep.images=16"),  # sweep.images, not study.images
        ("--steps", "5", "--set=train.steps=5"),
        ("learning-rate", None, "--set=train.learning_rate=VALUE"),
        ("sweep.imges", "2", "--set=sweep.images=2"),
        ("workdri", "x", "--workdir"),
        ("nonsense", "x", None),
        ("image", "faces/", "--images"),  # as close as sweep.images, and no number
        ("image", "16", "--set=sweep.images=16"),
        ("step", "100", "--set=train.steps=100"),  # closer than --set
        ("n", "16", "--set=sweep.images=16"),  # as the option -n
        ("every-level", None, "--every-timestep"),  # as it was called
    ],
)
def test_an_unknown_flag_is_answered_with_the_closest_flag_or_setting(flag, value, meant):
    assert hints.meant(flag, value, ["--images", "--workdir", "--set", "--every-timestep"]) == meant


def test_images_of_a_launcher_without_that_flag_are_those_of_training():
    assert hints.meant("images", "faces/", ["--workdir"]) == "--set=data.name=folder --set=data.path=faces/"
    assert hints.meant("images", "faces/", ["--workdir", "--model"]) is None  # where neither would act
    assert hints.meant("images", "16", ["--workdir"]) == "--set=sweep.images=16"
