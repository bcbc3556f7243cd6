"""Flags of ADM networks: spellings, dialects, sections, noise levels, and what tensors tell."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import yaml
from reference.pretrained_networks import frozen, written
from safetensors.numpy import save_file

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models import pretrained
from mechdiff.models import unet as unet_module
from mechdiff.models.pretrained import Stated
from mechdiff.models.pretrained.adm import options as adm_options
from mechdiff.models.pretrained.adm import reader as adm
from mechdiff.models.pretrained.adm import sections as adm_sections
from mechdiff.models.pretrained.adm.tensors import shapes_say
from mechdiff.models.pretrained.files import configs


def test_rescaled_timesteps_are_fed_as_real_numbers(tmp_path):
    """t = 402 of 4000 is 100.5 of 1000: between the embeddings of 100 and 101, by neither rounded."""
    arrays = frozen("rescaled")
    model = pretrained.read(written(tmp_path, arrays["config"], arrays["state"]))
    plain = dataclasses.replace(model.unet, timestep_scale=1.0)

    @functools.partial(jax.jit, static_argnums=0)
    def embedded(unet, params, t):
        return unet_module.enter(unet, params, np.zeros((1, 8, 8, 3), np.float32), t).embeddings.time

    embed = lambda unet, t: np.asarray(embedded(unet, model.params, np.array([t])))

    np.testing.assert_allclose(embed(model.unet, 400), embed(plain, 100), rtol=1e-6, atol=1e-6)
    between = embed(model.unet, 402)
    apart = [float(np.abs(between - embed(plain, t)).max()) for t in (100, 101, 402)]
    assert min(apart) > 1e-2


@pytest.mark.parametrize(
    ("stated", "scale"),
    [
        (Stated(dialect="improved-diffusion"), 0.25),
        (Stated(dialect="guided-diffusion"), 1.0),
        (Stated(rescale_timesteps=True), 0.25),
    ],
)
def test_a_dialect_says_what_absent_flags_are(stated, scale):
    arrays = frozen("rescaled")
    flags = json.loads(arrays["config"])
    del flags["rescale_timesteps"]
    assert adm.unet_config(adm.flags(flags, arrays["state"], stated)).timestep_scale == scale
    with pytest.raises(MechdiffError, match="option rescale_timesteps is absent"):
        adm.flags(flags, arrays["state"], Stated())


def test_the_same_flags_in_any_spelling_are_the_same_network(tmp_path):
    arrays = frozen("upsample_heads")
    flags = configs.flags_of(arrays["config"])
    expected = adm.unet_config(adm.flags(flags, arrays["state"], Stated()))
    typed = flags | {"image_size": 8, "channel_mult": [1, 2], "attention_resolutions": 4, "class_cond": "F"}
    by_class = {name: value for name, value in flags.items() if name not in ("num_channels", "class_cond")}
    by_class |= {"model_channels": 32, "attention_resolutions": "[2, ]", "out_channels": 3}
    sections = {"model": typed | {"model_path": "a.pt"}, "diffusion": {"steps": 1000, "sampler": "ddim"}}
    spellings = {
        "config.json": json.dumps(typed),
        "config.yaml": yaml.safe_dump(sections),
        "model.yml": yaml.safe_dump(by_class),
        "unet.yaml": yaml.safe_dump({name.replace("_", "-").upper(): v for name, v in typed.items()}),
        "flags.yaml": yaml.safe_dump({f"--{name}": value for name, value in typed.items()}),
        "config.toml": "[model]\n" + "".join(f"{n} = {json.dumps(v)}\n" for n, v in typed.items()),
        "flags.txt": f'# as run\nMODEL_FLAGS="{arrays["config"]}"\n'
        "python image_sample.py $MODEL_FLAGS \\\n --timestep_respacing 250 --num-samples=8",
    }
    for name, text in spellings.items():
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # the last two of Windows
            (tmp_path / name).write_text(text, encoding)
            config = configs.read_config(configs.config_file(tmp_path))
            assert adm.unet_config(adm.flags(config, arrays["state"], Stated())) == expected, name
        (tmp_path / name).unlink()
    (tmp_path / "flags.txt").write_text("--noise_schedule=cosine --num_channels=32", "utf-8-sig")
    assert configs.read_config(tmp_path / "flags.txt")["noise_schedule"] == "cosine"  # it was lost
    (tmp_path / "flags.txt").write_bytes(b"train.py --num_heads 2 # as run\r --num_channels 32\r")
    with pytest.raises(MechdiffError, match="'--num_channels' begins a command of its own"):
        configs.read_config(tmp_path / "flags.txt")


@pytest.mark.parametrize("name", ["upsample_heads", "half_multiplier", "new_order", "rescaled"])
def test_absent_flags_are_read_off_the_tensors(name):
    arrays = frozen(name)
    saved_config = arrays["config"]
    config = json.loads(saved_config) if saved_config.startswith("{") else configs.flags_of(saved_config)
    expected = adm.flags(config, arrays["state"], Stated()).values
    for absent in (
        "num_res_blocks",
        "attention_resolutions",
        "use_scale_shift_norm",
        "num_channels",
        "channel_mult",
    ):
        if absent == "channel_mult" and "model_channels" in config:
            continue  # the class has a default of its own
        less = {key: value for key, value in config.items() if key != absent}
        values = adm.flags(less, arrays["state"], Stated()).values
        for key in ("widths", "blocks", "attends", "use_scale_shift_norm", "resblock_updown", "learn_sigma"):
            assert values[key] == expected[key], (absent, key)


NETWORK = {"num_channels": 32, "num_heads": 2}
LEFT_OUT = "not of the network, so left out: "
SECTIONS = [  # a config, its options or the line that refuses it, and its notes
    (
        {"model": NETWORK, "classifier": {"num_head_channels": 16, "depth": 2}},
        NETWORK,
        f"{LEFT_OUT}classifier",
    ),
    ({"unet": NETWORK, "sampling": {"steps": 50}}, NETWORK, f"{LEFT_OUT}sampling"),
    ({**NETWORK, "train": {"steps": 9, "lr": 1}}, {**NETWORK, "lr": 1}, f"{LEFT_OUT}train.steps"),
    ({"base": {"num_heads": 2}, "model": NETWORK}, NETWORK, ""),
    ({"base": {"num_heads": 4}, "model": NETWORK}, "option base.num_heads may be of another network", ""),
    ({**NETWORK, "optimizer": {"lr": 1}}, {**NETWORK, "lr": 1}, ""),
    ({**NETWORK, "teacher": {"predict_xstart": True}}, "option teacher.predict_xstart may be of another", ""),
    *(
        ({name: NETWORK}, NETWORK, "")
        for name in (
            *("cfg", "gaussian_diffusion", "unet_model", "diffusion_model", "hyperparameters", "parameters"),
            *("settings", "trainer", "ddpm", "guided_diffusion", "default", "gaussian_diffusion_args"),
        )
    ),
    ({**NETWORK, "ema": {"model_channels": 64}}, "option ema.model_channels may be of another network", ""),
]


@pytest.mark.parametrize(("config", "expected", "note"), SECTIONS)
def test_only_sections_of_the_network_decide_it(config, expected, note):
    if isinstance(expected, str):
        with pytest.raises(MechdiffError, match=expected):
            adm_sections.flattened(config)
    else:
        flat, notes = adm_sections.flattened(config)
        assert (flat, "".join(notes)) == (expected, note)


LINEAR = {"noise_schedule": "linear", "steps": 50}


@pytest.mark.parametrize(
    ("more", "text", "steps"),
    [
        (LINEAR, False, 50),
        ({"diffusion": {"steps": 50}}, False, 50),
        ({"gaussian_diffusion": {"steps": 50}}, False, 50),
        ({"ddpm": LINEAR}, False, 50),
        ({"diffusion_teacher": {"steps": 50}}, False, "option diffusion_teacher.steps may be a sampler's"),
        ({"sampling": {"steps": 50}, "train": {"steps": 9}}, False, 1000),
        (LINEAR, True, "option steps may be a sampler's; write diffusion_steps"),
        ({"steps": 50}, False, "option steps may be a sampler's; write diffusion_steps"),
        ({"model": {"steps": 50}}, False, "option model.steps may be a sampler's; write diffusion_steps"),
    ],
)
def test_steps_of_a_sampler_are_not_noise_levels(more, text, steps):
    config = configs.flags_of(frozen("upsample_heads")["config"]) | {"rescale_timesteps": False}
    known = {"noise_schedule", "diffusion_steps", "predict_xstart"} | {"rescale_timesteps"}
    config = {name: value for name, value in config.items() if name not in known} | more
    read = functools.partial(
        adm.flags, config, frozen("upsample_heads")["state"], Stated(dialect="guided-diffusion"), text
    )
    if isinstance(steps, str):
        with pytest.raises(MechdiffError, match=steps):
            read()
    else:
        assert read()["diffusion_steps"] == steps


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 16), ("linear", 21), ("linear", 20)])
def test_few_noise_levels_are_those_of_the_schedule(schedule, steps):
    more = {"noise_schedule": schedule, "diffusion_steps": steps, "rescale_timesteps": False}
    config = configs.flags_of(frozen("upsample_heads")["config"]) | more
    get = adm.flags(config, frozen("upsample_heads")["state"], Stated())
    if steps == 20:
        with pytest.raises(MechdiffError, match="diffusion_steps=20 makes linear betas up to 1, where"):
            adm.noise_levels(get)
    else:
        made = adm.noise_levels(get)
        assert (made.schedule, made.steps) == (schedule, steps)


def test_shapes_say_nothing_of_levels_where_upsampling_has_no_parameters():
    state = dict(frozen("rescaled")["state"])
    assert shapes_say(state)["widths"] == (32, 64)
    bare = {name: value for name, value in state.items() if ".op." not in name}
    bare = {
        name: value for name, value in bare.items() if not name.endswith(("1.conv.weight", "2.conv.weight"))
    }
    assert "widths" not in shapes_say({k: v for k, v in bare.items() if ".conv." not in k})


@pytest.mark.parametrize(
    ("name", "more", "stated", "asked"),
    [
        ("config.json", {}, {}, True),
        ("config.json", {}, {"dialect": "guided-diffusion"}, False),
        ("config.json", {"noise_schedule": "linear"}, {}, False),
        ("flags.txt", {}, {}, False),
        ("flags.sh", {}, {}, True),
    ],
)
def test_flags_by_hand_that_say_nothing_of_diffusion_are_asked_about(name, more, stated, asked, tmp_path):
    """Not a command: what that leaves out has the program's defaults. `flags.sh` are variables alone."""
    arrays = frozen("upsample_heads")
    known = (
        json.loads(arrays["config"])
        if arrays["config"].startswith("{")
        else configs.flags_of(arrays["config"])
    )
    flags = {
        key: value for key, value in known.items() if key not in ("noise_schedule", "diffusion_steps")
    } | more
    line = " ".join(f"--{key} {value}" for key, value in flags.items())
    text = {"config.json": json.dumps(flags), "flags.txt": line, "flags.sh": f'MODEL_FLAGS="{line}"'}[name]
    (tmp_path / name).write_text(text)
    save_file(arrays["state"], tmp_path / adm_options.WEIGHTS)
    asks = "(--noise_schedule='linear' --noise_steps=1000 --prediction='epsilon' is usual)"
    assert (asks in pretrained.read(tmp_path, Stated(**stated)).asks) == asked


