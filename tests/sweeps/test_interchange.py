"""Factor-pair interchange against plain passes, and on networks where what carries a factor is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core import keys
from mechdiff.core.errors import ConfigError
from mechdiff.data.factors import SPECS
from mechdiff.data.synthetic import factor_pair
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import ablate
from mechdiff.interventions.components import component_at
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, denoise
from mechdiff.storage import labelled
from mechdiff.sweeps import activations, interchange

UNET, SCHEDULE = SMALL, cosine_schedule(50)
SUBJECT = Denoiser("random", UNET, SCHEDULE, random_params(UNET), identity_of(UNET))
LEVELS, KEY, PAIRS = np.array([3, 40]), jax.random.key(4), 3
FACTORS = ("background_brightness", "hair_style")
NAMES = ("down0.block0.res", "mid.attn0.head1", "up0.block1.skip", "up0.block0.skip", "mid.block1.time")
CHOSEN = tuple(component_at(components(UNET), name) for name in NAMES)
TWO_CHANNELS = dataclasses.replace(SUBJECT, unet=dataclasses.replace(UNET, in_channels=2, out_channels=2))
plain = jax.jit(denoise, static_argnums=0)


@pytest.fixture(scope="module")
def pairs():
    return interchange.factor_pairs(keys.stream(KEY, "faces"), FACTORS[1], PAIRS, 8)


@pytest.fixture(scope="module")
def measured():
    return interchange.interchange_effects(
        SUBJECT, LEVELS, interchange.PairSet(KEY, FACTORS, PAIRS), chosen=CHOSEN, block=2
    )


def test_pieces_that_were_kept_are_not_measured_again(measured, tmp_path, monkeypatch):
    """One factor first, then both: bit for bit what was measured in memory."""
    put, pieces = labelled.put, []
    monkeypatch.setattr(labelled, "put", lambda *args: (pieces.append(1), put(*args)))
    for factors, count in ((FACTORS[:1], 4), (FACTORS, 8)):  # two timesteps of two blocks each
        pairs = interchange.PairSet(KEY, factors, PAIRS)
        kept = interchange.interchange_effects(
            SUBJECT, LEVELS, pairs, chosen=CHOSEN, block=2, folder=tmp_path
        )
        assert len(pieces) == count
    xr.testing.assert_identical(kept, measured)


def test_moved_is_that_of_plain_passes(pairs, measured):
    first, second = pairs
    key, index, at = keys.stream(KEY, "noise"), np.arange(PAIRS), jnp.full(PAIRS, LEVELS[1])
    noise = image_noise(key, index, first.shape[1:])
    seen = [q_sample(SCHEDULE, x, at, noise) for x in pairs]

    def run(intervention, x):
        return np.asarray(plain(UNET, SCHEDULE, SUBJECT.params, intervention, x, at), np.float64)

    eps, other = (run(SUBJECT.identity, x) for x in seen)
    replacements = activations.activations(SUBJECT, second, int(LEVELS[1]), key, index)
    cell = measured.sel(factor=FACTORS[1]).isel(t=1)
    for name in NAMES:
        changed = run(ablate(SUBJECT.identity, [name], "interchange", replacements), seen[0])
        expected = ((changed - eps) * (other - eps)).sum((1, 2, 3)) / ((other - eps) ** 2).sum((1, 2, 3))
        np.testing.assert_allclose(cell.moved.sel(component=name), expected, rtol=1e-3, atol=1e-5)


def test_time_carries_no_factor_and_the_first_skip_carries_something(measured):
    assert np.abs(measured.moved.sel(component="mid.block1.time")).max() < 1e-5
    assert np.abs(measured.moved.sel(component="up0.block1.skip")).min() > 1e-3
    assert (measured.distance > 0).all()


def test_the_sole_path_carries_everything(measured):
    """With what is in the trunk cut off before the last block, all goes through that block's skip."""
    params = jax.tree.map(np.copy, SUBJECT.params)
    last = params["up0.block1"]
    trunk = last["conv1"]["kernel"].shape[2] - UNET.widths[0]
    last["shortcut"]["kernel"][:, :, :trunk] = 0
    last["norm1"]["scale"][:trunk] = 0
    last["norm1"]["bias"][:trunk] = 0
    alone = dataclasses.replace(SUBJECT, params=params)
    pairs = interchange.PairSet(KEY, FACTORS[:1], PAIRS)
    got = interchange.interchange_effects(alone, LEVELS, pairs, chosen=CHOSEN, block=2)
    np.testing.assert_allclose(got.moved.sel(component="up0.block1.skip"), 1, atol=1e-4)
    np.testing.assert_allclose(got.moved.drop_sel(component="up0.block1.skip"), 0, atol=1e-4)


