"""Foreign checkpoints: folders that can't be read, the round trip, and a sweep against hooks in PyTorch."""

import json

import jax
import numpy as np
import pytest
from reference.launching import launch
from reference.networks import random_params
from reference.torch_unets import GATED, reference
from safetensors.numpy import load_file, save_file

from mechdiff.core.config import DiffusionConfig, SweepConfig, UNetConfig, from_dict, to_dict
from mechdiff.core.errors import ConfigError, MechdiffError
from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, predict_x0
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.models import pretrained
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.pretrained.diffusers import reader as diffusers
from mechdiff.models.pretrained.files import tensors
from mechdiff.storage import exported
from mechdiff.storage.mismatch import named_leaves
from mechdiff.sweeps.ablation import ablation_sweep

WEIGHTS = diffusers.WEIGHTS
TINY = preset("tiny").unet
DIFFUSION = DiffusionConfig(schedule="scaled_linear", steps=40, beta_start=0.001, beta_end=0.1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tiny network of ours as a diffusers folder, and its parameters."""
    params = random_params(TINY)
    return pretrained.write_diffusers(tmp_path_factory.mktemp("theirs"), TINY, DIFFUSION, params), params


@pytest.fixture
def copied(written, tmp_path):
    """The same folder, to be spoilt."""
    for path in written[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def same(a, b) -> bool:
    a, b = named_leaves(a), named_leaves(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize(
    "unet",
    [
        TINY,
        UNetConfig(
            **{"image_size": 8, "widths": (8, 16), "norm_groups": 4, "heads": (1, 1), "dropout": 0.1},
            **{"down_attention": (True, False), "up_attention": (False, True), "down_padding": 0},
            **{"time_scale_shift": True, "time_width_factor": 2, "flip_sin_to_cos": True, "norm_eps": 1e-5},
            **{"frequency_shift": 0.0, "resample_blocks": True, "prediction": "sample", "in_channels": 1},
            **{
                "out_channels": 1,
                "sample_clip": 2.5,
                "mid_attention": False,
                "center_input": True,
                "blocks_per_level": 2,
            },
        ),
        UNetConfig(
            **{"image_size": 8, "widths": (8, 8, 16), "norm_groups": 4, "heads": (1, 1, 2), "head_width": 6},
            **{"down_resample_blocks": (False, True, False), "up_resample_blocks": (False, True, True)},
            **{"mid_norm_groups": 0, "time_scale_shift": True, "mid_output_scale": 1.5, "time_width": 20},
        ),
        UNetConfig(
            **{"image_size": 4, "widths": (4, 4), "norm_groups": 2, "heads": (1, 1), "activation": "gelu"},
            **{"down_attention": (False, False), "up_attention": (False, True)},
            **{"middle": False, "mid_attention": False},
        ),
    ],
)
def test_the_round_trip_through_diffusers_is_bitwise(unet, tmp_path):
    params = random_params(unet)
    result = pretrained.read(pretrained.write_diffusers(tmp_path, unet, DIFFUSION, params))
    attends = [a or b for a, b in zip(unet.down_attention, unet.up_attention, strict=True)]
    attends[-1] |= unet.mid_attention
    heads = tuple(
        h if here else 1 for h, here in zip(unet.heads, attends, strict=True)
    )  # elsewhere heads mean nothing
    assert to_dict(result.unet) == {**to_dict(unet), "heads": heads}
    assert result.diffusion == DIFFUSION
    assert same(result.params, params)
    assert (result.dtype, result.notes, result.assumed) == ("float32", (), ())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_numbers_are_widened_exactly_and_their_type_is_kept(copied, dtype):
    kind = np.dtype(jax.numpy.dtype(dtype))
    expected = {k: v.astype(kind) for k, v in load_file(copied / WEIGHTS).items()}
    save_file(expected, copied / WEIGHTS)
    result = pretrained.read(copied)
    params = tensors.to_params(expected, diffusers.names(TINY), TINY, "")
    assert result.dtype == dtype
    assert same(result.params, params)
    folder = exported.export_model(copied / "model", result.params, {}, {}, dtype=dtype)
    assert same(jax.device_get(exported.load_model(folder)[0]), params)


def test_float64_is_rounded_to_float32(copied):
    plain = pretrained.read(copied)
    wide = {name: value.astype(np.float64) for name, value in load_file(copied / WEIGHTS).items()}
    save_file(wide, copied / WEIGHTS)
    result = pretrained.read(copied)
    assert result.dtype == "float32" and same(result.params, plain.params)


def test_attention_may_have_the_names_of_old_versions(copied, written):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for name in [name for name in state if ".attentions." in name]:
            value = state.pop(name)
            for new, before in old.items():
                name = name.replace(f".{new}.", f".{before}.")
            state[name] = value

    change_tensors(copied, rename)
    assert any("proj_attn" in name for name in load_file(copied / WEIGHTS))
    assert same(pretrained.read(copied).params, written[1])


def test_a_saved_pipeline_and_a_folder_without_a_scheduler_are_read(copied, written):
    (copied / "scheduler").mkdir()
    (copied / "unet").mkdir()
    (copied / "scheduler_config.json").rename(copied / "scheduler" / "scheduler_config.json")
    for name in ("config.json", WEIGHTS):
        (copied / name).rename(copied / "unet" / name)
    assert pretrained.read(copied).diffusion == DIFFUSION
    alone = pretrained.read(copied / "unet")
    assert alone.diffusion == DIFFUSION and "noise levels are those of" in alone.notes[0]  # one folder up
    assert same(alone.params, written[1])
    (copied / "scheduler" / "scheduler_config.json").unlink()
    alone = pretrained.read(copied / "unet")
    assert alone.diffusion == DiffusionConfig() and "ASSUMED" in alone.notes[0]
    assert "noise_schedule='linear'" in alone.assumed


def shard(folder, places=None, **index):
    """The weights in two files with an index, as diffusers and transformers shard them."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [shard_name(1), shard_name(2)]
    placed = {tensor: names[i % 2] for i, tensor in enumerate(sorted(state))}
    for name in names:
        save_file({tensor: state[tensor] for tensor in state if placed[tensor] == name}, folder / name)
    listing = {"metadata": {}, "weight_map": placed | (places or {})} | index
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(listing))
    return names


