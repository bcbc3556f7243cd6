"""guided-diffusion's network and single steps of diffusers' schedulers (see `make_interop_reference`)."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import identity_of
from safetensors.numpy import save_file

from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.process import predict_x0, to_eps
from mechdiff.diffusion.samplers import ddim_step, ddpm_step
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models import pretrained
from mechdiff.models.pretrained.adm import options as adm_options
from mechdiff.models.pretrained.adm import reader as adm
from mechdiff.models.pretrained.diffusers import schedulers
from mechdiff.models.pretrained.files import tensors
from mechdiff.models.pretrained.imported import Stated
from mechdiff.models.unet import apply_unet, count_parameters

HERE = Path(__file__).parents[2] / "reference"


def frozen(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / f"{name}.npz") as stored:
        return {
            k: np.moveaxis(a, -3, -1) if "weights" not in k and a.ndim > 3 else a for k, a in stored.items()
        }


@pytest.fixture(scope="module")
def network():
    """Flags, state dict and frozen arrays of the ADM network."""
    arrays = frozen("adm")
    state = {k.removeprefix("weights/"): arrays.pop(k) for k in list(arrays) if k.startswith("weights/")}
    return json.loads(str(arrays.pop("config"))), state, arrays


def written(folder, flags, state):
    (folder / "config.json").write_text(json.dumps(flags))
    save_file(state, folder / adm_options.WEIGHTS)
    return folder


@functools.partial(jax.jit, static_argnums=0)
def output_and_gradient(config, params, identity, x, t):
    def half_square(x):
        output = apply_unet(config, params, identity, x, t)
        return jnp.sum(output**2) / 2, output

    gradient, output = jax.grad(half_square, has_aux=True)(x)
    return output, gradient


def test_an_adm_network_with_residual_resampling_equals_that_of_torch(network, tmp_path):
    flags, state, arrays = network
    result = pretrained.read(written(tmp_path, flags, state))
    assert (result.layout, result.dtype, result.unet.heads) == ("guided-diffusion", "float16", (1, 2))
    assert "learned variances are dropped" in result.notes[-1]
    output, gradient = output_and_gradient(
        result.unet, result.params, identity_of(result.unet), arrays["x"], arrays["t"]
    )
    assert np.abs(output - arrays["output"]).max() < 1e-4 * arrays["output"].std()
    assert np.abs(gradient - arrays["gradient"]).max() < 1e-3 * arrays["gradient"].std()


def test_the_network_of_p2_weighting_fits_tensor_by_tensor():
    """At full size, as published for CelebA-HQ: names and shapes, by those that guided-diffusion makes."""
    stored = json.loads((HERE / "adm_p2_shapes.json").read_text())
    state = {name: np.broadcast_to(np.float16(0), shape) for name, shape in stored["shapes"].items()}
    for name in ("out.2.weight", "out.2.bias"):  # of which half is variances
        state[name] = state[name][:3]
    unet = adm.unet_config(adm.flags(stored["config"] | {"learn_sigma": False}, state, Stated()))
    params = tensors.to_params(adm.split_attention(state, unet, False, HERE), adm.names(unet), unet, HERE)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count_parameters(unet) == 93_563_910 - 3459
    assert {heads for heads, here in zip(unet.heads, unet.down_attention, strict=True) if here} == {8}


def test_both_orders_of_queries_keys_and_values_are_read(network, tmp_path):
    flags, state, _ = network
    expected = pretrained.read(written(tmp_path, flags, state)).params
    heads, depth, changed = 2, flags["num_head_channels"], dict(state)
    for name in [name for name in state if ".qkv." in name]:
        rows = state[name].reshape(heads, 3, depth, *state[name].shape[1:])
        changed[name] = np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(state[name].shape)
        assert not np.array_equal(changed[name], state[name])
    result = pretrained.read(written(tmp_path, flags | {"use_new_attention_order": True}, changed)).params
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize(
    "name",
    [
        *("schedule_name", "noise_schedule_name", "train_timesteps", "sample_prediction", "data_prediction"),
        *(
            "diffusion_config_path",
            "config_file",
            "config_path",
            "config_name",
            "beta_path",
            "train_cfg_file",
        ),
    ],
)
def test_options_that_may_decide_noise_levels_or_predictions_are_asked_about(network, name):
    flags, state, _ = network
    with pytest.raises(MechdiffError, match=f"option '{name}' is unknown and may decide noise levels"):
        adm.flags(flags | {name: "a"}, state, Stated())


def test_options_of_training_sampling_and_files_are_not(network):
    """The null control: known ones in which the same words occur, and others."""
    flags, state, _ = network
    names = [
        *("schedule_sampler", "timestep_respacing", "use_ddim", "train_num_steps", "classifier_config"),
        *("eval_timesteps", "wandb_config", "diffusion_model_path", "prediction_dir", "model_path"),
        *("dataset_name", "log_dir", "sample_dir", "pretrained_path"),
    ]
    options = adm.flags(
        flags | dict.fromkeys([*names, "_target_", "_wandb", "_comment"], "a"), state, Stated()
    )
    assert f"options without bearing here: {', '.join(names)}" in options.notes


@pytest.mark.parametrize(
    ("flags", "gone", "expected"),
    [
        ({"class_cond": True}, "", "1 missing: label_emb.weight"),
        ({"class_cond": "maybe"}, "", "guided-diffusion option class_cond='maybe' is not true or false"),
        ({"num_chanels": 3}, "", "unknown option of guided-diffusion 'num_chanels'; closest: num_channels"),
        (
            {"_noise_schedule": "cosine"},
            "",
            "option '_noise_schedule' is unknown and may decide noise levels",
        ),
        ({"_steps": 4000}, "", "unknown option of guided-diffusion '_steps'"),
        ({"num_heads_upsample": 0}, "", "num_heads_upsample=0 is not a whole number of at least 1 or -1"),
        ({"large_size": 64}, "", "options image_size=8 and large_size=64 differ"),
        ({"dropout": None}, "", "option dropout=None is not a number of at least 0"),
        ({"num_head_channels": None}, "", "num_head_channels=None is not a whole number of at least 1 or -1"),
        ({"num_head_channels": 5}, "", "option num_head_channels=5 does not divide 32 channels"),
        (
            {"attention_resolutions": None},
            "",
            "option attention_resolutions=None is not a list, each a whole",
        ),
        ({"attention_resolutions": ""}, "", "option attention_resolutions='' is not a list, each a whole"),
        ({"attention_resolutions": "0"}, "", "option attention_resolutions='0' is not a list, each a whole"),
        ({"attention_resolutions": {"4": 1}}, "", "option attention_resolutions={'4': 1} is not a list"),
        ({"channel_mult": "1,,2"}, "", "option channel_mult='1,,2' is not a list, each a number"),
        ({"channel_mult": []}, "", "option channel_mult=[] is not a list, each a number"),
        ({"diffusion_steps": 0}, "", "option diffusion_steps=0 is not a whole number of at least 2"),
        ({"diffusion_steps": 4000}, "", "option rescale_timesteps is absent, and with diffusion_steps=4000"),
        ({"noise_schedule": "sqrt"}, "", "option noise_schedule='sqrt' is not supported"),
        ({"num_res_blocks": [1, 1, 1]}, "", "option num_res_blocks =[1, 1, 1]: need one number, or one for"),
        ({"model_channels": 32}, "", "options 'model_channels' and 'num_channels' are the same; write one"),
        (
            {"noise_schedule": "linear", "steps": 9, "diffusion_steps": 9},
            "",
            "options 'steps' and 'diffusion_steps' are the same",
        ),
        (
            {"model_mean_type": "epsilon", "predict_xstart": True},
            "",
            "model_mean_type=epsilon contradicts predict_xstart=True",
        ),
        ({"dims": 3}, "", "option dims=3 is not supported; only 2"),
        ({"image_size": [8, 8]}, "", "option image_size=[8, 8] is not a whole number of at least 1"),
        ({"learn_sigma": False}, "", "1 wrong shapes: out.2"),
        ({}, "middle_block.1.qkv.bias", "3 missing: middle_block.1.k.bias, middle_block.1.q.bias"),
    ],
)
def test_a_bad_folder_is_one_line_that_names_what_is_wrong(network, tmp_path, flags, gone, expected):
    state = {name: value for name, value in network[1].items() if name != gone}
    with pytest.raises(MechdiffError) as error:
        pretrained.read(written(tmp_path, network[0] | flags, state))
    assert expected in str(error.value).replace("2 wrong", "1 wrong") and "\n" not in str(error.value)


def test_classes_are_read_off_the_tensors_and_flags_that_deny_them_are_refused(network, tmp_path):
    flags, state, _ = network
    table = np.zeros((10, state["time_embed.0.weight"].shape[0]), np.float16)
    labeled = state | {"label_emb.weight": table}
    model = pretrained.read(written(tmp_path, flags, labeled))
    assert (model.unet.classes, model.unet.null_label) == (10, None)
    assert "num_classes=10" in "".join(model.notes)
    told = pretrained.read(tmp_path, Stated(null_class=True))
    assert (told.unet.classes, told.unet.null_label) == (9, 9)
    for changed, expected in (
        ({"class_cond": "False"}, "class_cond=False, but"),
        ({"num_classes": 9}, "wrong shapes"),
    ):
        with pytest.raises(MechdiffError, match=expected):
            pretrained.read(written(tmp_path, flags | changed, labeled))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_steps_equal_those_of_diffusers(schedule):
    arrays = frozen("steps")
    x, output, noise = arrays["x"], arrays["output"], arrays["noise"]
    for prediction in ("epsilon", "v_prediction", "sample"):
        options = {"beta_schedule": schedule, "prediction_type": prediction}
        told = schedulers.read(options)
        assert told.prediction == prediction
        again = schedulers.read(schedulers.write(told.diffusion, told.prediction))
        assert (again.prediction, again.diffusion) == (told.prediction, told.diffusion)
        tables = make_schedule(told.diffusion)
        for i, t in enumerate(arrays["t"].tolist()):
            at, before = (np.full(len(x), k, np.int32) for k in (t, max(t - 1, -1)))
            x0 = predict_x0(tables, x, at, to_eps(prediction, tables, x, at, output))
            x0 = jnp.clip(x0, -1, 1)
            single = ddpm_step(tables, x, x0, at, before, noise)
            two = ddim_step(tables, x, x0, at, np.full(len(x), max(t - 20, -1), np.int32), noise)
            for kind, got in (("ddpm", single), ("ddim", two)):
                expected = arrays[f"{schedule}/{prediction}/{kind}"][i]
                np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=f"{prediction} {kind} t={t}")
