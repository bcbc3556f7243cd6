"""lucidrains' Unet against PyTorch (`make_foreign_reference`), as its users save it."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.make_foreign_reference import SIDE, noisy
from reference.make_pretrained_reference import T, draw
from safetensors.numpy import save_file

from mechdiff.core.config import ExperimentConfig, to_dict
from mechdiff.core.errors import MechdiffError
from mechdiff.diffusion.schedules import cosine_schedule, make_schedule
from mechdiff.interventions.build import ablate
from mechdiff.models import load, pretrained
from mechdiff.models.pretrained import Stated, builders
from mechdiff.models.pretrained.files.options import read_options
from mechdiff.models.pretrained.lucidrains import reader as lucidrains
from mechdiff.models.pretrained.lucidrains import tensors as lucidrains_tensors
from mechdiff.models.pretrained.lucidrains.noise_levels import (
    betas_of,
    by_loss_weight,
    noise_levels,
    trained_with_variances,
)
from mechdiff.storage.exported import export_model

REFERENCE = Path(__file__).parents[2] / "reference" / "foreign.npz"
GROUPS = "lucidrains_groups"  # of release 1.11.0
X, TIMES = np.moveaxis(noisy(), 1, -1), np.array(T)
WHOLE = {"image_size": SIDE}
WITH_CHANNELS = {"channels": 3}  # which 6 in and 6 out leave open
BARE = WHOLE | {"objective": "pred_noise", "beta_schedule": "cosine", "timesteps": 1000}


@functools.cache
def frozen(name: str) -> dict:
    """Arrays of one network, images NHWC, and its tensors as `state`."""
    with np.load(
        REFERENCE.with_name("lucidrains_groups.npz" if name == GROUPS else REFERENCE.name)
    ) as stored:
        arrays = {key.removeprefix(f"{name}/"): stored[key] for key in stored if key.startswith(f"{name}/")}
    arrays |= {key: np.moveaxis(arrays[key], -3, -1) for key in ("output", "gradient", "hooked")}
    return arrays | {"state": draw(json.loads(str(arrays["shapes"])))}


def with_betas(state: dict) -> dict:
    """As of numbered timesteps, those of `BARE`; without them learned frequencies are of continuous ones."""
    return state | {"betas": betas_of("cosine", 1000).astype(np.float32)}


def trained(arrays: dict) -> dict:
    """What a trainer saves: its model and the average of it, which is the network of `frozen`."""
    raw, saved = draw(json.loads(str(arrays["shapes"])), seed=1), {}
    for name in json.loads(str(arrays["names/model"])) + json.loads(str(arrays["names/ema"])):
        wrappers, _, inside = name.partition("model.model.")
        if inside:
            saved[name] = (arrays["state"] if wrappers.endswith("ema_") else raw)[inside]
        else:
            saved[name] = np.asarray(arrays.get(name.split(".")[-1], np.zeros(1)), np.float32)
    return saved


def written(folder, config: dict, state: dict):
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.ascontiguousarray(value) for name, value in state.items()}, folder / "model.safetensors"
    )
    return folder


def built(state):
    return builders.build(state.layout, state.options, state.params, state.diffusion)


def check_parity(denoiser, arrays, gradient: bool = False) -> None:
    """The output is PyTorch's, and so is its gradient (asked of one network: it is slow to compile)."""

    def output_of(params, x):
        return denoiser.network.fn(params, x, jnp.asarray(TIMES, jnp.float32))

    def half_square(x, params):
        output = output_of(params, x)
        return jnp.sum(output**2) / 2, output

    if gradient:
        slope, output = jax.jit(jax.grad(half_square, has_aux=True))(X, denoiser.params)
        assert np.abs(np.asarray(slope) - arrays["gradient"]).max() < 1e-4 * arrays["gradient"].std()
    else:
        output = jax.jit(output_of)(denoiser.params, X)
    assert np.abs(np.asarray(output) - arrays["output"]).max() < 1e-4 * arrays["output"].std()


