"""What lies beside a foreign network: schedulers, tables of noise levels, latents, links."""

import json

import ml_dtypes
import numpy as np
import pytest
from reference.pipelines import DIFFUSION, averaged, bias
from safetensors.numpy import load_file, save_file

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import MechdiffError
from mechdiff.models import pretrained
from mechdiff.models.pretrained import Stated, conditioning
from mechdiff.models.pretrained.diffusers import schedulers
from mechdiff.models.pretrained.diffusers.reader import WEIGHTS
from mechdiff.models.pretrained.files import folders


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


def test_a_trainers_checkpoint_has_its_scheduler_in_the_run(pipeline):
    averaged(pipeline)
    (pipeline / "checkpoint-9").mkdir()
    for name in ("unet", "unet_ema"):
        (pipeline / name).rename(pipeline / "checkpoint-9" / name)
    assert pretrained.read(pipeline / "checkpoint-9").diffusion == DIFFUSION


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


@pytest.mark.parametrize("way_out", ["last", "first"])
def test_a_condition_beside_variances_is_said_to_need_a_statement(way_out):
    with pytest.raises(MechdiffError, match="learned variances: state --condition=last or first"):
        conditioning.channels("X", 6, 6)
    assert conditioning.channels("X", 6, 6, way_out) == conditioning.Channels(3, 3, way_out, True)
