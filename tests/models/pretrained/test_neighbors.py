"""What lies beside a foreign network: schedulers, averages, variants, latents."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from reference.networks import SMALL, random_params
from safetensors.numpy import load_file, save_file

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import MechdiffError
from mechdiff.models import pretrained
from mechdiff.models.pretrained import Stated, conditioning
from mechdiff.models.pretrained.diffusers import schedulers
from mechdiff.models.pretrained.diffusers.reader import STEM, WEIGHTS
from mechdiff.models.pretrained.files import folders

DIFFUSION = DiffusionConfig(schedule="cosine", steps=40)


@pytest.fixture
def pipeline(tmp_path) -> Path:
    """A saved pipeline: unet/, scheduler/, model_index.json."""
    home = pretrained.write_diffusers(tmp_path / "unet", SMALL, DIFFUSION, random_params(SMALL))
    (tmp_path / "scheduler").mkdir()
    (home / "scheduler_config.json").rename(tmp_path / "scheduler" / "scheduler_config.json")
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"} | parts))
    return tmp_path


def averaged(pipeline: Path) -> None:
    """`unet_ema/` beside `unet/`, its numbers doubled."""
    copy = pipeline / "unet_ema"
    copy.mkdir()
    (copy / "config.json").write_bytes((pipeline / "unet" / "config.json").read_bytes())
    state = {name: 2 * value for name, value in load_file(pipeline / "unet" / WEIGHTS).items()}
    save_file(state, copy / WEIGHTS)


def bias(model) -> np.ndarray:
    return model.params["conv_in"]["conv"]["bias"]


@pytest.mark.parametrize("place", ["", "unet", "unet_ema", "link", "."])
def test_one_scheduler_serves_the_whole_pipeline(pipeline, place, monkeypatch):
    """By whatever path its network is named, and by the name that the index has for it."""
    averaged(pipeline)
    (pipeline / "link").symlink_to(pipeline / "unet_ema")
    (pipeline / "scheduler").rename(pipeline / "noise_scheduler")
    parts = {"noise_scheduler": ["diffusers", "DDPMScheduler"]}
    (pipeline / "model_index.json").write_text(json.dumps(parts))
    if place == ".":
        monkeypatch.chdir(pipeline / "unet")
    model = pretrained.read(place if place == "." else pipeline / place)
    assert model.diffusion == DIFFUSION and model.assumed == ()
    assert any("noise levels are those of" in note for note in model.notes)


@pytest.mark.parametrize(("weights", "factor"), [(None, 1), ("ema", 2)])
@pytest.mark.parametrize("other", ["unet", "train/unet"])
def test_averages_in_a_folder_of_their_own_are_named_and_chosen(pipeline, weights, factor, other):
    averaged(pipeline)
    raw = bias(pretrained.read(pipeline / "unet"))
    (pipeline / "ema").mkdir()
    (pipeline / "unet_ema").rename(pipeline / "ema" / "unet")
    (pipeline / other).parent.mkdir(exist_ok=True)
    (pipeline / "unet").rename(pipeline / other)
    model = pretrained.read(pipeline, Stated(weights=weights))
    np.testing.assert_array_equal(bias(model), factor * raw)
    assert model.diffusion == DIFFUSION
    assert any("unet/ (" in note and "--weights=" in note for note in model.notes)
    if other == "unet":
        (pipeline / "checkpoint-500").mkdir()  # another run's, which the network here goes before
        shutil.copytree(pipeline / "unet", pipeline / "checkpoint-500" / "unet")
        np.testing.assert_array_equal(bias(pretrained.read(pipeline, Stated(weights=weights))), factor * raw)
        assert any("ema/unet/ beside it" in note for note in pretrained.read(pipeline / "unet").notes)


SEVERAL = [  # prefixes of two networks in one file, what is stated, and by which factor the read one differs
    (("generator.", "generator_ema."), "raw", 1),
    (("generator.", "generator_ema."), "ema", 2),
    (("G.", "ema_G."), "raw", 1),
    (("myNet.", "myNetEMA."), "raw", 1),
    (("myNet.", "myNetEMA."), "ema", 2),
    (("model.", "target_model."), "raw", 1),
    (("generator.", "generator_ema."), None, "; say which: --weights=raw or --weights=ema"),
    (
        ("student.", "teacher."),
        None,
        "under 'student.' and 'teacher.'; keep one of them in a file of its own",
    ),
    (("ShadowNet.", "ShadowNet_ema."), "raw", 1),
    (("net.", "shadow."), "ema", 2),
    (("AvgPoolNet.", "net."), None, "say which: --weights=raw, or keep one of them in a file of its own"),
    (("", "_orig_mod."), None, "'_orig_mod.conv_in.bias' and 'conv_in.bias', one tensor of two networks"),
    (("ema_0.999.", "ema_0.9999."), "ema", "'ema_0.999.' and 'ema_0.9999.'; keep one of them in a file of"),
    (
        ("teacher.", "student_ema."),
        "raw",
        "say which: --weights=ema, or keep one of them in a file of its own",
    ),
]


@pytest.mark.parametrize(("prefixes", "weights", "expected"), SEVERAL)
def test_networks_side_by_side_in_one_file_are_told_apart_or_refused(pipeline, prefixes, weights, expected):
    home = pipeline / "unet"
    raw, state = bias(pretrained.read(home)), load_file(home / WEIGHTS)
    both = {f"{prefix}{name}": (1 + i) * state[name] for i, prefix in enumerate(prefixes) for name in state}
    save_file(both, home / WEIGHTS)
    if isinstance(expected, str):
        with pytest.raises(MechdiffError, match=expected):
            pretrained.read(home, Stated(weights=weights))
    else:
        np.testing.assert_array_equal(bias(pretrained.read(home, Stated(weights=weights))), expected * raw)


@pytest.mark.parametrize(("weights", "factor"), [("raw", 1), ("ema", 2)])
def test_averages_whose_names_lost_their_dots_are_read_by_those_of_the_network(pipeline, weights, factor):
    home = pipeline / "unet"
    raw, state = bias(pretrained.read(home)), load_file(home / WEIGHTS)
    averages = {f"model_ema.unet{name.replace('.', '')}": 2 * value for name, value in state.items()}
    counters = {"model_ema.decay": np.float32(0.9), "model_ema.num_updates": np.int32(3)}
    both = {f"model.unet.{name}": value for name, value in state.items()} | averages | counters
    save_file({name: np.asarray(value) for name, value in both.items()}, home / WEIGHTS)
    np.testing.assert_array_equal(bias(pretrained.read(home, Stated(weights=weights))), factor * raw)
    with pytest.raises(MechdiffError, match="say which: --weights=raw or --weights=ema"):
        pretrained.read(home)


@pytest.mark.parametrize(
    ("prefix", "off", "expected"),
    [
        ("model.", 1, ""),
        ("denoise_fn.", 1, ""),
        ("unknown_net.", 1, ""),
        ("", 1, ""),
        ("", 1.5, "alphas_cumprod are 40"),
    ],
)
def test_noise_levels_saved_beside_a_network_must_be_those_of_its_config(pipeline, prefix, off, expected):
    home = pipeline / "unet"
    raw, state = bias(pretrained.read(home)), load_file(home / WEIGHTS)
    signal = np.cos((np.arange(41) / 40 + 0.008) / 1.008 * np.pi / 2) ** 2  # cosine, of 40 steps
    betas = off * np.minimum(1 - signal[1:] / signal[:-1], 0.999 / off)
    tables = {"betas": betas, "alphas_cumprod": np.cumprod(1 - betas), "posterior_mean_coef1": betas}
    kind = ml_dtypes.bfloat16 if prefix == "denoise_fn." else np.float32
    tables = {name: values.astype(kind) for name, values in tables.items()}
    save_file({prefix + name: value for name, value in state.items()} | tables, home / WEIGHTS)
    if expected:
        with pytest.raises(
            MechdiffError, match=f"{expected} from .*; correct the noise levels of the config"
        ):
            pretrained.read(home)
        return
    model = pretrained.read(home)
    np.testing.assert_array_equal(bias(model), raw)
    assert any("noise levels beside the network (" in note for note in model.notes)


def test_averages_that_have_numbers_for_names_are_left_out_if_that_is_stated(pipeline):
    home = pipeline / "unet"
    raw, state = bias(pretrained.read(home)), load_file(home / WEIGHTS)
    numbered = {f"ema.shadow_params.{i}": 2 * value for i, value in enumerate(state.values())}
    save_file(state | numbered, home / WEIGHTS)
    model = pretrained.read(home, Stated(weights="raw"))
    np.testing.assert_array_equal(bias(model), raw)
    assert any("averages under 'ema.shadow_params.0'" in note for note in model.notes)
    for weights in (None, "ema"):
        with pytest.raises(MechdiffError, match=r"numbers for names .* --weights=raw reads the others"):
            pretrained.read(home, Stated(weights=weights))


def test_a_trainers_checkpoint_has_its_scheduler_in_the_run(pipeline):
    averaged(pipeline)
    (pipeline / "checkpoint-9").mkdir()
    for name in ("unet", "unet_ema"):
        (pipeline / name).rename(pipeline / "checkpoint-9" / name)
    assert pretrained.read(pipeline / "checkpoint-9").diffusion == DIFFUSION


def test_raw_and_averaged_weights_are_told_apart(pipeline):
    raw = bias(pretrained.read(pipeline))
    averaged(pipeline)
    model = pretrained.read(pipeline)
    np.testing.assert_array_equal(bias(model), raw)
    assert "read unet/ (raw weights); for unet_ema/ give --weights=ema" in model.notes[0]
    np.testing.assert_array_equal(bias(pretrained.read(pipeline, Stated(weights="ema"))), 2 * raw)
    alone = pretrained.read(pipeline / "unet_ema")
    np.testing.assert_array_equal(bias(alone), 2 * raw)
    assert "unet/ beside it is not read" in alone.notes[0]
    for number in range(6):
        shutil.copytree(pipeline / "unet", pipeline / f"unet_{number}")
    assert "unet_2/ and 3 more beside it" in pretrained.read(pipeline / "unet_ema").notes[0]


@pytest.mark.parametrize(
    ("raw", "ema"),
    [
        *(("unet", "ema_unet"), ("unet", "ema"), ("model", "model_ema"), ("", "ema"), ("unet", "unetEMA")),
        *(("unet_non_ema", "unet"), ("unet_without_ema", "unet"), ("unet-pre-ema", "unet")),
    ],
)
def test_folders_of_both_are_told_apart_by_any_name(pipeline, raw, ema):
    plain = bias(pretrained.read(pipeline))
    averaged(pipeline)
    (pipeline / "unet").rename(pipeline / "aside")
    (pipeline / "unet_ema").rename(pipeline / ema)
    for path in () if raw else (pipeline / "aside").iterdir():
        path.rename(pipeline / path.name)
    if raw:
        (pipeline / "aside").rename(pipeline / raw)
    for weights, factor in (("raw", 1), ("ema", 2)):
        model = pretrained.read(pipeline, Stated(weights=weights))
        np.testing.assert_array_equal(bias(model), factor * plain)
        assert model.diffusion == DIFFUSION
    assert pretrained.read(pipeline / ema).diffusion == DIFFUSION
    assert f"for {raw if ema == 'unet' else ema}/ give" in pretrained.read(pipeline).notes[0]
    (pipeline / "vae").mkdir()
    for place, stated in ((pipeline, Stated(weights="ema")), (pipeline / ema, Stated())):
        with pytest.raises(MechdiffError, match="has a vae: its network lives in the latents"):
            pretrained.read(place, stated)


@pytest.mark.parametrize("name", [f"{STEM}.ema", "model_ema", "ema_0.9999_100"])
def test_a_stated_average_is_the_file_called_one_or_refused(pipeline, name):
    home = pipeline / "unet"
    plain = bias(pretrained.read(home))
    with pytest.raises(
        MechdiffError, match=f"--weights=ema: .*{WEIGHTS} names nothing averaged; leave it out"
    ):
        pretrained.read(pipeline, Stated(weights="ema"))
    save_file(
        {key: 2 * value for key, value in load_file(home / WEIGHTS).items()}, home / f"{name}.safetensors"
    )
    for weights, factor in (("raw", 1), ("ema", 2)):
        np.testing.assert_array_equal(bias(pretrained.read(home, Stated(weights=weights))), factor * plain)
    (home / WEIGHTS).unlink()
    with pytest.raises(MechdiffError, match=r"--weights=raw: .* is the averaged one; leave it out"):
        pretrained.read(home, Stated(weights="raw"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"_class_name": "HeunDiscreteScheduler"}, 0.012), ({"_class_name": None, "beta_end": 0.03}, 0.03)],
)
def test_the_scheduler_is_of_the_class_that_the_index_names(pipeline, changes, expected):
    """With its defaults, which are said to be assumed: diffusers' own files say everything."""
    parts = json.loads((pipeline / "model_index.json").read_text())
    parts["scheduler"][1] = "HeunDiscreteScheduler"
    (pipeline / "model_index.json").write_text(json.dumps(parts))
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({name: value for name, value in changes.items() if value}))
    model = pretrained.read(pipeline)
    assert (model.diffusion.beta_start, model.diffusion.beta_end) == (0.00085, expected)
    assert "ASSUMED, by the scheduler's defaults: beta_schedule='linear'" in model.notes[-1]
    parts["scheduler"][1] = "FlowMatchEulerDiscreteScheduler"
    (pipeline / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(MechdiffError, match="is of flow matching, which is not read; write it as a JAX func"):
        pretrained.read(pipeline)


def test_a_scheduler_that_is_a_link_to_nowhere_is_not_absent(pipeline):
    (pipeline / "unet" / "scheduler_config.json").symlink_to("blobs/none")
    with pytest.raises(MechdiffError, match="is a link to blobs/none, which is absent; fetch that file"):
        pretrained.read(pipeline)


def test_a_link_to_nowhere_behind_a_nearer_scheduler_is_not_needed(pipeline):
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.rename(pipeline / "unet" / "scheduler_config.json")
    path.symlink_to("blobs/none")
    assert pretrained.read(pipeline).diffusion == DIFFUSION


UNRELATED = [  # files, where the network is, whose scheduler is read
    (("cifar_ema/scheduler_config.json", "vae/config.json"), "cifar_ema", "cifar_ema"),
    (("my_unet/scheduler_config.json", "vae/config.json"), "my_unet", "my_unet"),
    (("scheduler/scheduler_config.json",), "cifar_ema", None),
    (("scheduler_config.json",), "cifar_raw", None),
    (("unet-a/scheduler/scheduler_config.json", "vae/config.json"), "unet-a/unet", "unet-a/scheduler"),
    (("unet-a/model_index.json", "vae/config.json"), "unet-a/unet", None),
    (("unet-a/scheduler_config.json", "scheduler/scheduler_config.json"), "unet-a/unet", "unet-a"),
    (("vae/config.json",), "raw/unet", None),
    (("scheduler/scheduler_config.json",), "unet/ema", "scheduler"),
    (("scheduler/scheduler_config.json", "unet/config.json"), "ema_unet", "scheduler"),
    (("scheduler/scheduler_config.json", "config.json"), "ema", "scheduler"),
    (("checkpoint-9/scheduler/scheduler_config.json",), "checkpoint-9/ema", "checkpoint-9/scheduler"),
]


@pytest.mark.parametrize(("paths", "place", "expected"), UNRELATED)
def test_only_a_pipeline_or_a_run_gives_a_network_what_lies_beside_it(tmp_path, paths, place, expected):
    """Not a folder of unrelated networks, nor what lies above a whole pipeline."""
    for path in (tmp_path / path for path in (*paths, f"{place}/config.json")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"from": str(path.parent.relative_to(tmp_path))}))
    found = folders.locate(tmp_path / place)
    assert (found.home, found.scheduler.get("from")) == (tmp_path / place, expected)