def check_heads(denoiser, arrays, names) -> None:
    predict = jax.jit(denoiser.predict)
    parameterization = denoiser.network.parameterization
    to_eps = jax.jit(lambda output: parameterization.to_eps(denoiser.schedule, X, TIMES, output))
    whole = np.asarray(to_eps(arrays["output"]))
    for name, hooked in zip(names, arrays["hooked"], strict=True):
        eps = np.asarray(predict(ablate(denoiser.identity, [name]), X, TIMES))
        expected = np.asarray(to_eps(hooked))
        effect = np.abs(whole - expected).max()
        assert np.abs(eps - expected).max() < 1e-2 * effect and effect > 1e-3 * hooked.std(), name


def heads_of(arrays, levels: int) -> list[str]:
    """Our names of the heads that were hooked."""
    names = []
    for path, head in json.loads(str(arrays["heads"])):
        side, *numbers = path.split(".")
        level = int(numbers[0]) if numbers else 0
        place = {"downs": f"down{level}", "ups": f"up{levels - 1 - level}", "mid_attn": "mid"}[side]
        names.append(f"{place}.attn.head{head}")
    return names


def test_a_trainers_average_is_read_by_its_buffers_alone(tmp_path):
    arrays = frozen("lucidrains")
    folder = written(tmp_path, WHOLE, trained(arrays))
    with pytest.raises(MechdiffError, match="--weights=raw or --weights=ema"):
        pretrained.read(folder)
    state = pretrained.read(folder, Stated(weights="ema"))
    assert state.options["prediction"] == "v_prediction"  # the package's default, by the weights of the loss
    np.testing.assert_allclose(make_schedule(state.diffusion).alphas_bar, arrays["alphas_cumprod"], atol=2e-6)
    denoiser = built(state)
    check_parity(denoiser, arrays)
    check_heads(denoiser, arrays, heads_of(arrays, levels=2))
    raw = pretrained.read(folder, Stated(weights="raw"))
    assert not np.allclose(raw.params["init_conv.weight"], state.params["init_conv.weight"])


def test_all_that_a_network_can_have_is_read_off_its_tensors(tmp_path):
    arrays = frozen("lucidrains_all")
    state = pretrained.read(written(tmp_path, BARE | WITH_CHANNELS, with_betas(arrays["state"])))
    assert state.options["self_condition"] and state.options["levels"] == 3 and not state.assumed
    np.testing.assert_allclose(
        make_schedule(state.diffusion).log_snr, cosine_schedule(1000).log_snr, rtol=1e-5, atol=1e-5
    )
    denoiser = built(state)
    check_parity(denoiser, arrays, gradient=True)
    check_heads(denoiser, arrays, heads_of(arrays, levels=3))


def test_a_release_before_2_has_group_norms_whose_groups_must_be_stated_where_they_are_not_8(tmp_path):
    """Against release 1.11.0 with 4 groups (`make_lucidrains_groups_reference`)."""
    arrays = frozen(GROUPS)
    state = arrays["state"]
    stated = pretrained.read(written(tmp_path, BARE | {"resnet_block_groups": 4}, state))
    assert not any("groups" in name for name in stated.assumed)
    check_parity(built(stated), arrays)
    check_heads(built(stated), arrays, heads_of(arrays, levels=2))
    usual = pretrained.read(written(tmp_path, BARE, state))
    assert usual.assumed[-1] == "resnet_block_groups=8" and usual.options["groups"] == 8
    with pytest.raises(MechdiffError, match="resnet_block_groups=5 does not divide 16 channels"):
        pretrained.read(written(tmp_path, BARE | {"resnet_block_groups": 5}, state))


