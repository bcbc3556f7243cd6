"""Which weights are read: raw or averaged, variants, several networks in a file, weights in parts."""

import shutil

import numpy as np
import pytest
from reference.pipelines import DIFFUSION, averaged, bias
from safetensors.numpy import load_file, save_file

from mechdiff.core.errors import MechdiffError
from mechdiff.models import pretrained
from mechdiff.models.pretrained import Stated
from mechdiff.models.pretrained.diffusers.reader import STEM, WEIGHTS


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