def test_a_nearer_scheduler_that_says_otherwise_is_read_and_the_other_named(pipeline):
    near = schedulers.write(DiffusionConfig(), "epsilon")
    (pipeline / "unet" / "scheduler_config.json").write_text(json.dumps(near))
    model = pretrained.read(pipeline)
    assert model.diffusion == DiffusionConfig()
    assert any("says otherwise and was not read" in note for note in model.notes)


def test_of_a_linked_network_the_pipeline_comes_before_the_folder_it_is_kept_in(pipeline):
    run = pipeline / "run"
    run.mkdir()
    (pipeline / "unet").rename(run / "unet-export")
    (pipeline / "unet").symlink_to(run / "unet-export")
    (run / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    model = pretrained.read(pipeline)
    assert model.diffusion == DIFFUSION
    assert any(f"{run / 'scheduler_config.json'} says otherwise" in note for note in model.notes)


@pytest.mark.parametrize(
    ("place", "note"),
    [
        ("unet/ema/{}", "weights without a config lie in ema/; not read"),
        ("unet_ema/{}", "weights without a config lie in unet_ema/; not read"),
        ("unet/ema_model.safetensors", "beside it, not read: ema_model.safetensors"),
        ("unet/ema.pt", "pickles, which are never opened, may hold other weights than {}: ema.pt"),
        ("unet/flags.txt", "described by config.json; beside it, not read: flags.txt"),
    ],
)
def test_what_lies_beside_a_network_and_is_not_read_is_named(pipeline, place, note):
    path = pipeline / place.format(WEIGHTS)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((pipeline / "unet" / WEIGHTS).read_bytes())
    assert any(note.format(WEIGHTS) in line for line in pretrained.read(pipeline).notes)


def test_a_variant_beside_a_pickle_of_the_usual_name_is_asked_about(pipeline):
    home = pipeline / "unet"
    (home / WEIGHTS).rename(home / f"{STEM}.non_ema.safetensors")
    (home / f"{STEM}.bin").write_bytes(b"PK")
    with pytest.raises(MechdiffError, match=f"{STEM}.bin, a pickle, .* may be two networks"):
        pretrained.read(pipeline)
    assert any("non_ema" in note for note in pretrained.read(pipeline, Stated(weights="raw")).notes)


def test_files_of_a_trainer_and_a_pickle_of_the_same_name_are_passed_over(pipeline):
    for name in ("optimizer.pt", "scheduler.bin", "random_states_0.pkl", f"{STEM}.bin"):
        (pipeline / "unet" / name).write_bytes(b"PK")
    assert not any("pickles" in note for note in pretrained.read(pipeline).notes)


@pytest.mark.parametrize("name", ["vae", "vqvae", "movq"])
@pytest.mark.parametrize("place", ["", "unet"])
def test_networks_in_latents_are_refused(pipeline, name, place):
    (pipeline / name).mkdir()
    with pytest.raises(MechdiffError, match=f"has a {name}: its network lives in the latents"):
        pretrained.read(pipeline / place)


def test_networks_in_latents_are_refused_by_the_index_alone(pipeline):
    parts = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps(parts | {"first": ["diffusers", "VQModel"]}))
    with pytest.raises(MechdiffError, match="has a first: its network lives in the latents"):
        pretrained.read(pipeline / "unet")


