"""Kinds of inputs that were once misread or ended in a traceback: refused in one short line, or read."""

import json

import jax
import numpy as np
import pytest
from reference.networks import SMALL, random_params
from safetensors.numpy import load_file, save_file

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import ConfigError, MechdiffError
from mechdiff.models import load, pretrained
from mechdiff.models.pretrained import Stated
from mechdiff.models.pretrained.diffusers import schedulers
from mechdiff.models.pretrained.diffusers.reader import STEM, WEIGHTS
from mechdiff.models.pretrained.files import configs

MAX_LENGTH = 300  # characters of a refusal


@pytest.fixture
def folder(tmp_path):
    """A UNet2DModel, its scheduler beside it."""
    return pretrained.write_diffusers(
        tmp_path / "net", SMALL, DiffusionConfig(steps=40), random_params(SMALL)
    )


def tensors(change):
    """The tensors, changed."""
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def option(name, file="config.json", **changes):
    def spoil(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return pytest.param(spoil, name, {}, id=name)


def scheduler(name, **changes):
    return option(name, "scheduler_config.json", **changes)


def first(state, value):
    name = next(iter(state))
    return state | {name: np.full_like(state[name], value)}


def moved(name):
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def shards(folder):
    for number in (1, 2):
        save_file(load_file(folder / WEIGHTS), folder / f"{STEM}-0000{number}-of-00002.safetensors")
    (folder / WEIGHTS).unlink()


def adapter(folder):
    save_file({"unet.lora_A.weight": np.zeros((2, 2))}, folder / "pytorch_lora_weights.safetensors")


def linked(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("nowhere")


def inside(folder):
    (folder / "checkpoint-9").mkdir()
    (folder / "config.json").rename(folder / "checkpoint-9" / "config.json")


def pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")


def twice(folder):
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel", "dropout": 0, "dropout": 1}')


def nothing(folder):
    pass


REFUSED = [
    option("unet.image_size=1073741824 is out of range", sample_size=2**30),
    option("unet.widths=1073741824 is out of range", block_out_channels=[2**30], time_embedding_dim=None),
    option("num_class_embeds=1e+30 is not a whole number", num_class_embeds=1e30),
    option("1 missing: class_embedding.weight", num_class_embeds=10**9),
    option("unet.time_width_factor=250000000 is out of range", time_embedding_dim=2 * 10**9),
    option("unet.norm_eps=1e+300 is out of range", norm_eps=1e300),
    option("each the name of a kind of block", down_block_types=[1]),
    scheduler("option num_train_timesteps=1000000000 is not a whole number of at least 2 and at most",
              num_train_timesteps=10**9),
    scheduler("is not one of 'linear', 'scaled_linear', 'squaredcos_cap_v2', 'sigmoid', ", beta_schedule=[1]),
    scheduler("unknown class of scheduler (of those with betas) '5'; choose from: DDPM", _class_name=5),
    (tensors(lambda state: first(state, np.nan)), "holds NaN or Inf: 1 tensors: conv_in.bias", {}),
    (tensors(lambda state: first(state, np.inf)), "holds NaN or Inf", {}),
    (lambda folder: option("", out_channels=6).values[0](folder),
     "conv_out.weight has 3 output channels, but its config says 6, with learned variances; write 3", {}),
    (tensors(lambda state: {f"ema_model.{k}": v for k, v in state.items()}), "holds averages only, under",
     {"weights": "raw"}),
    (tensors(lambda state: {"unet.lora_A.weight": state["conv_in.bias"]}), "adapters", {}),
    (moved(f"{STEM}.bin"), "is a pickle, which can run code and is never opened here", {}),
    (lambda folder: (moved(f"{STEM}.bin")(folder), adapter(folder)), f"{STEM}.bin is a pickle", {}),
    (lambda folder: ((folder / WEIGHTS).unlink(), adapter(folder)), f"{WEIGHTS} is absent", {}),
    (moved(f"{STEM}.msgpack"), f"there lies config.json, {STEM}.msgpack", {}),
    (shards, f"2 shards without {STEM}.safetensors.index.json", {}),
    (linked, "is a link to nowhere, which is absent", {}),
    (pointer, "is a pointer of Git LFS", {}),
    (twice, "sets 'dropout' twice, differently", {}),
    (inside, "networks are described in checkpoint-9: name one of these folders", {}),
    (nothing, "--dialect has no effect on a network of UNet2DModel", {"dialect": "guided-diffusion"}),
    (nothing, "--rescale_timesteps has no effect", {"rescale_timesteps": False}),
    (lambda folder: (folder / "scheduler_config.json").unlink(), "--beta_end has no effect on a cosine",
     {"noise_schedule": "cosine", "beta_end": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "expected", "stated"), REFUSED)
def test_a_refusal_is_one_short_line(folder, spoil, expected, stated):
    spoil(folder)
    with pytest.raises(MechdiffError) as error:
        pretrained.read(folder, Stated(**stated))
    line = str(error.value).replace(str(folder), "FOLDER")
    assert expected in line and "\n" not in line and len(line) <= MAX_LENGTH


@pytest.mark.parametrize("prefix", ["denoiser.", "_forward_module.", "module.model._orig_mod."])
def test_one_network_is_read_whatever_wraps_it(folder, prefix):
    plain = pretrained.read(folder).params["conv_in"]["conv"]["bias"]
    tensors(lambda state: {prefix + name: value for name, value in state.items()})(folder)
    model = pretrained.read(folder)
    np.testing.assert_array_equal(model.params["conv_in"]["conv"]["bias"], plain)
    assert any("read the tensors under" in note for note in model.notes)


@pytest.mark.parametrize("inner", ["module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_what_wraps_a_part_of_a_network_changes_no_tensor(folder, inner):
    plain = pretrained.read(folder).params
    tensors(lambda state: {k.replace("resnets.0.", f"resnets.0.{inner}"): v for k, v in state.items()})(
        folder
    )
    jax.tree.map(np.testing.assert_array_equal, pretrained.read(folder).params, plain)


@pytest.mark.parametrize("name", ["training_options.json", "CONFIG.JSON", "args.txt"])
def test_the_only_file_that_may_describe_a_network_is_read(tmp_path, name):
    for other in (
        "model_index.json",
        "scheduler_config.json",
        f"{STEM}.safetensors.index.json",
        "README.txt",
    ):
        (tmp_path / other).write_text("{}")
    (tmp_path / name).write_text('{"dim": 8}' if "json" in name.lower() else "--dim 8")
    path = configs.config_file(tmp_path)
    assert path.name == name and int(configs.read_config(path)["dim"]) == 8


def test_options_as_weights_and_biases_saves_them_are_read_by_their_values(tmp_path):
    remarks = "_wandb: {desc: null, value: {cli: 1}}\nwandb_version: 1\n"
    (tmp_path / "config.yaml").write_text(f"{remarks}dim: {{desc: null, value: 8}}\nlr: {{value: 1}}\n")
    assert configs.read_config(tmp_path / "config.yaml") == {"dim": 8, "lr": 1}
    (tmp_path / "config.yaml").write_text("dim: {value: 8}\nlr: 1\n")  # a section of that name
    assert configs.read_config(tmp_path / "config.yaml") == {"dim": {"value": 8}, "lr": 1}


def test_yaml_may_merge_defaults_but_not_set_a_name_twice(tmp_path):
    (tmp_path / "config.yaml").write_text("base: &base {a: 1, b: 2}\nown:\n  <<: *base\n  b: 3\n")
    assert configs.read_config(tmp_path / "config.yaml")["own"] == {"a": 1, "b": 3}
    (tmp_path / "config.yaml").write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(ConfigError, match="sets 'c' twice, differently"):
        configs.read_config(tmp_path / "config.yaml")


def test_zero_terminal_snr_changes_no_level_but_the_last():
    """Lin et al. 2024, algorithm 1, of 1000 linear betas, whose second to last is fainter than 2^-24."""
    betas = np.linspace(1e-4, 0.02, 1000)
    signal = np.sqrt(np.cumprod(1 - betas))
    expected = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    bar = np.cumprod(1 - schedulers.zero_terminal_snr(betas))
    np.testing.assert_allclose(bar[:-1], expected[:-1], rtol=1e-9)
    assert 0 < bar[-1] < bar[-2] < 2.0**-24
    schedulers.read({"rescale_betas_zero_snr": True})


def test_noise_levels_that_no_file_says_are_asked_for(folder):
    """The network itself can be read; what would use its noise levels is refused."""
    (folder / "scheduler_config.json").unlink()
    model = pretrained.read(folder)
    line = "--noise_schedule='linear' --noise_steps=1000 --prediction='epsilon' is usual"
    assert line in model.asks and model.facts["asks"] == model.asks
    with pytest.raises(ConfigError, match="NET: no scheduler_config"):
        load.check_stated({load.IMPORTED: model.facts}, "NET")
    told = pretrained.read(folder, Stated(noise_schedule="linear", noise_steps=1000, prediction="epsilon"))
    assert (
        told.asks == ""
        and "asks" not in told.facts
        and told.assumed == ("beta_start=0.0001", "beta_end=0.02")
    )