def test_a_model_in_shards_is_the_model(copied, written):
    names = shard(copied)
    result = pretrained.read(copied)
    assert same(result.params, written[1]) and result.dtype == "float32"
    (copied / names[1]).rename(copied.parent / names[1])
    with pytest.raises(MechdiffError, match=f"{names[1]} is absent"):
        pretrained.read(copied)


def shard_name(number):
    return f"{WEIGHTS.removesuffix('.safetensors')}-{number}-of-2.safetensors"


def escaping(place):
    return lambda folder: shard(folder, {"conv_in.bias": place})


def beside_shards(folder):
    whole = (folder / WEIGHTS).read_bytes()
    shard(folder)
    (folder / WEIGHTS).write_bytes(whole)


def drop(folder):
    change_tensors(folder, lambda state: state.pop("conv_in.bias"))


def add(folder):
    change_tensors(folder, lambda state: state.update(extra=np.zeros(2, np.float32)))


def reshape(folder):
    change_tensors(folder, lambda state: state.update({"conv_in.bias": np.zeros(9, np.float32)}))


def pickled(folder):
    (folder / WEIGHTS).write_bytes(b"\x80\x02}q\x00.")


def only_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")


def truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def both_names(folder):
    def add(state):
        name = next(name for name in state if name.endswith("attentions.0.to_q.weight"))
        state[name.replace("to_q", "query")] = 2 * state[name]

    change_tensors(folder, add)


def integers(folder):
    save_file({"conv_in.bias": np.zeros(8, np.int64)}, folder / WEIGHTS)


def option(**changes):
    return lambda folder: change_json(folder / "config.json", **changes)


def scheduler(**changes):
    return lambda folder: change_json(folder / "scheduler_config.json", **changes)