def test_only_softmax_attention_has_an_entropy(tmp_path):
    denoiser = built(
        pretrained.read(
            written(tmp_path, BARE | WITH_CHANNELS, with_betas(frozen("lucidrains_all")["state"]))
        )
    )
    captured = jax.jit(denoiser.captured, static_argnames="collection")
    _, patterns = captured(denoiser.identity, X, TIMES, collection="patterns")
    assert set(patterns) == {"down1.attn.pattern", "mid.attn.pattern", "up1.attn.pattern"}
    assert patterns["down1.attn.pattern"].shape == (3, 2, 16, 16 + 4)  # with memory
    _, statistics = captured(denoiser.identity, X, TIMES, collection="attention")
    for site, pattern in jax.tree.map(np.asarray, patterns).items():
        np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-5)
        entropy = -np.sum(pattern * np.log(pattern), -1).mean(-1)
        np.testing.assert_allclose(statistics[site].entropy, entropy, rtol=1e-4)
        assert (np.asarray(statistics[site].distance) > 0).all()


def test_what_is_saved_is_loaded_as_it_was_read(tmp_path):
    state = pretrained.read(
        written(tmp_path, BARE | WITH_CHANNELS, with_betas(frozen("lucidrains_all")["state"]))
    )
    about = ExperimentConfig(name="network", unet=builders.shape_of(state), diffusion=state.diffusion)
    saved = to_dict(about) | {load.IMPORTED_FUNCTION: {"layout": state.layout, "options": state.options}}
    folder = export_model(tmp_path / "model", state.params, saved, {})
    loaded, trained, _ = load.load_denoiser(folder, "network")
    assert loaded.digests() == built(state).digests()
    assert (loaded.name, loaded.image_shape, trained.unet.image_size) == ("network", (SIDE, SIDE, 3), SIDE)
    with pytest.raises(MechdiffError, match="lucidrains, not a UNet of this package"):
        load.load_trained(folder)


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction", "sample"])
def test_the_objective_is_told_by_the_weights_of_the_loss(objective):
    bar = np.asarray(cosine_schedule(1000).alphas_bar, np.float64)
    snr = bar / (1 - bar)
    cut = np.minimum(snr, 5)  # min_snr_loss_weight
    weight = {"epsilon": cut / snr, "v_prediction": cut / (snr + 1), "sample": cut}[objective]
    assert by_loss_weight({"alphas_cumprod": bar, "loss_weight": weight}) == objective
    assert by_loss_weight({"alphas_cumprod": bar, "loss_weight": 3 * weight}) is None


@pytest.mark.parametrize(
    ("config", "buffers", "stated", "expected"),
    [
        ({}, ("betas",), None, "epsilon"),  # whatever the weights of a loss that it does not use
        ({"objective": "pred_noise"}, (), None, "epsilon"),
        ({"objective": "pred_v"}, ("betas",), None, "trains it to predict noise all the same"),
        ({"objective": "pred_v"}, ("betas",), "v_prediction", "v_prediction"),
        ({}, (), None, "objective is absent"),
    ],
)
def test_with_learned_variances_noise_is_predicted_whatever_the_objective(config, buffers, stated, expected):
    get = read_options(config, lucidrains.TABLE, what="lucidrains")
    bar = np.array([0.9, 0.4, 0.1])
    tables = {"betas": bar, "alphas_cumprod": bar, "loss_weight": bar} if buffers else {}
    assert by_loss_weight(tables) == ("v_prediction" if buffers else None)
    try:
        answer = trained_with_variances(get, tables, Stated(prediction=stated))[1]
    except MechdiffError as error:
        answer = str(error)
    assert expected in answer and "\n" not in answer


