"""Complexity: hand-made spectra, moments of a network's own activations, and what is made of them."""

import jax
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.analysis import complexity
from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import forward
from mechdiff.sweeps import channel_moments

UNET, SCHEDULE = SMALL, make_schedule(preset("tiny").diffusion)
PARAMS, IDENTITY = random_params(UNET), identity_of(UNET)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (7, 8, 8, 3)).astype(np.float32)
DENOISER = Denoiser("random", UNET, SCHEDULE, PARAMS, IDENTITY)
LEVELS, KEY, GROUPS = (3, 40), jax.random.key(2), 3
EVEN = np.full((1, GROUPS), 1 / GROUPS)


@jax.jit
def captured(params, rows):
    """Activations of all sites, of six images at the timesteps of their rows."""
    x_t = q_sample(SCHEDULE, IMAGES[:6], rows, image_noise(KEY, np.arange(6), (8, 8, 3)))
    return forward(UNET, params, IDENTITY, x_t, rows, capture=("sites",))[1]["sites"]


def test_equal_eigenvalues_count_as_dimensions():
    spectrum = np.diag([2.0, 2.0, 2.0, 0.0])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    turned = rotation @ spectrum @ rotation.T
    for measure in (channel_moments.participation_ratio, channel_moments.effective_rank):
        assert measure(turned) == pytest.approx(3)
        assert np.isnan(measure(np.zeros((4, 4))))
    assert channel_moments.variance(turned) == pytest.approx(1.5)
    uneven = np.diag([3.0, 1.0])
    assert channel_moments.participation_ratio(uneven) == pytest.approx(16 / 10)
    assert channel_moments.effective_rank(uneven) == pytest.approx(4 / 27**0.25)


@pytest.fixture(scope="module")
def measured():
    # Taken away from both levels alike, though they are those of one of them.
    means = {site: np.stack([a.mean(0)] * 2) for site, a in _activations(LEVELS[1]).items()}
    return channel_moments.channel_moments(
        DENOISER, EvalSet(IMAGES, LEVELS, KEY), means=means, groups=GROUPS
    ), means


def _activations(t):
    rows = np.full(6, t, np.int32)
    return jax.tree.map(np.asarray, captured(PARAMS, rows))


def test_moments_are_those_of_the_networks_activations(measured):
    measured, means = measured
    activations = _activations(LEVELS[1])
    assert set(measured) == {site for site in activations if not site.endswith("time")}
    for site in measured:
        rows = (activations[site] - means[site][1]).reshape(-1, measured[site].first.shape[-1])
        expected = np.cov(rows.T, bias=True)
        got = channel_moments.covariance(measured[site], EVEN)[0, 1]
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    assert measured["down0.attn0.head"].rows.tolist() == [2 * 64] * GROUPS  # 6 of 7 images, 8 x 8 tokens


def test_a_sites_number_is_that_of_its_covariance(measured):
    measured = measured[0]
    ranks = complexity.site_values(measured, "rank")
    for site, value in ranks.items():
        expected = channel_moments.effective_rank(channel_moments.covariance(measured[site], EVEN)[0])
        np.testing.assert_allclose(value, expected)
