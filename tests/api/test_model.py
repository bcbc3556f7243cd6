"""A model does what the builders of interventions and the network do."""

import dataclasses

import jax
import numpy as np
import pytest
from reference import user_network

import mechdiff as md
from mechdiff.api import sampling, show
from mechdiff.api.images import eval_images
from mechdiff.core import keys
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data.collection import open_collection
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.samplers import Sampler, sample
from mechdiff.diffusion.schedules import ddim_timesteps
from mechdiff.interventions import build
from mechdiff.models.denoiser import check_inputs
from mechdiff.study.inputs import DIGEST_LENGTH, TRAINING_IMAGES
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.activations import activations

KEY = jax.random.key(0)


def eps(model, images, t=30):
    return np.asarray(model.predict(images, t))


def test_a_chain_is_the_interventions_it_names(model, images):
    head = model.components("head").name[0]
    chained = (
        model.ablate("mid.block0.res").temperature([head], 2.0).scale("mid.block1.res", 0.5).during(0, 40)
    )
    plain = build.ablate(model.denoiser.identity, "mid.block0.res")
    plain = build.set_gate(build.set_temperature(plain, [head], 2.0), "mid.block1.res", 0.5)
    plain = build.windowed(plain, 0, 40)
    t = np.full(len(images), 30, np.int32)
    expected = jax.jit(model.denoiser.predict)(plain, images, t)
    np.testing.assert_allclose(eps(chained, images), expected, atol=1e-5)
    np.testing.assert_array_equal(eps(chained, images, 45), eps(model, images, 45))
    assert not np.allclose(eps(chained, images), eps(model, images))


@pytest.mark.parametrize("site", ["mid.block0.res", "mid.block0.time", "mid.attn0.head1"])
def test_adding_a_direction_is_replacing_by_the_sum(model, images, site):
    component = model.component(site)
    t = np.full(len(images), 30, np.int32)
    captured = _captured(model.denoiser, images, t)[component.site]
    size = captured.shape[-1]
    direction = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    shift = np.zeros(captured.shape, np.float32)
    heads = [slice(*component.index)] if component.component_type == "head" else []
    shift[(..., *heads, slice(None))] = 3 * direction
    identity = model.denoiser.identity
    replaced = dataclasses.replace(
        build.set_gate(identity, [site], 0.0),
        replacement=dict(identity.replacement) | {component.site: captured + shift},
    )
    if component.component_type == "head":  # of the other heads too: replaced by what they are
        gate = dict(identity.gate) | {component.site: np.zeros_like(identity.gate[component.site])}
        replaced = dataclasses.replace(replaced, gate=gate)
    added = model.add(site, direction, 3.0)
    expected = np.asarray(jax.jit(model.denoiser.predict)(replaced, images, t))
    np.testing.assert_allclose(eps(added, images), expected, atol=2e-5)
    assert np.abs(expected - eps(model, images)).max() > 1e-3
    np.testing.assert_array_equal(eps(added.during(40, 45), images), eps(model, images))


def _captured(denoiser, x_t, t):
    from mechdiff.models.unet import forward

    run = jax.jit(
        lambda x: forward(denoiser.unet, denoiser.params, denoiser.identity, x, t, capture=("sites",))
    )
    return jax.tree.map(np.asarray, run(x_t)[1]["sites"])


def test_two_interventions_of_one_structure_share_a_program_and_their_noise(model):
    untouched = model.sample(2, steps=2, seed=3)
    before = sampling._sampled._cache_size()
    gone = model.ablate("mid.block0.res").during(0, 30).sample(2, steps=2, seed=3)
    again = model.temperature("mid.attn0.head.", 3.0).sample(2, steps=2, seed=4)
    assert sampling._sampled._cache_size() == before
    assert not np.array_equal(untouched.images, gone.images)
    assert not np.array_equal(untouched.images, again.images)


def test_samples_are_those_of_the_sampler(model):
    denoiser = model.denoiser
    gone = model.ablate("mid.block0.res")
    levels = ddim_timesteps(denoiser.schedule.steps, 3)

    @jax.jit
    def plain(intervention):
        def predict(x, t):
            return denoiser.predict(intervention, x, t)

        sampler = Sampler(denoiser.schedule, timesteps=levels, clip=denoiser.unet.sample_clip)
        return sample(predict, sampler, jax.random.key(5), (2, *denoiser.image_shape))

    drawn = gone.sample(2, seed=5, steps=3).images
    # Two programs of this network round apart by 3e-4 in three steps; samples span -1 to 1.
    np.testing.assert_allclose(drawn, plain(gone.intervention), atol=2e-3)


