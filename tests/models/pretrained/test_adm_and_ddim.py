"""ADM and ddim networks against PyTorch (`make_pretrained_reference`), as their users save them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.make_pretrained_reference import CONDITIONED, HOOKED, NETWORKS, T, condition, draw
from reference.networks import identity_of
from reference.pretrained_networks import REFERENCE, frozen, written

from mechdiff.core.errors import MechdiffError
from mechdiff.interventions.build import ablate
from mechdiff.models import pretrained
from mechdiff.models.pretrained import Stated, ddim
from mechdiff.models.pretrained.adm import reader as adm
from mechdiff.models.pretrained.files import configs
from mechdiff.models.unet import apply_unet, components

SAME_LAYERS = ("half_multiplier", "rescaled")  # as others: of these no gradient, which is slow to compile


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
