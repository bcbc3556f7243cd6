"""Fills that differ between images against plain loops of ablations, and what their draws promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import ablate
from mechdiff.interventions.components import component_at
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import apply_unet, components
from mechdiff.sweeps import activations
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.execution import joining_rows
from mechdiff.sweeps.replacements import derangements, noise_replacements, resample_replacements

UNET, SCHEDULE = SMALL, cosine_schedule(50)
PARAMS = jax.device_put(random_params(UNET), jax.devices()[0])  # as checkpoints are read
DENOISER = Denoiser("random", UNET, SCHEDULE, PARAMS, identity_of(UNET))
IMAGES = np.random.default_rng(1).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
LEVELS = np.array([3, 40])
KEY = jax.random.key(5)
NAMES = ("down0.block0.res", "mid.attn0.head1", "up0.block1.skip", "mid.block1.time")
CHOSEN = tuple(component_at(components(UNET), name) for name in NAMES)
plain = jax.jit(apply_unet, static_argnums=0)


def swept(ablation, replacements, folder, block=4):
    config = SweepConfig(ablations=(ablation,), image_block=block)
    result = ablation_sweep(
        DENOISER,
        EvalSet(IMAGES, LEVELS, KEY),
        folder,
        config=config,
        replacements={ablation: replacements},
        chosen=CHOSEN,
    )
    return result.sel(ablation=ablation)


def plain_losses(level, replacements):
    """Losses of the chosen components, one plain pass each, with `fills` of every image."""
    noise = image_noise(KEY, np.arange(5), IMAGES.shape[1:])
    t = jnp.full(5, LEVELS[level])
    x_t = q_sample(SCHEDULE, IMAGES, t, noise)
    losses = []
    for name in NAMES:
        eps = plain(UNET, DENOISER.params, ablate(DENOISER.identity, [name], "given", replacements), x_t, t)
        losses.append(((eps - noise) ** 2).mean((1, 2, 3)))
    return np.stack(losses)


@pytest.fixture(scope="module")
def donors():
    return resample_replacements(DENOISER, EvalSet(IMAGES, LEVELS, KEY), draws=2)


def test_resampling_gives_each_image_the_activation_of_its_donor(donors, tmp_path):
    result = swept("resample", donors, tmp_path)
    for level, t in enumerate(LEVELS):
        all_of_them = activations.activations(DENOISER, IMAGES, int(t), KEY, np.arange(5))
        expected = [
            plain_losses(level, {site: np.asarray(a)[donor] for site, a in all_of_them.items()})
            for donor in donors.donors
        ]
        np.testing.assert_allclose(result.loss.isel(t=level), np.mean(expected, axis=0), rtol=1e-5)


def test_donors_of_pictures_nested_in_levels_are_of_their_level():
    nested = np.stack([IMAGES[:2], IMAGES[2:4]])
    source = resample_replacements(DENOISER, EvalSet(nested, LEVELS, KEY))
    result = source.at(1, np.arange(2), 0)
    expected = activations.activations(DENOISER, IMAGES[[3, 2]], int(LEVELS[1]), KEY, np.array([3, 2]))
    for site, values in result.items():
        np.testing.assert_array_equal(values, expected[site])


def test_rows_that_are_taken_a_few_at_a_time_get_the_fills_of_their_images(donors, tmp_path, monkeypatch):
    whole = swept("resample", donors, tmp_path / "whole")
    monkeypatch.setattr(joining_rows, "_block", lambda stage, rows, *shape: min(rows, 7))
    few = swept("resample", donors, tmp_path / "few", block=5)  # of another shape: compiled with these blocks
    np.testing.assert_allclose(few.loss, whole.loss, rtol=1e-5)


def test_with_every_other_image_as_donor_the_circle_does_not_matter(donors, tmp_path):
    """The mean over all donors is the mean over all pairs of images."""
    circles = [derangements(jax.random.key(i), 5, 4) for i in (1, 2)]
    assert (circles[0] != circles[1]).any()
    single, two = (swept("resample", dataclasses.replace(donors, donors=all_), tmp_path) for all_ in circles)
    assert single.attrs["key"] != two.attrs["key"]
    np.testing.assert_allclose(single.loss, two.loss, rtol=1e-5)


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40), data=st.data())
def test_no_image_is_its_own_donor_nor_has_one_twice(seed, count, data):
    draws = data.draw(st.integers(1, count - 1))
    donors = derangements(jax.random.key(seed), count, draws)
    assert (donors != np.arange(count)).all()
    assert (np.sort(donors, axis=1) == np.arange(count)).all()
    assert all(len(set(column)) == draws for column in donors.T)


def test_more_donors_than_other_images_are_refused():
    with pytest.raises(ConfigError, match="5 donors from 5 images"):
        derangements(KEY, 5, 5)
    with pytest.raises(ConfigError, match="draws=0 is too small"):
        noise_replacements(DENOISER, EvalSet(IMAGES, LEVELS, KEY), draws=0)
    with pytest.raises(ConfigError, match="draws=8"):
        SweepConfig(ablations=("resample",), images=8, draws=8)


def test_noise_has_the_moments_asked_for_and_is_fresh_everywhere(tmp_path):
    source = noise_replacements(DENOISER, EvalSet(IMAGES[::-1].copy(), LEVELS, KEY), draws=100)
    site = "mid.block0.res"
    drawn = np.stack([np.asarray(source.at(1, np.arange(5), draw)[site]) for draw in range(100)])
    xi = (drawn - source.means[site][1]) / source.deviations[site][1]
    assert abs(xi.mean()) < 0.01 and abs(xi.std() - 1) < 0.01
    flat = xi.transpose(1, 0, 2, 3, 4).reshape(5, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(5)).max() < 0.02


def test_noise_in_a_sweep_is_that_of_its_source(tmp_path):
    source = noise_replacements(DENOISER, EvalSet(IMAGES[::-1].copy(), LEVELS, KEY))
    result = swept("noise", source, tmp_path)
    expected = plain_losses(1, source.at(1, np.arange(5), 0))
    np.testing.assert_allclose(result.loss.isel(t=1), expected, rtol=1e-5)
