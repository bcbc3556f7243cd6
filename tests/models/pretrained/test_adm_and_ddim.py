"""ADM and ddim networks against PyTorch (`make_pretrained_reference`), as their users save them."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from reference.make_pretrained_reference import CONDITIONED, HOOKED, NETWORKS, T, condition, draw
from reference.networks import identity_of
from safetensors.numpy import save_file

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.build import ablate
from mechdiff.models import pretrained
from mechdiff.models import unet as unet_module
from mechdiff.models.pretrained import Stated, ddim
from mechdiff.models.pretrained.adm import options as adm_options
from mechdiff.models.pretrained.adm import reader as adm
from mechdiff.models.pretrained.adm import sections as adm_sections
from mechdiff.models.pretrained.adm.tensors import shapes_say
from mechdiff.models.pretrained.diffusers import reader as diffusers
from mechdiff.models.pretrained.files import configs, tensors
from mechdiff.models.unet import apply_unet, components

REFERENCE = Path(__file__).parents[2] / "reference" / "pretrained.npz"


SAME_LAYERS = ("half_multiplier", "rescaled")  # as others: of these no gradient, which is slow to compile


@functools.cache
def frozen(name: str) -> dict:
    """Config as text, state dict, output and gradient (NHWC) of one network."""
    with np.load(REFERENCE) as stored:
        arrays = {key: stored[f"{name}/{key}"] for key in ("config", "shapes", "output", "gradient")}
    arrays["config"] = str(arrays["config"])
    arrays["state"] = draw(json.loads(str(arrays.pop("shapes"))))
    return arrays


def written(folder: Path, config: str, state: dict) -> Path:
    """A folder as its users have it."""
    folder.mkdir(exist_ok=True)
    kind = "config.json" if config.startswith("{") else "flags.txt"
    (folder / kind).write_text(config)
    save_file(state, folder / (diffusers.WEIGHTS if "UNet2DModel" in config else adm_options.WEIGHTS))
    return folder


@functools.partial(jax.jit, static_argnums=0)
def output_of(config, params, intervention, x, t, told=None):
    return apply_unet(config, params, intervention, x, t, condition=told)


@functools.partial(jax.jit, static_argnums=0)
def output_and_gradient(config, params, identity, x, t):
    def half_square(x):
        output = apply_unet(config, params, identity, x, t)
        return jnp.sum(output**2) / 2, output

    gradient, output = jax.grad(half_square, has_aux=True)(x)
    return output, gradient


def images(side: int) -> np.ndarray:
    drawn = np.random.default_rng(1).standard_normal((len(T), 3, side, side)).astype(np.float32)
    return np.moveaxis(drawn, 1, -1)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_output_and_gradient_equal_those_of_torch(name, tmp_path):
    arrays = frozen(name)
    model = pretrained.read(written(tmp_path, arrays["config"], arrays["state"]))
    x = images(model.unet.image_size)
    arguments = model.unet, model.params, identity_of(model.unet), x, np.array(T)
    computed = (output_of(*arguments),) if name in SAME_LAYERS else output_and_gradient(*arguments)
    for value, key in zip(computed, ("output", "gradient"), strict=name not in SAME_LAYERS):
        expected = np.moveaxis(arrays[key], 1, -1)
        assert np.abs(np.asarray(value) - expected).max() < 1e-4 * expected.std(), key


def told(name: str) -> dict:
    """The condition of a network, images NHWC."""
    program, arguments, _ = CONDITIONED[name]
    result = condition(program, arguments)
    return {key: np.moveaxis(a, 1, -1) if key == "image" else a for key, a in result.items()}


def assert_equal_to_torch(model, told: dict, arrays: dict) -> None:
    """Outputs alone: gradients are those of the same layers as in `NETWORKS`, and slow to compile."""
    x = images(model.unet.image_size)
    output = output_of(model.unet, model.params, identity_of(model.unet), x, np.array(T), told)
    expected = np.moveaxis(arrays["output"], 1, -1)
    assert np.abs(np.asarray(output) - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", list(CONDITIONED))
def test_a_conditioned_network_equals_that_of_torch(name, tmp_path):
    """At two classes, of which one is the null class where there is a table."""
    arrays = frozen(name)
    stated = Stated(condition="last" if name == "unet2d_joined" else None)
    stated = dataclasses.replace(stated, null_class="class_embed_type" not in arrays["config"] or None)
    if name == "super_resolution":
        stated = Stated()
    model = pretrained.read(written(tmp_path, arrays["config"], arrays["state"]), stated)
    if "table" in name or name.startswith("classes"):
        assert (model.unet.classes, model.unet.null_label) == (4, 4)
    assert_equal_to_torch(model, told(name), arrays)


def test_heads_and_class_at_zero_do_what_hooks_do_in_torch(tmp_path):
    """In a network with classes: each head, and the class wherever it is injected."""
    arrays = frozen(HOOKED)
    with np.load(REFERENCE) as stored:
        outputs, names = stored[f"{HOOKED}/hooked"], json.loads(str(stored[f"{HOOKED}/components"]))
    model = pretrained.read(written(tmp_path, arrays["config"], arrays["state"]))
    identity = identity_of(model.unet)
    heads = {part.name for part in components(model.unet) if part.component_type == "head"}
    assert set(names) - {"class"} == heads and len(heads) == 8
    clean = np.moveaxis(arrays["output"], 1, -1)
    for name, expected in zip(names, outputs, strict=True):
        gated = ablate(identity, r".*\.class" if name == "class" else [name])
        output = np.asarray(output_of(model.unet, model.params, gated, images(8), np.array(T), told(HOOKED)))
        expected = np.moveaxis(expected, 1, -1)
        assert np.abs(output - expected).max() < 1e-4 * expected.std(), name
        assert np.abs(expected - clean).max() > 1e-3 * clean.std(), name


def test_a_condition_before_the_noisy_image_is_the_same_network(tmp_path):
    """Its first convolution's channels in the other order, and said so."""
    arrays, first = frozen("unet2d_joined"), "conv_in.weight"
    state = arrays["state"] | {first: np.roll(arrays["state"][first], 2, axis=1)}
    with pytest.raises(MechdiffError, match="where these 2 lie, so state it: --condition=last"):
        pretrained.read(written(tmp_path, arrays["config"], state))
    model = pretrained.read(tmp_path, Stated(condition="first", null_class=True))
    assert_equal_to_torch(model, told("unet2d_joined"), arrays)


