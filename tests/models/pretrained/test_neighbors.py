"""What lies beside a foreign network: schedulers, averages, variants, latents; and configs in any format."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference.networks import SMALL, random_params
from safetensors.numpy import load_file, save_file

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models import pretrained
from mechdiff.models.pretrained import Stated, adm_options, command_lines, configs, folders, schedulers
from mechdiff.models.pretrained.diffusers import STEM, WEIGHTS

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
    tables = {name: values.astype(np.float32) for name, values in tables.items()}
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
    ("options", "clip", "note"),
    [
        ({"sample_max_value": 1.0, "clip_sample": False}, 1, "sample_max_value=1 clips predicted images to"),
        ({"clip_sample": True, "clip_sample_range": 3}, 1, "sample_max_value=1 clips predicted images to"),
        ({"sample_max_value": 4.0, "clip_sample": False}, 1, "samples are not thresholded here"),
        ({"sample_max_value": None}, 1, "samples are not thresholded here"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "sample_max_value": 2.5},
            1,
            "are not thresholded here",
        ),
        ({"_class_name": "TCDScheduler", "sample_max_value": 2.5}, 0, "without bearing here: thresholding"),
    ],
)
def test_thresholding_takes_the_place_of_clipping_and_is_said(options, clip, note):
    """As `step` of diffusers 0.42: `if thresholding: ... elif clip_sample: ...`; TCD reads neither."""
    read = schedulers.read(options | {"thresholding": True, "dynamic_thresholding_ratio": 0.9})
    assert read.clip == clip and any(note in line for line in read.notes)
    assert ("without bearing" in note) == any("without bearing" in line for line in read.notes)
    plain = schedulers.read(options | {"thresholding": False})
    assert not any("threshold" in line or "without bearing" in line for line in plain.notes)


def test_clipping_is_what_the_scheduler_says():
    assert schedulers.read({"clip_sample": False}).clip == 0
    assert schedulers.read({"clip_sample": True, "clip_sample_range": 2}).clip == 2
    assert schedulers.read({}).clip == schedulers.read({"_class_name": "DDIMScheduler"}).clip == 1
    for name in ("PNDM", "LCM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        options = {"_class_name": f"{name}Scheduler"}
        assert schedulers.read(options).clip == 0
        assert schedulers.read(options | {"clip_sample": True}).clip == 1  # made from one that clips


def test_every_class_with_betas_has_its_own_defaults():
    assert schedulers.read({"_class_name": "EulerDiscreteScheduler"}).diffusion == DiffusionConfig()
    lcm = schedulers.read({"_class_name": "LCMScheduler"}).diffusion
    assert (lcm.schedule, lcm.beta_start, lcm.beta_end) == ("scaled_linear", 0.00085, 0.012)


def test_before_there_were_prediction_types():
    assert schedulers.read({"predict_epsilon": False}).prediction == "sample"
    with pytest.raises(MechdiffError, match="contradict each other; leave out the one that is wrong"):
        schedulers.read({"predict_epsilon": False, "prediction_type": "epsilon"})


def test_trained_betas_are_the_noise_levels():
    betas = [0.1, 0.2, 0.3]
    diffusion = schedulers.read({"trained_betas": betas, "num_train_timesteps": 3}).diffusion
    np.testing.assert_allclose(
        make_schedule(diffusion).alphas_bar, np.cumprod(1 - np.array(betas)), rtol=1e-6
    )
    assert schedulers.read(schedulers.write(diffusion, "epsilon")).diffusion == diffusion


@pytest.mark.parametrize("named", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_rescaled_betas_end_without_signal(named):
    """Against algorithm 1 of Lin et al. 2024 in float64; the last level keeps 2^-24."""
    options = {"beta_schedule": named, "num_train_timesteps": 50}
    plain = np.asarray(make_schedule(schedulers.read(options).diffusion).alphas_bar, np.float64)
    told = schedulers.read(options | {"rescale_betas_zero_snr": True})
    bar = np.asarray(make_schedule(told.diffusion).alphas_bar, np.float64)
    root = np.sqrt(plain)
    right = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(bar[:-1], right[:-1], rtol=1e-4, atol=1e-6)
    assert bar[-1] == pytest.approx(2.0**-24, rel=1e-3)
    assert "keeps a share of 5.96e-08 (not 0" in told.notes[0]


@pytest.mark.parametrize(
    ("name", "steps", "note"),
    [
        ("EulerDiscrete", 50, "keeps a share of 2^-24: diffusers' own bound"),
        (
            "UniPCMultistep",
            1000,
            "keeps a share of 1.05e-09, a quarter of the level before; diffusers keeps 2^-24",
        ),
        ("DDIM", 1000, "keeps a share of 1.05e-09 (not 0"),
    ],
)
def test_what_the_last_level_keeps_is_said_as_it_is(name, steps, note):
    options = {
        "_class_name": f"{name}Scheduler",
        "num_train_timesteps": steps,
        "rescale_betas_zero_snr": True,
    }
    told = schedulers.read(options)
    assert any(note in line for line in told.notes)
    kept = float(make_schedule(told.diffusion).alphas_bar[-1])
    assert kept == pytest.approx(2.0**-24 if steps == 50 else 1.05e-9, rel=1e-2)


def test_sigmoid_betas_against_their_formula():
    options = {"beta_schedule": "sigmoid", "num_train_timesteps": 5, "beta_start": 0.1, "beta_end": 0.3}
    right = [0.1 + 0.2 / (1 + np.exp(-x)) for x in (-6, -3, 0, 3, 6)]
    np.testing.assert_allclose(schedulers.read(options).diffusion.betas, right)


@pytest.mark.parametrize(
    ("name", "shares"),  # of the signal, as diffusers 0.42 has them
    [
        ("laplace", [0.76574928, 0.70746017, 0.64391613, 0.03162276]),
        ("exp", [0.04978704, 0.00247875, 0.00012340963, 6.1442006e-06]),
    ],
)
def test_schedules_by_their_signal_are_those_of_diffusers(name, shares):
    read = schedulers.read({"beta_schedule": name, "num_train_timesteps": 4})
    np.testing.assert_allclose(np.cumprod(1 - np.array(read.diffusion.betas)), shares, rtol=1e-5)
    assert not any("beta_start" in note for note in read.notes)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.yaml", "a: [1", "config.yaml, line 1: not valid YAML"),
        (
            "config.yaml",
            "a: {model: {target: x.UNetModel, params: {num_channels: 32}}}",
            "config.yaml has options of a network under a.model, too deep to be read; write them at its top",
        ),
        ("config.yaml", "model: {dim: 8, dim_mults: [1, 2]}", "has options of a network under model, too"),
        ("config.yaml", "unet: {_class_name: UNet2DModel, block_out_channels: [8]}", "under unet, too deep"),
        ("config.yaml", "block_out_channels: [8]", "write _class_name: UNet2DModel if they are of that one"),
        (
            "config.yaml",
            "model: {params: {first_stage_config: {a: 1}, unet_config: {params: {model_channels: 32}}}}",
            "config.yaml describes a latent diffusion model (by its option first_stage_config)",
        ),
        ("config.toml", "num_channels: 32", "config.toml: not valid TOML"),
        ("config.yaml", "NUM_HEADS: 2\nnum-heads: 4", "config.yaml sets 'num_heads' twice, differently"),
        ("config.yaml", "num_channels: ${w}\nw: 32", "num_channels='${w}' stands for a value elsewhere"),
        ("config.yaml", "a: 1\n\tb: 2", "config.yaml, line 2: not valid YAML"),
        ("config.yaml", "!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("config.yaml", "- 1\n- 2", "config.yaml holds [1, 2], not options by name"),
        ("config.yaml", "5: 1\nnum_channels: 32", "config.yaml has an option 5 that is not a name"),
        (
            "config.yaml",
            "a: &a [1,1]\nnum_channels: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nb: [*b,*b,*b]",
            "unknown option",
        ),
        ("flags.txt", "python train.py", "no flags; paste the command line"),
        ("flags.txt", "--num_channels 3 --lr", "--lr has no value"),
        ("flags.txt", "--num_channels '3", "not a command line"),
        ("flags.txt", "train --num_heads 2\ntrain --num_heads 4", "sets --num_heads twice, to '2' and '4'"),
        ("flags.txt", "M=x(--num_heads 2)", "'x(--num_heads' holds a flag, but is none"),
        ("flags.txt", 'bash -c "a.py --lr 1"', "'a.py --lr 1' holds a flag, but is none"),
        ("flags.txt", 'sbatch --wrap="a.py --lr 1"', "'a.py --lr 1' holds a flag, but is none"),
        ("flags.txt", 'A="it\'s"\ntrain --lr 1', "not a command line"),
        ("flags.txt", "python a.py --lr 1 \u2014num_heads 2", "'\u2014num_heads' holds a flag, but is none"),
        ("flags.txt", "python a.py --lr 1 \u2212\u2212num_heads 2", "num_heads' holds a flag, but is none"),
        ("flags.txt", "python a.py --use_fp16 \u2013num_heads 2", "--use_fp16 has no value"),
        (
            "flags.txt",
            "if a; then F='--lr 1'; else F='--lr 2'; fi\na.py $F",
            "sets $F twice, differently, before",
        ),
        ("flags.txt", "python a.py --lr 1 num_heads=2", "'num_heads=2' is no flag; write --name value"),
        ("flags.txt", "python a.py --lr 1 $D", "flags.txt uses $D, which it does not define"),
        ("flags.txt", 'A="--lr 1 $B"\npython a.py "$A"', "flags.txt uses $B, which it does not define"),
        ("flags.txt", 'python a.py --lr 1 "$@"', "flags.txt uses $@, which it does not define"),
        (
            "flags.txt",
            "python a.py --lr 1 \\\n  # --lr 2 \\\n  --predict_xstart True",
            "'--predict_xstart' begins a command of its own: a comment or the end of a line",
        ),
        ("flags.txt", "python a.py --lr 1 \\\n\n --num_heads 2", "'--num_heads' begins a command of its own"),
        (
            "flags.txt",
            "python classifier_train.py --noise_schedule cosine",
            "no flags; paste the command line",
        ),
        ("flags.txt", "A=aaaaaaaa\n" + 20 * 'A="$A $A"\n', "flags.txt: $A is too long for a command line"),
    ],
)
def test_configs_that_cant_be_read_are_one_line(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(MechdiffError) as error:
        pretrained.read(tmp_path)
    line = str(error.value).replace(str(tmp_path), "")
    assert expected in line and "\n" not in line and len(line) < 400


@pytest.mark.parametrize("lines", ["M=({})", "M=( {} )", 'M="{}"', "M+=({})", "(python train.py {})"])
def test_flags_are_read_out_of_variables_arrays_and_brackets(lines):
    command = "--num_heads 2 --learn_sigma=True --channel_mult (1,2)"
    expected = {"num_heads": "2", "learn_sigma": "True", "channel_mult": "(1,2)"}
    assert configs.flags_of(lines.format(command)) == expected
    both = lines.format(command) + "\n python sample.py --batch_size 4 --num_heads 2 --batch_size 8"
    assert configs.flags_of(both) == expected | {"batch_size": "8"}


@pytest.mark.parametrize(
    "text",
    [
        'M="{}"\n# mpiexec -n 8 \\\npython train.py $M --data_dir /data/set#1 --lr 1 # --lr 2',
        "python -u train.py {} --data_dir '/data/set#1' --lr 1 \\",
        "mpirun -np 8 --allow-run-as-root python train.py {} --data_dir /data/set#1 --lr 1; echo done",
        "torchrun --nproc_per_node=8 train.py {} --data_dir /data/set#1 --lr 1 > log.txt 2>&1 &",
        "python -m torch.distributed.launch --nproc_per_node 4 train.py {} --data_dir /data/set#1 --lr 1;",
        "python -m pkg.train {} --data_dir /data/set#1 --lr 1 | tee log.txt",
        'set -e\nmkdir -p a\nexport M="{}"; export D="--lr 1"\npython a.py $M $D --data_dir /data/set#1',
        "if [ -f a ]; then\n(cd a; python a.py {} \\ \n --data_dir /data/set#1 --lr 1)\nfi",
        'R=1\nM=(\n  {} # two\n  --data_dir /data/set#1\n)\npython a.py "${{M[@]}}" --lr ${{L:-1}} --lr $R',
        "F='{}'\npython a.py $F\nF='--data_dir /data/set#1'\nF+=' --lr 1'\nF=\"$F\"\npython b.py $F",
        "{}\n--data_dir\n/data/set#1\n--lr\n1",
        "set -euo pipefail\nset -eo pipefail; set -o pipefail\npython a.py {} --data_dir /data/set#1 --lr 1",
        "conda activate a\nconda run -n env python a.py {} --data_dir /data/set#1 --lr 1",
        "export PYTHONPATH=$PYTHONPATH:$(pwd)\npython a.py {} --data_dir /data/set#1 --lr 1",
        "OPENAI_LOGDIR=$HOME/logs python a.py {} --data_dir /data/set#1 --lr 1",
        "export CUDA_VISIBLE_DEVICES=$GPU\nX=$(hostname)\npython a.py {} --data_dir /data/set#1 --lr 1",
        'XLA_FLAGS="a=b" LD_LIBRARY_PATH=$C/lib:$D python a.py {} --data_dir /data/set#1 --lr 1',
        'M="{}"\nALL="$M --lr 1"\npython a.py $ALL --data_dir /data/set#1',
        "M='{}'\nN=\"$M --lr 1\"\npython a.py --data_dir /data/set#1",
    ],
)
def test_ordinary_scripts_are_read_as_a_shell_does(text):
    """Comments, continued lines, what starts a program, and what a script does besides."""
    pasted = command_lines.read_text(text.format("--num_heads 2"))
    assert pasted.flags == {"num_heads": "2", "data_dir": "/data/set#1", "lr": "1"}
    assert pasted.runs and not pasted.notes


def test_a_variable_that_no_command_uses_is_left_out_and_named():
    text = 'OLD="--num_heads 4"\nNEW="--num_heads 2"\n'
    pasted = command_lines.read_text(f"{text}python train.py $NEW")
    assert pasted.flags == {"num_heads": "2"}
    assert pasted.notes == ("left out, as no command of flags uses them: $OLD",)
    readme = command_lines.read_text(f"{text}python sample.py $NEW --lr 1 $SAMPLE_FLAGS")
    assert (readme.flags, len(readme.notes)) == ({"num_heads": "2", "lr": "1"}, 2)
    assert readme.notes[1].endswith("and by name not of the network: $SAMPLE_FLAGS")
    with pytest.raises(MechdiffError, match="sets --num_heads twice"):
        command_lines.read_text(text)
    assert not command_lines.read_text(text.splitlines()[0]).runs


@pytest.mark.parametrize("flag", ["--noise_schedule cosine", "--predict_xstart True", "--num_heads 2"])
@pytest.mark.parametrize(
    "text",
    ["python train.py {}\npython sample.py --image_size 8", "a.py --lr 1 {}\npython a.py --image_size 8"],
)
def test_what_one_command_sets_and_another_leaves_at_its_default_is_refused(flag, text):
    """A positive control: no tensor tells these. The null controls are below."""
    match = f"sets {flag.split()[0]} to .* in one command, and another leaves it at its default"
    with pytest.raises(MechdiffError, match=match):
        command_lines.read_text(text.format(flag))


@pytest.mark.parametrize(
    "other",
    [
        "python sample.py --image_size 8 --lr 1 --num_heads 4 --noise_schedule linear",  # defaults
        "python sample.py --image_size 8 --learn_sigma True",  # told by the tensors
        "python evaluate.py --batch_size 8; python evaluator.py a b",  # not of the network
        "python -m classifier_train --image_size 16 --noise_schedule cosine --num_heads 8",
        "$PYTHON ../scripts/super_res_sample.py --num_heads 8 --large_size 32",
        "C='--noise_schedule cosine'\npython classifier_train.py $C",
    ],
)
def test_commands_of_other_programs_decide_nothing(other):
    pasted = command_lines.read_text(f"{other}\npython image_train.py --image_size 8")
    by_name = any("passed over: " in note for note in pasted.notes)
    assert by_name == any(name in other for name in ("classifier", "super_res"))
    deciding = {"image_size": "8"} | ({"num_heads": "4", "noise_schedule": "linear"} if "4" in other else {})
    assert {name: v for name, v in pasted.flags.items() if name in adm_options.UNTOLD} == deciding
    assert pasted.runs


def test_programs_that_are_alone_or_sample_with_a_classifier_are_the_networks():
    for program in ("super_res_sample.py", "classifier_sample.py"):
        assert command_lines.read_text(f"python {program} --num_heads 2").flags == {"num_heads": "2"}


@pytest.mark.parametrize(
    "text",
    [
        'A="{}"\nB="--lr 1"\nALL="$A $B"',
        'A="{}"\nA="$A --lr 1"',
        'export A="{}"\nT="$A --lr 1"\nD=$HOME/data',
    ],
)
def test_variables_that_are_made_of_others_are_read_without_a_command(text):
    pasted = command_lines.read_text(text.format("--num_heads 2"))
    assert pasted.flags == {"num_heads": "2", "lr": "1"}
    assert not pasted.runs and not pasted.notes


@pytest.mark.parametrize("text", ['export X="--xla 3"\n{}', 'X="--xla 3" {}'])
def test_the_environment_of_a_command_with_flags_is_left_out_and_named(text):
    pasted = command_lines.read_text(text.format("python a.py --num_heads 2"))
    assert pasted.flags == {"num_heads": "2"}
    assert pasted.notes == ("left out, as no command of flags uses them: $X",)
    assert command_lines.read_text(text.format("python a.py")).flags == {"xla": "3"}


def test_several_configs_are_not_guessed_among(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("num_channels: 3")
    with pytest.raises(MechdiffError, match=r"several configs \(a\.yaml, b\.yaml\)"):
        configs.config_file(tmp_path)


@pytest.mark.parametrize("second", ["diffusion_config.yaml", "diffusion_config.yml"])
def test_files_of_a_model_and_of_its_noise_levels_are_one_config(tmp_path, second):
    (tmp_path / second).write_text("steps: 1000\nnoise_schedule: cosine\nclip_denoised: true")
    (tmp_path / "model_config.yaml").write_text("num_channels: 32\nlearn_sigma: true")
    path = configs.config_file(tmp_path)
    assert path.name == "model_config.yaml" and configs.unread(path) == []
    assert configs.read_config(path) == {
        "model": {"num_channels": 32, "learn_sigma": True},
        "diffusion": {"steps": 1000, "noise_schedule": "cosine", "clip_denoised": True},
    }
    (tmp_path / "diffusion_config.json").write_text("{}")
    with pytest.raises(
        MechdiffError, match=r"several files of noise levels \(.*; keep the one that goes with"
    ):
        configs.read_config(path)
    (tmp_path / "diffusion_config.json").unlink()
    (tmp_path / "config.yaml").write_text("num_channels: 32")  # another network's, or of which all is there
    assert configs.unread(configs.config_file(tmp_path)) == ["model_config.yaml", second]