@pytest.mark.parametrize(
    ("stated", "joined", "outputs", "expected"),
    [
        ({}, 3, 3, (3, False)),
        ({}, 6, 3, (3, True)),
        ({}, 3, 6, (3, False)),
        ({}, 6, 6, "6 channels in and 6 out may be images of 3, self-conditioned"),
        ({}, 2, 2, "2 channels in and 2 out may be images of 1, self-conditioned"),
        ({"channels": 3}, 6, 6, (3, True)),
        ({"self_condition": True}, 2, 2, (1, True)),
        ({"learned_variance": False}, 6, 6, "latents are not images"),
        (
            {"self_condition": False},
            6,
            6,
            "6 out with self_condition=False are not those of images of 1 or 3",
        ),
        ({"self_condition": True, "learned_variance": False}, 6, 6, "are not those of images of 1 or 3"),
        ({"channels": 6}, 6, 6, "latents are not images"),
        ({}, 4, 4, "latents are not images"),
    ],
)
def test_channels_that_tensors_leave_open_are_asked_for(stated, joined, outputs, expected):
    get = read_options(stated, lucidrains.TABLE, what="lucidrains")
    if isinstance(expected, str):
        with pytest.raises(MechdiffError, match=expected):
            lucidrains_tensors._channels(get, joined, outputs)
    else:
        assert lucidrains_tensors._channels(get, joined, outputs) == expected


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [250, 4000])  # the latter's first are subnormal in float16
def test_betas_in_half_precision_are_held_to_their_name_at_that_precision(half, name, steps):
    exact = betas_of(name, steps)
    betas = {"betas": exact.astype(np.float32).astype(half).astype(np.float32)}
    named = read_options({"beta_schedule": name, "timesteps": steps}, lucidrains.TABLE, what="lucidrains")
    diffusion, note = noise_levels(named, betas, Stated())
    np.testing.assert_array_equal(diffusion.betas, exact)
    assert note == f"noise levels are {name}'s, of which the file's betas are roundings to {half}"
    other = read_options({"beta_schedule": "sigmoid"}, lucidrains.TABLE, what="lucidrains")
    with pytest.raises(MechdiffError, match="beta_schedule=sigmoid, but the file's betas are others"):
        noise_levels(other, betas, Stated())
    unnamed = read_options({}, lucidrains.TABLE, what="lucidrains")
    if (half, name) == ("bfloat16", "cosine"):  # the last rounds to 1
        with pytest.raises(MechdiffError, match="rounded to bfloat16, some to 0 or 1: write beta_schedule"):
            noise_levels(unnamed, betas, Stated())
    else:
        assert f"betas, rounded to {half};" in noise_levels(unnamed, betas, Stated())[1]


def test_betas_in_full_precision_are_taken_as_they_are_and_held_to_their_name():
    betas = {"betas": betas_of("cosine", 1000).astype(np.float32)}
    stated = read_options({"beta_schedule": "cosine"}, lucidrains.TABLE, what="lucidrains")
    diffusion, note = noise_levels(stated, betas, Stated())
    np.testing.assert_array_equal(diffusion.betas, betas["betas"].astype(np.float64))
    assert note == "noise levels are those of the file's betas"
    with pytest.raises(MechdiffError, match="the file's betas are others"):
        noise_levels(stated, {"betas": betas["betas"] * np.float32(1.0004)}, Stated())


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [  # of the package's functions, in float64: alpha bars of the first 3 of 4 steps
        ("sigmoid", {"start": -3, "end": 3, "tau": 0.7}, [0.9060245378, 0.5, 0.0939754622]),
        ("sigmoid", {"start": 0, "end": 3, "clamp_min": 1e-3}, [0.6040898307, 0.2982929041, 0.1058911433]),
        ("cosine", {"s": 0.1}, [0.7862446246, 0.4377076995, 0.1246498094]),
    ],
)
def test_arguments_of_a_schedule_are_read(name, arguments, expected):
    config = {"beta_schedule": name, "timesteps": 4, "schedule_fn_kwargs": arguments}
    diffusion, _ = noise_levels(read_options(config, lucidrains.TABLE, what="lucidrains"), {}, Stated())
    np.testing.assert_allclose(np.cumprod(1 - np.array(diffusion.betas))[:3], expected, atol=1e-9)
    buffers = {"betas": np.array(diffusion.betas, np.float32)}
    noise_levels(read_options(config, lucidrains.TABLE, what="lucidrains"), buffers, Stated())
    usual = config | {"schedule_fn_kwargs": None}
    with pytest.raises(MechdiffError, match="the file's betas are others"):
        noise_levels(read_options(usual, lucidrains.TABLE, what="lucidrains"), buffers, Stated())


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("sigmoid", {"tau": 0}, r"schedule_fn_kwargs=\{'tau': 0.0\} makes no betas in \(0, 1\)"),
        ("cosine", {"tau": 1}, "has 'tau', but the schedule cosine takes s"),
        ("linear", {"s": 1}, "has 's', but the schedule linear takes no arguments"),
        ("sigmoid", {"tau": "a"}, "is not a mapping, each value a number"),
        ("sigmoid", [1], "is not a mapping, each value a number"),
    ],
)
def test_arguments_that_a_schedule_cannot_take_are_refused(name, arguments, error):
    config = {"beta_schedule": name, "timesteps": 4, "schedule_fn_kwargs": arguments}
    with pytest.raises(MechdiffError, match=error):
        noise_levels(read_options(config, lucidrains.TABLE, what="lucidrains"), {}, Stated())


