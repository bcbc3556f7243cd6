"""Configuration: overrides, validation, round trips."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.core import config as c
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    made = preset(name)
    assert c.from_dict(json.loads(json.dumps(c.to_dict(made)))) == made


@given(st.integers(1, 10**6), st.floats(1e-6, 0.5), st.booleans())
def test_override_sets_what_it_says_and_nothing_else(steps, rate, flip):
    before = preset("tiny")
    after = c.override(before, [f"train.steps={steps}", f"train.learning_rate={rate!r}", f"data.flip={flip}"])
    assert (after.train.steps, after.train.learning_rate, after.data.flip) == (steps, rate, flip)
    restored = [f"train.steps={before.train.steps}", f"train.learning_rate={before.train.learning_rate}"]
    assert c.override(after, [*restored, "data.flip=true"]) == before


def test_later_assignments_win():
    assert c.override(preset("tiny"), ["seed=1", "seed=2"]).seed == 2


def test_fields_that_must_fit_each_other_are_set_together_in_any_order():
    one_level = ["unet.widths=8", "unet.heads=1", "unet.down_attention=false", "unet.up_attention=false"]
    for order in (one_level, one_level[::-1]):
        assert c.override(preset("tiny"), order).unet.down_attention == (False,)
    betas = ["diffusion.schedule=betas", "diffusion.steps=3", "diffusion.betas=0.1,0.2,0.3"]
    for order in (betas, betas[::-1]):
        assert c.override(preset("tiny"), order).diffusion.betas == (0.1, 0.2, 0.3)
    with pytest.raises(ConfigError, match=r"unet\.heads=\(2, 2\) needs 1 entries, one per width"):
        c.override(preset("tiny"), [setting for setting in one_level if "heads" not in setting])
    with pytest.raises(ConfigError, match=r"number of unet\.widths=0 is too small"):
        c.override(preset("tiny"), [f"{setting.partition('=')[0]}=()" for setting in one_level])


def test_tuples_are_written_with_commas():
    assert c.override(preset("tiny"), ["sweep.ablations=zero"]).sweep.ablations == ("zero",)
    for text in ("mean,zero", "mean, zero", "'mean','zero'", "('mean','zero')"):
        assert c.override(preset("tiny"), [f"sweep.ablations={text}"]).sweep.ablations == ("mean", "zero")
    assert c.override(preset("tiny"), ["unet.widths=16,32"]).unet.widths == (16, 32)
    assert c.override(preset("tiny"), ["unet.up_attention=(True,False)"]).unet.up_attention == (True, False)


@pytest.mark.parametrize(
    "text", ["2024_01", "1e3", "0x10", "true", "2019,2020", "007", "None", "(a)", "a's", "--1", "{[]: 1}"]
)
def test_strings_are_taken_as_typed(text):
    config = c.override(preset("tiny"), ["data.name=folder", f"data.path={text}", f"data.cache='{text}\""])
    assert (config.data.path, config.data.cache) == (text, f"'{text}\"")
    assert c.override(preset("tiny"), [f"data.cache={text!r}"]).data.cache == text  # quotes around it are not
    several = c.override(preset("tiny"), [f"study.models=2e3,{text},runs/01"]).study.models
    assert several == ("2e3", *text.split(","), "runs/01")


def test_nothing_is_the_empty_tuple():
    base = c.override(preset("tiny"), ["train.keep=2,3", "study.models=a,b", "study.circuits=zero"])
    for text in ("", "()"):
        names = ("train.keep", "study.models", "study.circuits", "unet.up_heads")
        assert c.override(base, [f"{name}={text}" for name in names]) == preset("tiny")


def test_lists_name_each_once():
    for setting in ("sweep.ablations=zero,zero", "study.circuits=zero,mean,zero", "study.models=zero,zero"):
        with pytest.raises(ConfigError, match=f"^{setting.partition('=')[0]}: zero is given twice"):
            c.override(preset("tiny"), [setting])
    with pytest.raises(ConfigError, match=r"^train\.keep: 2 is given twice"):
        c.override(preset("tiny"), ["train.keep=2,3,2"])
    with pytest.raises(ConfigError, match=r"^sweep\.ablations: none is given"):
        c.override(preset("tiny"), ["sweep.ablations="])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.stepz=3", ["train.stepz", "train.steps"]),
        ("trian.steps=3", ["trian.steps", "train.steps"]),
        ("train.steps=many", ["train.steps", "many", "int"]),
        ("train.steps=1.5", ["train.steps", "1.5", "int"]),
        ("train.steps=0", ["train.steps=0", "at least 1"]),
        ("train.steps", ["no '='"]),
        ("train=3", ["section"]),
        ("seed.x=3", ["not a section"]),
        ("seed=-1", ["seed=-1", "out of range"]),
        ("seed=4294967296", ["seed=4294967296", "out of range"]),
        ("sweep.images=1000000000000", ["sweep.images=1000000000000 is out of range; at most"]),
        ("sweep.draws=1000000000", ["sweep.draws=1000000000 is out of range; 1 to 10000"]),
        ("train.batch=1000000000000", ["train.batch=1000000000000 is out of range"]),
        ("data.n_train=1000000000000", ["data.n_train=1000000000000 is out of range"]),
        ("train.weight_decay=1e999", ["train.weight_decay=inf", "finite"]),
        ("train.learning_rate=1" + "0" * 400, ["train.learning_rate=inf", "finite"]),
        ("train.learning_rate=" + "-" * 100_000 + "1", ["train.learning_rate", "float"]),
        ("seed=true", ["seed", "int"]),
        ("train.accumulate=3", ["train.batch=8", "train.accumulate=3"]),
        ("train.dtype=float16", ["float16", "float32"]),
        ("train.learning_rate=-1", ["out of range"]),
        ("unet.norm_groups=3", ["not divisible", "norm_groups=3"]),
        ("unet.time_width_factor=0", ["time_width_factor=0 is out of range"]),
        ("unet.time_features=1", ["time_features=1 is too narrow"]),
        ("unet.time_features=3", ["time_features=3 is too narrow", "frequency_shift=1"]),
        ("unet.heads=(2,3)", ["not divisible", "heads[1]=3"]),
        ("unet.image_size=9", ["image_size=9", "divisible by 2"]),
        ("unet.widths=8,16,32", ["needs 3 entries"]),
        ("sweep.ablations=zreo", ["zreo", "zero"]),
        ("data.complexity=7", ["data.complexity=7", "0 to 4"]),
        ("diffusion.beta_end=2.0", ["beta_end=2.0"]),
        ("diffusion.schedule=cosin", ["cosin", "cosine"]),
    ],
)
def test_a_bad_override_is_one_line_that_names_the_value(assignment, words):
    with pytest.raises(ConfigError) as error:
        c.override(preset("tiny"), [assignment])
    line = str(error.value)
    assert "\n" not in line
    assert [word for word in words if word not in line] == []


def test_an_unknown_preset_names_the_closest():
    with pytest.raises(ConfigError, match=r"cpu23.*cpu32"):
        preset("cpu23")


def test_an_unknown_field_of_a_saved_config_is_refused():
    with pytest.raises(ConfigError, match="stepz"):
        c.from_dict({"name": "x", "train": {"stepz": 1}})


def test_configs_of_the_first_edition_are_read_and_old_settings_are_named():
    old = {"kinds": ["zero"], "mean_images": 7}
    sweep = c.from_dict(old, c.SweepConfig)
    assert sweep.ablations == ("zero",) and sweep.reference_images == 7
    assert c.from_dict({"level": 2}, c.DataConfig).complexity == 2
    with pytest.raises(ConfigError, match=r"'sweep\.kinds' is called 'sweep\.ablations' now"):
        c.override(preset("tiny"), ["sweep.kinds=zero"])


def test_reference_images_are_needed_only_where_something_is_made_of_them():
    base = preset("tiny")
    assert c.override(base, ["sweep.ablations=zero", "sweep.reference_images=0"]).sweep.reference_images == 0
    with pytest.raises(ConfigError, match=r"sweep\.reference_images=0 is too small"):
        c.override(base, ["sweep.ablations=zero,mean", "sweep.reference_images=0"])


def test_several_booleans_are_separated_by_commas():
    config = c.override(preset("tiny"), ["unet.up_attention=false,true"])
    assert config.unet.up_attention == (False, True)