def test_conditioned_networks_go_out_to_diffusers_and_come_back(tmp_path):
    for name in ("unet2d_table", "unet2d_number", "unet2d_vector", "unet2d_joined"):
        arrays = frozen(name)
        stated = Stated(condition="last" if name == "unet2d_joined" else None)
        first = pretrained.read(written(tmp_path / name, arrays["config"], arrays["state"]), stated)
        folder = tmp_path / f"{name}-out"
        pretrained.write_diffusers(folder, first.unet, first.diffusion, first.params)
        second = pretrained.read(folder, stated)
        assert second.unet == first.unet
        jax.tree.map(np.testing.assert_array_equal, second.params, first.params)


def test_what_the_networks_are():
    """Options that an output alone would not show."""
    unets = {}
    for name in NETWORKS:
        saved_config, state = frozen(name)["config"], frozen(name)["state"]
        config = json.loads(saved_config) if saved_config.startswith("{") else configs.flags_of(saved_config)
        if ddim.recognizes(config):
            continue
        unets[name] = adm.unet_config(adm.flags(config, state, Stated()))
    assert (unets["upsample_heads"].heads, unets["upsample_heads"].up_heads) == ((1, 2), (1, 4))
    assert (unets["half_multiplier"].widths, unets["half_multiplier"].time_features) == ((32, 64), 64)
    assert unets["rescaled"].timestep_scale == 0.25
    with np.load(REFERENCE) as stored:
        flags, shapes = (str(stored[f"script32/{key}"]) for key in ("config", "shapes"))
    get = adm.flags(configs.flags_of(flags), draw(json.loads(shapes)), Stated(dialect="improved-diffusion"))
    published = adm.unet_config(get)  # 32 pixels, as improved-diffusion's scripts make it
    assert (published.widths, published.blocks_per_level) == ((32, 64, 64, 64), 3)
    assert (published.down_attention, published.timestep_scale) == ((False, True, True, False), 0.25)


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


PREFIXES = [("module.",), ("ema.",), ("module._orig_mod.",), ("model.", "ema."), ("", "ema_model.")]


@pytest.mark.parametrize("prefixes", PREFIXES)
@pytest.mark.parametrize("name", ["ddim", "half_multiplier"])
def test_wrapped_state_dicts_are_read(prefixes, name, tmp_path):
    arrays = frozen(name)
    expected = pretrained.read(written(tmp_path / "plain", arrays["config"], arrays["state"]))
    state = {}
    for i, prefix in enumerate(reversed(prefixes)):  # the averaged ones first, unchanged
        state |= {prefix + key: value + i for key, value in arrays["state"].items()}
    state["ema.num_updates" if "ema" in prefixes[-1] else "step"] = np.array(7)
    state |= {name: np.array(7) for name in ("n_averaged", "global_step", "epoch")}
    folder = written(tmp_path / "wrapped", arrays["config"], state)
    if len(prefixes) > 1:
        with pytest.raises(MechdiffError, match="holds several networks, under"):
            pretrained.read(folder)
        raw = pretrained.read(folder, Stated(weights="raw"))
        assert not np.array_equal(
            raw.params["conv_in"]["conv"]["bias"], expected.params["conv_in"]["conv"]["bias"]
        )
    model = pretrained.read(folder, Stated(weights="ema" if len(prefixes) > 1 else None))
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)


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