def test_patching_with_what_is_there_anyway_changes_nothing(model, images):
    """The source's own noised images under a patch from the source: replaced by themselves."""
    source = images[:2]
    patched = model.patch("mid.attn0.head1", source)
    from mechdiff.core import keys
    from mechdiff.diffusion.process import image_noise, q_sample

    noise = image_noise(keys.stream(KEY, "replacing images"), np.arange(2), source.shape[1:])
    x_t = np.asarray(q_sample(model.denoiser.schedule, source, np.full(2, 30), noise))
    np.testing.assert_allclose(eps(patched, x_t), eps(model, x_t), atol=1e-5)
    assert np.abs(eps(patched, x_t[::-1]) - eps(model, x_t[::-1])).max() > 1e-4


def test_a_mean_is_that_of_the_images_and_zero_forgets_it(model, images):
    many = np.concatenate([images] * 3)[:16]
    averaged = model.ablate("mid.block0.res", with_="mean", images=many)
    from mechdiff.core import keys

    key = keys.stream(KEY, "replacing images")
    captured = activations(model.denoiser, many, 30, key, np.arange(16))["mid.block0.res"]
    identity = model.denoiser.identity
    mean = dict(identity.replacement) | {"mid.block0.res": np.asarray(captured).mean(axis=0)}
    plain = dataclasses.replace(build.ablate(identity, "mid.block0.res"), replacement=mean)
    expected = jax.jit(model.denoiser.predict)(plain, images, np.full(len(images), 30, np.int32))
    np.testing.assert_allclose(eps(averaged, images), expected, atol=1e-5)
    assert averaged.doing == "mean over 16 images: mid.block0.res"
    once = model.ablate((name for name in ["mid.block0.res"]), with_="mean", images=many)  # a list that ends
    assert once.doing == averaged.doing
    zero = averaged.ablate("mid.block0.res")
    np.testing.assert_array_equal(eps(zero, images), eps(model.ablate("mid.block0.res"), images))


def test_errors_name_the_way_out(model, images):
    with pytest.raises(ConfigError, match=r"closest: mid.block0.res"):
        model.ablate("mid.block0.rse")
    with pytest.raises(ConfigError, match=r"model.sweep knows more"):
        model.ablate("mid.block0.res", with_="resample")
    with pytest.raises(ConfigError, match=r"unknown component type 'heads'; closest: head"):
        model.components("heads")
    with pytest.raises(ConfigError, match=r"channels come last"):
        check_inputs(model.denoiser, images.transpose(0, 3, 1, 2), np.zeros(6, np.int32))
    with pytest.raises(ConfigError, match=r"expected one integer timestep"):
        check_inputs(model.denoiser, images, 0.5)
    with pytest.raises(ConfigError, match=r"out of range; integers in \[0, "):
        model.denoiser.captured(model.denoiser.identity, images, np.full(6, 10_000))
    with pytest.raises(ConfigError, match=r"2 images, but mid.block0.res is patched from 1"):
        model.patch("mid.block0.res", images[:1]).sample(2, steps=2)


def test_activations_and_patterns_have_names(model, images):
    acts = model.activations(images, sites="mid.*", timesteps=[10, 45], n=3)
    assert acts["mid.block0.res"].dims[:2] == ("t", "image") and acts.sizes["t"] == 2
    assert acts["mid.block0.res"].attrs["long_name"] and acts["t"].attrs["units"] == "1"
    labeled = model.attention(images, heads="mid.attn0.head1", n=3)
    patterns = labeled["mid.attn0.head1"]
    assert labeled["log_snr"].attrs == acts["log_snr"].attrs and set(acts.attrs) == set(labeled.attrs)
    np.testing.assert_allclose(patterns.sum(patterns.dims[-1]), 1, atol=1e-5)
    uniform = model.temperature("mid.attn0.head1", 1e6).attention(images, heads="mid.attn0.head1", n=3)
    keys = uniform["mid.attn0.head1"].shape[-1]
    np.testing.assert_allclose(uniform["mid.attn0.head1"], 1 / keys, atol=1e-4)