BAD = [
    (lambda folder: (folder / "config.json").unlink(), "config.json: no such file or folder"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is absent"),
    (only_pickle, "diffusion_pytorch_model.bin is a pickle, which can run code and is never opened here"),
    (pickled, f"{WEIGHTS} is a pickle"),
    (truncate, f"{WEIGHTS} is damaged"),
    (integers, "'conv_in.bias' has numbers of type I64; supported: F64, F32, F16, BF16"),
    (both_names, "attentions.0.to_q.weight twice, differently, by its old name too; delete one"),
    (escaping("../other.safetensors"), "in '../other.safetensors'; only .safetensors files beside it are"),
    (escaping("/etc/other.safetensors"), "in '/etc/other.safetensors'; only .safetensors files beside it"),
    (escaping("model.bin"), "places conv_in.bias in 'model.bin'; only .safetensors files beside it are read"),
    (escaping(None), "places conv_in.bias in None; only .safetensors files beside it are read"),
    (lambda folder: shard(folder, weight_map={}), "has no weight_map of tensors to files"),
    (lambda folder: shard(folder, {"extra": shard_name(1)}), "differ: 1 only in one of them: extra"),
    (beside_shards, f"has {WEIGHTS} and shards ({WEIGHTS}.index.json), which may be two networks"),
    (drop, "does not fit its config: 1 missing: conv_in.bias"),
    (add, "does not fit its config: 1 unused: extra"),
    (reshape, "does not fit its config: 1 wrong shapes: conv_in.bias (9,), not (8,)"),
    (
        option(atention_head_dim=8),
        "unknown option of UNet2DModel 'atention_head_dim'; closest: attention_head",
    ),
    (option(foo=8, bar_dim=9), "; unknown too: 'bar_dim'"),
    (option(time_embedding_type="fourier"), "option time_embedding_type='fourier' is not supported"),
    (option(num_class_embeds=10), "1 missing: class_embedding.weight"),
    (
        option(num_class_embeds="10"),
        "option num_class_embeds='10' is not a whole number of at least 1 or null",
    ),
    (option(class_embed_type="projection"), "option class_embed_type='projection' is not supported"),
    (option(act_fn="elu"), "option act_fn='elu' is not supported; only 'silu' or 'swish' or 'relu' or"),
    (option(mid_block_scale_factor=0), "unet.mid_output_scale=0.0 is out of range"),
    (
        option(down_block_types=["SkipDownBlock2D", "DownBlock2D"]),
        "down_block_types='SkipDownBlock2D' is not",
    ),
    (option(down_block_types=["DownBlock2D"]), "options down_block_types and block_out_channels differ"),
    (option(attn_norm_num_groups=3), "option attn_norm_num_groups=3 does not divide 16 channels"),
    (option(attention_head_dim=17), "option attention_head_dim=17 leaves no head in 16 channels, which diff"),
    (option(sample_size=[8, 16]), "option sample_size=[8, 16] is not supported"),
    (option(in_channels=6), "in_channels=6 with out_channels=3: a network conditioned by channels"),
    (option(in_channels=4, out_channels=4), "in_channels=4 with out_channels=4 is not supported; images"),
    (option(out_channels=4), "option out_channels=4 is not supported; only 3, or 6 with learned variances"),
    (option(flip_sin_to_cos="False"), "option flip_sin_to_cos='False' is not true or false"),
    (option(layers_per_block="2"), "option layers_per_block='2' is not a whole number of at least 1"),
    (option(block_out_channels="8,16"), "option block_out_channels='8,16' is not a list, each a whole"),
    (option(dropout=None), "option dropout=None is not a number of at least 0"),
    (option(norm_eps=float("nan")), "option norm_eps=nan is not a number"),
    (option(norm_num_groups=0), "option norm_num_groups=0 is not a whole number of at least 1"),
    (option(norm_num_groups=3), "option norm_num_groups=3 does not divide"),
    (option(down_block_types=[["DownBlock2D"]] * 9), "option down_block_types=[['DownBlock2D'], "),
    (option(act_fn="x" * 20_000), "option act_fn='xxx"),
    (option(**{"x" * 20_000: 1}), "unknown option of UNet2DModel 'xxx"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json: "),
    (lambda folder: (folder / "config.json").write_text("[1, 2]"), "config.json holds [1, 2], not options"),
    (lambda folder: (folder / "vqvae").mkdir(), "has a vqvae: its network lives in the latents of that"),
    (option(time_embedding_dim=9), "wrong shapes: down_blocks.0.resnets.0.time_emb_proj.weight"),
    (option(_class_name="UNet2DConditionModel"), "describes UNet2DConditionModel; supported: diffusers'"),
    (scheduler(beta_schedule="quad"), "scheduler option beta_schedule='quad' is not supported"),
    (scheduler(beta_schedule=["linear"]), "scheduler option beta_schedule=['linear'] is not one of"),
    (scheduler(trained_betas=[0.1]), "option trained_betas has 1 numbers, num_train_timesteps=40"),
    (
        scheduler(trained_betas=["x"] * 9999),
        "option trained_betas=['x', 'x', 'x', 'x', 'x', 'x', ...] is not a list",
    ),
    (scheduler(num_train_timesteps="40"), "option num_train_timesteps='40' is not a whole number"),
    (scheduler(beta_end=None), "option beta_end=None is not a number of at least 0"),
    (scheduler(clip_sample="no"), "option clip_sample='no' is not true or false"),
    (scheduler(variance_type="learned_range"), "variances are learned, but UNet2DModel has out_channels=3"),
    (scheduler(prediction_type="flow_prediction"), "option prediction_type='flow_prediction' is not supp"),
    (scheduler(use_flow_sigmas=True), "option use_flow_sigmas=True is not supported"),
    (scheduler(_class_name="KarrasVeScheduler"), "'KarrasVeScheduler' has continuous noise levels"),
    (scheduler(_class_name="FlowMatchEulerDiscreteScheduler"), "is of flow matching, which is not read"),
    (scheduler(_class_name=7), "unknown class of scheduler (of those with betas) '7'"),
]


@pytest.mark.parametrize(("spoil", "expected"), BAD)
def test_a_bad_folder_is_one_line_that_names_what_is_wrong(copied, spoil, expected):
    spoil(copied)
    with pytest.raises(MechdiffError) as error:  # launchers print it and end with exit code 2
        pretrained.read(copied)
    line = str(error.value).replace(str(copied), "")
    assert expected in line and "\n" not in line and len(line) < 500


def test_the_launcher_ends_with_exit_code_2_and_leaves_nothing(copied, capsys):
    truncate(copied)
    assert launch("import_checkpoint", f"--from={copied}", f"--to={copied / 'ours'}") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {copied / WEIGHTS} is damaged") and err.count("\n") == 1
    assert not (copied / "ours").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"widths": (8, 16), "heads": (2, 2)}, "has one attention_head_dim for all levels"),
        ({"widths": (8, 8), "heads": (2, 2), "resample_conv": False}, "unet.resample_conv=False"),
        ({"widths": (8, 8), "heads": (2, 2), "frequency_shift": 0.5}, "unet.frequency_shift=0.5"),
        (
            {"widths": (8, 8), "heads": (2, 2), "head_width": 3, "mid_norm_groups": 0},
            "unet.mid_norm_groups=0",
        ),
        ({"widths": (8, 8), "heads": (2, 2), "head_width": 5}, "head_width=5 with unet.heads"),
        (
            {
                "widths": (8, 8),
                "heads": (2, 2),
                "down_resample_blocks": (True, False),
                "resample_conv": False,
            },
            "unet.resample_conv=False",
        ),
    ],
)
def test_a_network_that_diffusers_has_no_options_for_is_not_written(changes, expected, tmp_path):
    both = {"down_attention": (True, True), "up_attention": (True, True), "norm_groups": 4, "image_size": 8}
    with pytest.raises(ConfigError, match=expected):
        pretrained.write_diffusers(tmp_path / "new", UNetConfig(**both, **changes), DIFFUSION, {})
    assert not (tmp_path / "new").exists()


