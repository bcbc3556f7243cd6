"""Activations as labeled arrays, against arithmetic on named values and on what flows between stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax.ad_checkpoint import checkpoint_name as name
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import ablate
from mechdiff.models import unet
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.traced import wrap
from mechdiff.storage import labelled
from mechdiff.sweeps.activation_datasets import activations

SCHEDULE, KEY = linear_schedule(50), jax.random.key(4)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
EVAL_SET = EvalSet(IMAGES, [5, 40], KEY)


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser("small", SMALL, SCHEDULE, random_params(SMALL), identity_of(SMALL))


def noisy(t):
    noise = image_noise(KEY, np.arange(3), IMAGES.shape[1:])
    return q_sample(SCHEDULE, IMAGES, np.full(3, t), noise)


def test_sites_and_the_stream_after_a_stage_of_a_unet(denoiser):
    chosen = ["mid.*res", "mid.attn0.head", "mid.block0.time", "mid.attn0", "mid.block1"]
    acts = activations(denoiser, EVAL_SET, chosen, block=2)
    assert acts["mid.block0.res"].dims == ("t", "image", "y_8", "x_8", "channel_8")
    assert acts["mid.attn0.head"].dims == ("t", "image", "token_64", "head_2", "depth_4")
    assert acts["mid.block0.time"].dims == ("t", "image", "channel_8")
    # the stream after the last block is what went in and its branch
    branch = acts["mid.block1"] - acts["mid.attn0"]
    np.testing.assert_allclose(branch, acts["mid.block1.res"], atol=1e-5)
    network = functools.partial(unet.forward, SMALL, capture=("sites",))
    forward = jax.jit(network)  # op by op it is 90 programs
    for t in EVAL_SET.timesteps:
        captured = forward(denoiser.params, denoiser.identity, noisy(t), np.full(3, t))[1]["sites"]
        for site in ("mid.block0.res", "mid.attn0.head", "mid.block0.time"):
            np.testing.assert_allclose(acts[site].sel(t=t), captured[site], rtol=1e-4, atol=1e-5)


def test_an_intervention_reaches_what_comes_after_it(denoiser):
    without = ablate(denoiser.identity, ["down0.block0.res"])
    options = {"sites": ["down0.block0.res", "mid.block0.res"], "timesteps": [7]}
    plain = activations(denoiser, EVAL_SET, **options)
    acts = activations(denoiser, EVAL_SET, **options, intervention=without)
    assert acts["t"].values.tolist() == [7]
    np.testing.assert_allclose(acts["down0.block0.res"], plain["down0.block0.res"], atol=1e-6)
    assert np.abs(acts["mid.block0.res"] - plain["mid.block0.res"]).max() > 1e-3


def test_on_disk_it_is_the_same_and_goes_on_where_it_stopped(denoiser, tmp_path, monkeypatch):
    whole = activations(denoiser, EVAL_SET, "mid.block0.*", block=2)
    put, pieces = labelled.put, []

    def stops_at_the_third(path, region, values):
        if len(pieces) == 2:
            raise KeyboardInterrupt
        pieces.append(region)
        put(path, region, values)

    monkeypatch.setattr(labelled, "put", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        activations(denoiser, EVAL_SET, "mid.block0.*", block=2, folder=tmp_path)
    monkeypatch.setattr(labelled, "put", lambda *args: (pieces.append(1), put(*args)))
    stored = activations(denoiser, EVAL_SET, "mid.block0.*", block=2, folder=tmp_path)
    assert len(pieces) == 4  # two timesteps of two blocks, none twice
    xr.testing.assert_equal(stored.load(), whole)
    activations(denoiser, EVAL_SET, "mid.block0.*", block=2, folder=tmp_path)
    assert len(pieces) == 4
    activations(denoiser, EVAL_SET, "mid.block1.*", block=2, folder=tmp_path)
    assert len(pieces) == 8 and len(list(tmp_path.glob("*.zarr"))) == 2


def test_named_values_of_any_function_under_their_conditions():
    def fn(params, x, t, label):
        h = name(x + label[:, None, None, None], "shifted")
        heads = name(h.reshape(len(x), 64, 3, 1) * params, "block.head@2")
        pattern = name(jnp.einsum("bqhd,bkhd->bhqk", heads, heads), "block.pattern@1")
        mixed = jnp.einsum("bhqk,bkhd->bqhd", pattern, heads).reshape(x.shape)
        return name(mixed.mean((1, 2)), "pooled")[:, None, None] + mixed

    labels = np.array([1.0, 2.0, 3.0], np.float32)
    example = IMAGES[:1], np.array([3]), labels[:1]
    model = wrap(fn, jnp.float32(2.0), schedule=SCHEDULE, example=example)
    acts = activations(model, EvalSet(IMAGES, [5, 40], KEY, labels), block=2)
    assert {site: acts[site].dims[2:] for site in acts} == {
        "shifted": ("y_8", "x_8", "channel_3"),
        "block.head": ("token_64", "head_3", "depth_1"),
        "block.pattern": ("head_3", "query_64", "key_64"),
        "pooled": ("channel_3",),
    }
    for t in (5, 40):
        shifted = noisy(t) + labels[:, None, None, None]
        np.testing.assert_allclose(acts["shifted"].sel(t=t), shifted, atol=1e-5)
        heads = 2 * shifted.reshape(3, 64, 3, 1)
        np.testing.assert_allclose(acts["block.head"].sel(t=t), heads, rtol=1e-4, atol=1e-5)


def test_what_matches_nothing_is_refused(denoiser):
    for sites, expected in (("mid.block0.ress", "mid.block0.res"), ("[", "not a regular expression")):
        with pytest.raises(ConfigError, match=expected):
            activations(denoiser, EVAL_SET, sites)
    with pytest.raises(ConfigError, match=r"timestep 50 is out of range; integers in \[0, 50\)"):
        activations(denoiser, EVAL_SET, timesteps=[50])