def test_variants_are_chosen_not_guessed(pipeline):
    home = pipeline / "unet"
    state = load_file(home / WEIGHTS)
    half = {name: value.astype(np.float16) for name, value in state.items()}
    save_file(half, home / f"{STEM}.fp16.safetensors")
    save_file({name: 3 * value for name, value in state.items()}, home / f"{STEM}.non_ema.safetensors")
    model = pretrained.read(pipeline)
    assert model.dtype == "float32" and any(f"{STEM}.fp16.safetensors" in note for note in model.notes)
    assert pretrained.read(pipeline, Stated(weights="fp16")).dtype == "float16"
    np.testing.assert_allclose(bias(pretrained.read(pipeline, Stated(weights="raw"))), 3 * bias(model))
    with pytest.raises(MechdiffError, match=r"no such variant in .* \(have: fp16, non_ema\)"):
        pretrained.read(pipeline, Stated(weights="int8"))
    (home / WEIGHTS).unlink()
    with pytest.raises(MechdiffError, match="choose by --weights=NAME"):
        pretrained.read(pipeline)
    (home / f"{STEM}.non_ema.safetensors").unlink()
    only = pretrained.read(pipeline)
    assert only.dtype == "float16" and any("the only weights there" in note for note in only.notes)


def test_statements_fill_what_is_open_and_may_not_contradict(pipeline):
    with pytest.raises(MechdiffError, match="--noise_schedule='linear' contradicts scheduler option"):
        pretrained.read(pipeline, Stated(noise_schedule="linear"))
    assert pretrained.read(pipeline, Stated(noise_schedule="cosine", noise_steps=40)).diffusion == DIFFUSION
    (pipeline / "scheduler" / "scheduler_config.json").unlink()
    stated = Stated(noise_schedule="cosine", noise_steps=40, prediction="sample")
    model = pretrained.read(pipeline, stated)
    assert (model.diffusion, model.unet.prediction, model.assumed) == (DIFFUSION, "sample", ())
    partly = pretrained.read(pipeline, Stated(prediction="sample"))
    assert [name.split("=")[0] for name in partly.assumed] == [
        *("noise_schedule", "noise_steps", "beta_start", "beta_end")
    ]


