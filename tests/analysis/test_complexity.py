"""Complexity: hand-made spectra, moments of a network's own activations, ratios and their controls."""

import jax
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.analysis import complexity
from mechdiff.core.errors import ConfigError
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


def test_a_networks_number_is_the_geometric_mean_over_sites_and_levels(measured):
    sites = complexity.site_values(measured[0], "rank")
    expected = np.exp(np.mean([np.log(value).mean() for value in sites.values()]))
    measure = complexity.covariance_measure(measured[0], "rank")
    assert complexity.values([measure], GROUPS)[0] == pytest.approx(expected)
    with pytest.raises(ConfigError, match="unknown measure"):
        complexity.covariance_measure(measured[0], "size")


def test_circuit_size_is_the_smallest_that_reaches_the_threshold():
    sizes, curve = np.array([8, 1, 4, 2]), np.array([[0.99, 0.1, 0.95, 0.5], [0.7, 0.1, 0.4, 0.2]])
    np.testing.assert_array_equal(complexity.circuit_size(sizes, curve, 0.9), [4, np.nan])
    assert complexity.circuit_size(sizes, curve[0], 0.97) == 8


def networks(mean, seed, count=5, images=30, spread=0.05):
    """Measures that are means over images of numbers of every network's own scale."""
    rng = np.random.default_rng(seed)
    scales = mean * np.exp(spread * rng.standard_normal(count))
    data = [scale * np.exp(0.1 * rng.standard_normal(images)) for scale in scales]
    return [lambda weights, item=item: weights @ item for item in data]


def test_a_ratio_is_found_with_its_interval():
    measured = complexity.ratio(networks(1.3, 0), networks(1.0, 1), 30)
    assert measured.student.estimate == pytest.approx(1.3, rel=0.1) == measured.hierarchical.estimate
    for interval in (measured.student, measured.hierarchical):
        assert 1 < interval.low < interval.estimate < interval.high and interval.n == 5
    assert measured.p == pytest.approx(2 / 32)
    assert np.exp(np.log(measured.pairs).mean()) == pytest.approx(float(measured.student.estimate))


def test_intervals_of_equal_data_sets_hold_one_most_times():
    held = []
    for seed in range(100):
        measured = complexity.ratio(
            networks(1, seed, 4), networks(1, 999 + seed, 4), 30, repeats=50, seed=seed
        )
        held.append(measured.student.low < 1 < measured.student.high)
    assert np.mean(held) > 0.88


def test_controls_are_near_one_and_wide_where_seeds_differ():
    control = complexity.halves(networks(1.3, 0), 30)
    assert np.quantile(control, 0.025) < 1 < np.quantile(control, 0.975) < 1.1
    pairs = complexity.among_seeds(np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(sorted(pairs), [2, 2, 4])


def test_a_single_pair_has_a_ratio_without_an_interval_over_pairs():
    measured = complexity.ratio(networks(1.3, 0, 1), networks(1.0, 1, 1), 30, repeats=50)
    assert np.isnan(measured.student.low) and np.isnan(measured.p) and measured.hierarchical.low > 1
    with pytest.raises(ConfigError, match="do not form pairs"):
        complexity.ratio(networks(1, 0, 2), networks(1, 1, 1), 30)
