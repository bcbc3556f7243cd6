"""Correlation of attention entropy with another quantity of heads: planted ones, and nulls."""

import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis import entropy_correlation
from mechdiff.core.errors import ConfigError

HEADS, LEVELS, IMAGES = 12, 2, 8
NAMES = [f"{layer}.head{i}" for layer in ("down1.attn0", "mid.attn0", "up1.attn0") for i in range(4)]


def attention(entropy) -> xr.Dataset:
    """Every head's normalized entropy with a little noise of levels and images."""
    noise = 0.01 * np.random.default_rng(0).standard_normal((HEADS, LEVELS, IMAGES))
    values = np.asarray(entropy)[:, None, None] + noise
    variables = {"normalized_entropy": (("head", "t", "image"), values)}
    return xr.Dataset(variables, coords={"head": NAMES, "tokens": ("head", [16] * HEADS)})


def spread(values, seed=1):
    noise = 0.01 * np.random.default_rng(seed).standard_normal((HEADS, LEVELS, IMAGES))
    return np.asarray(values)[:, None, None] + noise


def mean_of(values):
    """A quantity that is averaged over levels and images."""
    return lambda weights: values.mean(1) @ weights.T


def test_a_quantity_that_follows_entropy_is_seen_to():
    entropy = np.random.default_rng(2).uniform(0, 1, HEADS)
    result = entropy_correlation.correlation(attention(entropy), mean_of(spread(entropy**2)), repeats=200)
    assert result.overall.estimate > 0.9 and result.overall.low > 0.8 and result.within.estimate > 0.8
    assert max(result.p, result.p_within) < 0.02 and result.heads == HEADS
    clean = np.ones((LEVELS, IMAGES))
    lowered = entropy_correlation.effect_size(clean, clean + spread(-0.5 * entropy))
    sizes = entropy_correlation.correlation(attention(entropy), lowered, repeats=200)
    assert sizes.overall.estimate > 0.9  # the size of the effect, whatever its sign


def test_noise_of_the_images_hides_no_correlation_from_its_interval():
    entropy, rng = np.random.default_rng(2).uniform(0, 1, HEADS), np.random.default_rng(4)
    noisy = [entropy[:, None, None] + rng.normal(size=(HEADS, LEVELS, IMAGES)) for _ in range(15)]
    results = [
        entropy_correlation.correlation(attention(entropy), mean_of(values), repeats=50) for values in noisy
    ]
    for interval in [each.overall for each in results] + [each.within for each in results]:
        assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    assert np.mean([each.overall.high > 0.99 for each in results]) > 0.9  # it is 1


def test_a_difference_between_layers_is_not_one_within():
    layer = np.repeat([0.2, 0.5, 0.8], 4)
    rng = np.random.default_rng(3)
    x, y = layer + 0.05 * rng.uniform(-1, 1, HEADS), layer + 0.05 * rng.uniform(-1, 1, HEADS)
    result = entropy_correlation.correlation(attention(x), mean_of(spread(y)), repeats=200)
    assert result.p < 0.02 < 0.05 < result.p_within and result.overall.estimate > 0.8


def test_where_there_is_no_correlation_there_is_no_p():
    """With one head in each layer nothing is left within layers; an effect that is alike everywhere has no
    ranks."""
    entropy = np.random.default_rng(2).uniform(0, 1, HEADS)
    alone = attention(entropy).assign_coords(head=[f"down{i}.attn0.head0" for i in range(HEADS)])
    result = entropy_correlation.correlation(alone, mean_of(spread(entropy**2)), repeats=20)
    assert np.isnan(result.within.estimate) and np.isnan(result.p_within) and result.p < 0.1
    alike = entropy_correlation.correlation(
        attention(entropy), lambda weights: np.ones((HEADS, len(weights))), repeats=20
    )
    assert np.isnan(alike.overall.estimate) and np.isnan(alike.p)


def test_unrelated_quantities_give_uniform_p():
    p = []
    for seed in range(40):
        x, y = np.random.default_rng(seed).uniform(0, 1, (2, HEADS))
        result = entropy_correlation.correlation(attention(x), mean_of(spread(y)), repeats=60, seed=seed)
        p += [(result.p, result.p_within)]
    assert (np.array(p) < 0.1).mean(0).max() < 0.25 and 0.35 < np.mean(p) < 0.65


def test_intervals_of_a_correlation_draw_people_where_they_are_known():
    """Eight images of two and of eight people: eight people are as good as images, alike ones aren't."""
    entropy = np.random.default_rng(2).uniform(0, 1, HEADS)
    noise = np.repeat(0.4 * np.random.default_rng(5).standard_normal((HEADS, 1, 4)), 2, axis=-1)
    other = mean_of(entropy[:, None, None] + np.broadcast_to(noise, (HEADS, LEVELS, IMAGES)))
    plain = attention(entropy)
    people = {"pairs": np.repeat(np.arange(4), 2), "each": np.arange(8)}
    known = {name: plain.assign_coords(person=("image", person)) for name, person in people.items()}
    intervals = {
        name: entropy_correlation.correlation(entropies, other, repeats=400).overall
        for name, entropies in {"images": plain, **known}.items()
    }
    images, each = intervals["images"], intervals["each"]
    assert (images.n, each.n, intervals["pairs"].n) == (8, 8, 4)
    assert images.low == each.low and images.high == each.high
    width = {name: interval.high - interval.low for name, interval in intervals.items()}
    assert width["pairs"] > 1.2 * width["images"]


def test_other_heads_are_refused():
    with pytest.raises(ConfigError, match="12 heads have an entropy, 3"):
        entropy_correlation.correlation(attention(np.ones(HEADS)), mean_of(np.ones((3, LEVELS, IMAGES))))


def test_the_strongest_selectivity_is_that_of_the_weighted_effects():
    values = np.ones((2, 3, 1, 2))
    values[0, 1] = [[3, 7]]
    values[1] = 0
    effect = xr.Dataset(
        {"effect": (("component", "target", "t", "image"), values)},
        coords={"component": ["a.head0", "a.head1"], "target": ["edges", "color", "layout"]},
    )
    result = entropy_correlation.max_selectivity(effect)(np.array([[1.0, 0], [0.5, 0.5]]))
    np.testing.assert_allclose(result, [[2 / 4, 4 / 6], [-1, -1]])