def test_carriers_are_ratios_of_sums_with_intervals_over_pairs(measured):
    estimate, interval = interchange.transfer_by_component(measured, repeats=200)
    expected = measured.along.sum(("t", "image")) / measured.distance.sum(("t", "image"))
    np.testing.assert_allclose(estimate, expected.transpose("factor", "component"), rtol=1e-5)
    assert (interval.low <= interval.estimate + 1e-9).all() and interval.n == PAIRS
    assert (interval.low < interval.high).any()


def test_a_factor_that_changes_nothing_has_no_carriers(measured):
    """Both sums are rounding where faces don't differ; their ratio was a share with a narrow interval."""
    alike = measured.assign(distance=0 * measured.distance + 1e-14)
    estimate, interval = interchange.transfer_by_component(alike, repeats=20)
    assert np.isnan(estimate).all() and np.isnan(interval.low).all()
    once = measured.assign(distance=measured.distance.where(measured.image == 0, 1e-14))
    estimate, interval = interchange.transfer_by_component(once, repeats=200)  # some resamples lack that pair
    assert np.isfinite(estimate).all() and np.isnan(interval.low).all() and np.isnan(interval.high).all()


def test_an_unknown_factor_is_one_line_with_the_closest():
    with pytest.raises(ConfigError, match="closest: hair_style"):
        interchange.PairSet(KEY, ("hairstyle",))


@pytest.mark.parametrize("setting", [{"count": 0}, {"complexity": 9}])
def test_pairs_that_can_not_be_drawn_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"{name.replace('count', 'pairs')}={value}"):
        interchange.PairSet(KEY, ("glasses",), **setting)


def test_faces_of_gray_networks_are_gray_as_files_are():
    """To half a level of 8 bits, to which Pillow rounds."""
    pairs = interchange.PairSet(KEY, ("glasses",), 2)
    sides = zip(pairs.at("glasses", 8, LEVELS), pairs.at("glasses", 8, LEVELS, channels=1), strict=True)
    for colored, gray in sides:
        levels = np.rint((np.asarray(colored.images) + 1) * 127.5).astype(np.uint8)
        expected = np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in levels])
        assert gray.images.shape == (2, 8, 8, 1)
        assert np.abs((np.asarray(gray.images)[..., 0] + 1) * 127.5 - expected).max() < 1.1
    with pytest.raises(ConfigError, match="faces have 3 channels, or 1 in gray, its images have 2"):
        interchange.interchange_effects(TWO_CHANNELS, LEVELS, pairs)


def test_pairs_are_of_the_class_of_their_first_face_whatever_factor_differs():
    """Classes cut a factor's range into halves: by the factor as it was drawn, here and in training."""
    plain = interchange.PairSet(KEY, ("skin_brightness",), 8)
    pairs = interchange.labeled(plain, "skin_brightness", 2)
    spec, faces = SPECS["skin_brightness"], keys.stream(KEY, "faces")
    drawn = [factor_pair(faces, i, "skin_brightness", 8)[0].factors["skin_brightness"] for i in range(8)]
    np.testing.assert_array_equal(pairs.condition, np.array(drawn) > (spec.low + spec.high) / 2)
    assert set(pairs.condition) == {0, 1}
    for side in pairs.at("skin_brightness", 8, LEVELS):
        np.testing.assert_array_equal(side.condition, pairs.condition)
    with pytest.raises(ConfigError, match=r"data\.classes for synthetic.*; closest: skin_brightness"):
        interchange.labeled(plain, "skin_bright", 2)