def test_an_imported_model_is_like_a_trained_one_and_goes_out_again(written, tmp_path, capsys):
    theirs, params = written
    few = ("--samples=1", "--steps=2", "--json")
    assert launch("import_checkpoint", f"--from={theirs}", f"--to={tmp_path}", *few) == 0
    out, err = capsys.readouterr()
    assert err.startswith("diffusers: 0.0 M parameters, stored as float32\n")
    assert err.endswith(f"{tmp_path / 'model'}\n")
    assert json.loads(out)["result"]["model"] == str(tmp_path / "model")
    config, record = exported.load_model(tmp_path / "model")[1:]
    assert from_dict(config).unet == pretrained.read(theirs).unet and from_dict(config).data.name == "unknown"
    assert record["imported"]["layout"] == "diffusers"
    assert (tmp_path / "model" / "samples.png").read_bytes().startswith(b"\x89PNG")
    back = tmp_path / "back"
    assert launch("export_checkpoint", f"--model={tmp_path / 'model'}", f"--to={back}", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["result"] == {"folder": str(back)} and err == f"{back}\n"
    assert (tmp_path / "back" / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert same(pretrained.read(tmp_path / "back").params, params)


def test_a_sweep_of_an_imported_model_is_the_ablation_by_hooks_in_torch(tmp_path):
    """Every component: the mean squared change of the output, and the loss, of frozen outputs in PyTorch.

    The images are chosen so that the sweep's noised inputs are those that PyTorch was given.
    """
    config, params, _, frozen = reference(GATED)
    schedule, key = linear_schedule(), jax.random.key(0)
    results = pretrained.read(pretrained.write_diffusers(tmp_path, config, DiffusionConfig(), params))

    @jax.jit
    def noise_and_images(x, t):
        noise = image_noise(key, np.arange(2), x.shape[1:])
        return noise, predict_x0(schedule, x, t, noise)

    noise, images = map(np.asarray, noise_and_images(frozen["x"], frozen["t"]))
    denoiser = Denoiser("imported", results.unet, results.schedule, results.params, reference(GATED)[2])
    run = SweepConfig(ablations=("zero",), images=2, image_block=2)
    result = ablation_sweep(denoiser, EvalSet(images, frozen["t"], key), tmp_path / "sweep", config=run)
    assert result.sizes["component"] == sum(name.startswith("ablated/") for name in frozen)
    mean_square = lambda a: np.mean(np.square(a), axis=(1, 2, 3), dtype=np.float64)
    for name in result["component"].values:
        ablated = frozen[f"ablated/{name}"]
        single = result.sel(component=name, ablation="zero")
        change, loss = (
            np.diagonal(single[field].values) for field in ("change", "loss")
        )  # image i at its own t
        np.testing.assert_allclose(change, mean_square(ablated - frozen["output"]), rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(loss, mean_square(ablated - noise), rtol=1e-4)