@pytest.mark.parametrize(
    ("parts", "way_out"),
    [
        (("base_layer.weight", "lora_A.default.weight"), "merge_and_unload"),
        (
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            "remove_parametrizations",
        ),
        (("weight_mask", "weight_orig"), r"prune\.remove"),
        (("weight_orig", "weight_u", "weight_v"), "remove_spectral_norm"),
        (("weight_g", "weight_v"), "remove_weight_norm"),
    ],
)
def test_weights_in_parts_are_refused_with_what_makes_them_whole(pipeline, parts, way_out):
    file = pipeline / "unet" / WEIGHTS
    state = load_file(file)
    weight = state.pop("conv_in.weight")
    save_file(state | {f"conv_in.{part}": weight for part in parts}, file)
    with pytest.raises(MechdiffError, match=rf"conv_in\.{parts[0]}.*{way_out}"):
        pretrained.read(pipeline)


@pytest.mark.parametrize("way_out", ["last", "first"])
def test_a_condition_beside_variances_is_said_to_need_a_statement(way_out):
    with pytest.raises(MechdiffError, match="learned variances: state --condition=last or first"):
        conditioning.channels("X", 6, 6)
    assert conditioning.channels("X", 6, 6, way_out) == conditioning.Channels(3, 3, way_out, True)