LEVELS_OF_ANOTHER_PROGRAM = [  # of ADM's network: more in its config, what is stated beside 1,000 levels
    ({}, {"noise_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}, (8.5e-4, 0.012)),
    ({}, {"noise_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.1}, (1e-3, 0.1)),
    ({}, {"noise_schedule": "linear"}, (1e-4, 0.02)),
    ({}, {"noise_schedule": "scaled_linear"}, "is not guided-diffusion's own: state both --beta_start and"),
    ({}, {"noise_schedule": "linear", "beta_end": 0.1}, "state both --beta_start and --beta_end"),
    ({}, {"noise_schedule": "cosine", "beta_end": 0.1}, "betas follow from diffusion_steps; leave out"),
    ({}, {"beta_start": 1e-3, "beta_end": 0.1}, "or state --noise_schedule=linear or scaled_linear too"),
    (
        {"noise_schedule": "linear"},
        {"noise_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.1},
        "betas follow from diffusion_steps; leave out",
    ),
    ({"predict_xstart": True}, {"noise_schedule": "linear"}, "contradicts guided-diffusion option predict_x"),
    ({"model_mean_type": "epsilon"}, {"noise_schedule": "linear"}, "contradicts .* model_mean_type=epsilon"),
]


@pytest.mark.parametrize(("more", "stated", "expected"), LEVELS_OF_ANOTHER_PROGRAM)
def test_an_adm_network_that_another_program_trained_is_read_as_stated(more, stated, expected, tmp_path):
    """With the table of noise levels that such a program saves beside it, and v as its output."""
    arrays = frozen("upsample_heads")
    text = arrays["config"]
    config = json.loads(text) if text.startswith("{") else dict(configs.flags_of(text))
    state, diffusion = arrays["state"], None
    if isinstance(expected, tuple):
        levels = dict(zip(("beta_start", "beta_end"), expected, strict=True))
        diffusion = DiffusionConfig(schedule=stated["noise_schedule"], steps=1000, **levels)
        state = state | {"betas": np.asarray(make_schedule(diffusion).betas)}
    folder = written(tmp_path, json.dumps(config | more), state)
    told = Stated(noise_steps=1000, prediction="v_prediction", **stated)
    if diffusion is None:
        with pytest.raises(MechdiffError, match=expected):
            pretrained.read(folder, told)
        return
    model = pretrained.read(folder, told)
    assert (model.diffusion, model.unet.prediction, model.asks) == (diffusion, "v_prediction", "")