DDIM_BAD = [
    ({"ch": None}, {}, "ddim model option ch=None is not a whole number of at least 1"),
    ({"ch_mult": [2, 4]}, {}, "option ch_mult=[2, 4]: only lists that begin with 1"),
    ({"in_channels": 6}, {}, "in_channels=6 with out_channels=3: a network conditioned by channels"),
    ({"resamp_with_conv": 3}, {}, "option resamp_with_conv=3 is not true or false"),
    ({"attn_resolutions": "x"}, {}, "option attn_resolutions='x' is not a list, each a whole number"),
    ({"chanels": 1}, {}, "unknown option of ddim model 'chanels'"),
    ({}, {"data": {"image_size": 8, "rescaled": False}}, "ddim data option rescaled=False is not supported"),
    (
        {},
        {"data": {"image_size": 8, "logit_transform": True}},
        "option logit_transform=True is not supported",
    ),
    ({}, {"data": {}}, "option data.image_size is absent"),
    ({}, {"diffusion": {"beta_schedule": "jsd"}}, "option beta_schedule='jsd' is not supported"),
    ({}, {"diffusion": [1]}, "section diffusion=[1] is not a mapping"),
    ({}, {"first_stage": {}}, "unknown section of ddim 'first_stage'"),
]


@pytest.mark.parametrize(("model", "sections", "expected"), DDIM_BAD)
def test_a_bad_config_of_ddim_is_one_line(model, sections, expected, tmp_path):
    arrays = frozen("ddim")
    config = json.loads(arrays["config"])
    config = config | {"model": config["model"] | model} | sections
    with pytest.raises(MechdiffError) as error:
        pretrained.read(written(tmp_path, json.dumps(config), arrays["state"]))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_the_noise_levels_of_ddim_are_read_or_said_to_be_assumed(tmp_path):
    arrays = frozen("ddim")
    config = json.loads(arrays["config"])
    for levels, schedule in (
        ({"beta_schedule": "quad", "num_diffusion_timesteps": 100}, "scaled_linear"),
        ({"beta_schedule": "const", "beta_end": "1e-2", "num_diffusion_timesteps": 10}, "betas"),
    ):
        folder = written(tmp_path, json.dumps(config | {"diffusion": levels}), arrays["state"])
        assert pretrained.read(folder).diffusion.schedule == schedule
    assert pretrained.read(folder).diffusion.betas == (0.01,) * 10
    flat = config["model"] | {"resolution": 8}
    del flat["type"]
    model = pretrained.read(written(tmp_path, json.dumps(flat), arrays["state"]))
    assert model.assumed[0] == "noise_schedule='linear'" and "ASSUMED" in model.notes[-1]
    cosine = pretrained.read(tmp_path, Stated(noise_schedule="cosine"))
    assert cosine.assumed == ("noise_steps=1000",)  # its betas are made of nothing else
    stated = Stated(noise_schedule="cosine", noise_steps=50, beta_start=1e-3, beta_end=0.1)
    stated_model = pretrained.read(tmp_path, stated)
    assert (stated_model.diffusion.schedule, stated_model.diffusion.steps) == ("cosine", 50)
    assert stated_model.assumed == ()


def test_every_tensor_of_a_published_size_has_its_place():
    """The CelebA network of ddim at full size, by names alone: 5 levels, attention at 16 pixels."""
    config = {"model": {"ch": 128, "ch_mult": [1, 2, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16]}}
    model, data, _, _ = ddim._sections(config | {"data": {"image_size": 64}})
    table = ddim.names(ddim.unet_config(model, data))
    assert (
        len(set(table.values())) == len(table) == len(tensors.parameter_shapes(ddim.unet_config(model, data)))
    )
    for name in ("down.2.attn.1.q.weight", "mid.block_2.temb_proj.bias", "up.4.upsample.conv.weight"):
        assert name in table.values()
    assert (
        "up.2.attn.2.proj_out.weight" in table.values()
        and "down.4.downsample.conv.weight" not in table.values()
    )