def test_a_users_function_is_examined_on_its_own_images_under_their_classes(tmp_path):
    model = md.load("reference.user_network:with_classes")
    denoiser, images, labels = user_network.with_classes()
    acts = model.activations(sites="mlp", timesteps=[20], n=3)
    key = keys.stream(jax.random.key(0), "scored noise")
    expected = activations(denoiser, images[:3], 20, key, np.arange(3), labels[:3])["mlp"]
    np.testing.assert_allclose(acts["mlp"][0], expected, atol=1e-6)
    swept = model.sweep(n=3, timesteps=1, folder=tmp_path).dataset
    others = EvalSet(images[:3], swept["t"].values, key, np.roll(labels[:3], 1))
    turned = ablation_sweep(denoiser, others, tmp_path, config=SweepConfig(ablations=("zero",)))
    assert np.abs(turned["clean_loss"] - swept["clean_loss"].values).max() > 1e-6
    with pytest.raises(ConfigError, match="takes a condition"):
        model.sample(2)
    assert model.sample(2, steps=2, condition=labels[:2]).images.shape == (2, *denoiser.image_shape)


def test_patches_take_as_many_images_as_there_are(model, images):
    """Whatever holds them; and image i goes into row i of a prediction, whatever that row is."""
    site = "mid.block0.res"
    patched = model.patch(site, images)
    again = model.patch(site, eval_images(model, images, len(images)))
    np.testing.assert_array_equal(again.predict(images[:2], 5), patched.predict(images[:2], 5))
    assert not np.allclose(patched.predict(images[:2], 5), patched.predict(images[1::-1], 5)[::-1], atol=1e-3)


def test_patterns_of_prepared_images_are_of_all_of_them(model, images):
    prepared = eval_images(model, images, 3)
    assert model.attention(prepared, heads=".*head0").sizes["image"] == 3
    assert model.attention(prepared, heads=".*head0", n=3).sizes["image"] == 3
    with pytest.raises(ConfigError, match="n=2: 3 images are prepared already"):
        model.activations(prepared, sites="mid.attn0.head", n=2)


def test_few_images_are_read_as_they_are_many_in_part(model, images):
    site = "mid.attn0.head"
    assert model.activations(images[:3], sites=site).sizes["image"] == 3
    assert model.attention(images[:3], heads=".*head0").sizes["image"] == 3
    assert model.attention(np.tile(images[:5], (2, 1, 1, 1)), heads=".*head0").sizes["image"] == 4
    with pytest.raises(DataError, match=r"an array: 3 different images, but"):
        model.activations(images[:3], sites=site, n=4)
    with pytest.raises(DataError, match=r"an array: 6 images, but"):  # copies, which an array may hold
        model.activations(np.tile(images[:3], (2, 1, 1, 1)), sites=site, n=7)


def test_a_direction_of_one_head_is_named_with_its_number(model):
    depth = model.activations(None, n=2, sites="mid.attn0.head")["mid.attn0.head"].shape[-1]
    assert model.add("mid.attn0.head1", np.ones(depth)).doing.startswith("add: mid.attn0.head1 (length")


def test_bytes_are_shown_as_they_are():
    pixels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    np.testing.assert_array_equal(show(pixels).rows[0], pixels)


def test_means_and_patches_take_what_is_there_but_what_the_model_was_trained_on(model, images, tmp_path):
    site = "mid.block0.res"
    np.save(tmp_path / "images.npy", images)
    few = model.ablate(site, "mean", images[:3])
    assert few.doing == f"mean over 3 images: {site}"
    assert model.ablate(site, "mean", np.concatenate([images] * 4)).doing.startswith("mean over 16 images")
    there = open_collection(tmp_path / "images.npy")
    seen = {TRAINING_IMAGES: [there.recorded[row][:DIGEST_LENGTH] for row in there.rows[:2]]}
    other = dataclasses.replace(model, record=seen)
    assert other.patch(site, tmp_path / "images.npy").doing == f"patched from 4 images: {site}"
    assert other.ablate(site, "mean", tmp_path / "images.npy").doing == f"mean over 4 images: {site}"
    all_seen = {TRAINING_IMAGES: [digest[:DIGEST_LENGTH] for digest in there.recorded]}
    with pytest.raises(DataError, match="0 different images and 6 that tiny was trained on"):
        dataclasses.replace(model, record=all_seen).patch(site, tmp_path / "images.npy")