def test_two_networks_whose_tables_differ_are_refused(tmp_path):
    """The last in the file's order told the noise levels of either."""
    arrays = frozen("lucidrains")
    saved = trained(arrays)
    saved["ema.online_model.betas"] = betas_of("linear", len(saved["ema.online_model.betas"])).astype("f")
    folder = written(tmp_path, WHOLE, saved)
    with pytest.raises(MechdiffError, match=r"ema_model\.betas and ema\.online_model\.betas differ") as error:
        pretrained.read(folder, Stated(weights="ema"))
    assert "\n" not in str(error.value)


def without(name: str):
    return lambda state: {other: value for other, value in state.items() if other != name}


def flattened(state: dict) -> dict:
    """With a first convolution as of one axis, and attention as wrapped as in `Unet1D`."""
    kernel = {"init_conv.weight": state["init_conv.weight"][..., 0]}
    return renamed(state | kernel, "mid_attn.to_qkv", "mid_attn.fn.fn.to_qkv")


def renamed(state: dict, old: str, new: str) -> dict:
    return {name.replace(old, new): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("config", "edit", "line"),
    [
        (WHOLE, dict, "objective is absent|no betas"),
        ({"dim_mults": [1, 2]}, dict, "image_size is absent"),
        (BARE | {"dim_mults": [1, 3, 2]}, dict, "dim_mults=.*the tensors say"),
        (BARE | {"image_size": [6, 6]}, dict, "image_size=6 is not divisible by 4"),
        (BARE | {"image_size": [8, 16]}, dict, "not that of square images"),
        (BARE | {"dim_mult": [1]}, dict, "unknown option of lucidrains 'dim_mult'; closest: dim_mults"),
        (BARE, lambda state: renamed(state, "mid_attn.to_qkv", "mid_attn.fn.fn.to_qkv"), "before 1.9"),
        (
            BARE,
            lambda state: state | {"classes_emb.weight": np.ones((5, 8), np.float32)},
            "Unet with classes",
        ),
        (BARE, flattened, r"a network of signals \(1D\), not images"),
        (BARE | {"resnet_block_groups": 4}, dict, "resnet_block_groups=4, but the tensors say RMS norms"),
        (BARE, lambda state: state | {"more.g": np.zeros((1, 1), np.float32)}, "unused: more.g"),
        (BARE, without("mid_attn.mem_kv"), "missing: mid_attn"),
        (BARE, without("ups.1.3.1.bias"), "missing: ups.1.3.1.bias"),
        (BARE, without("downs.1.3.1.weight"), "missing: downs.1.3.1.weight"),
        (BARE, lambda state: state | {"time_mlp.3.weight": np.zeros((2, 2), np.float32)}, "don't fit one an"),
        (BARE, lambda state: state | {"mid_attn.mem_kv": np.zeros(3, np.float32)}, "don't fit one another"),
        (BARE, lambda state: state | {"betas": np.zeros((2, 5), np.float32)}, "betas have the shape"),
        (BARE, dict, "trained on continuous noise levels"),
    ],
)
def test_what_can_not_be_read_is_refused_in_one_line(config, edit, line, tmp_path):
    folder = written(tmp_path, config | WITH_CHANNELS, edit(dict(frozen("lucidrains_all")["state"])))
    with pytest.raises(MechdiffError, match=line) as error:
        pretrained.read(folder)
    assert "\n" not in str(error.value)
