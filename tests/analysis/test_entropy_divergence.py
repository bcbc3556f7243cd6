"""Divergence of attention entropies: definitions by hand, and controls that tell chance from difference."""

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import jensenshannon

from mechdiff.analysis import entropy_divergence
from mechdiff.core.errors import ConfigError

HEADS, LEVELS, IMAGES = 6, 3, 40
TOKENS = np.array([16, 16, 16, 64, 64, 64])


def attention(shift=0.0, seed=0, heads=None, images=IMAGES) -> xr.Dataset:
    """Entropies around half of their maximum: a head's own mean, and noise of every image."""
    rng = np.random.default_rng(seed)
    means = np.zeros(HEADS) if heads is None else heads
    noise = 0.1 * rng.standard_normal((HEADS, LEVELS, images))
    entropy = np.log(TOKENS)[:, None, None] / 2 + means[:, None, None] + noise
    entropy += np.broadcast_to(shift, (LEVELS,))[:, None]
    return xr.Dataset(
        {"entropy": (("head", "t", "image"), entropy)},
        coords={
            "head": [f"mid.attn0.head{i}" for i in range(HEADS)],
            "t": np.arange(LEVELS),
            "log_snr": ("t", -np.arange(LEVELS, dtype=float)),
            "tokens": ("head", TOKENS),
        },
    )


def test_measures_are_their_definitions():
    first, second = (attention(seed=i)["entropy"].values for i in range(2))
    even = (np.full((1, IMAGES), 1 / IMAGES),) * 2
    means = first.mean(-1) - second.mean(-1)
    result = entropy_divergence.mean_difference(first, second, even)[:, 0]
    np.testing.assert_allclose(result, means.mean(0))
    result = entropy_divergence.head_differences(first, second, even)[:, 0]
    np.testing.assert_allclose(result, np.sqrt((means**2).mean(0)))
    result = entropy_divergence.histogram_divergence(first, second, even, TOKENS, bins=8)[:, 0]
    expected = np.zeros(LEVELS)
    for t in range(LEVELS):
        for h in range(HEADS):
            p, q = (np.histogram(x[h, t], 8, (0, np.log(TOKENS[h])))[0] for x in (first, second))
            expected[t] += jensenshannon(p, q) ** 2 / HEADS
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_disjoint_histograms_are_a_bit_apart_and_equal_ones_nothing():
    low, high = attention(-1.0)["entropy"].values, attention(1.0)["entropy"].values
    even = (np.full((1, IMAGES), 1 / IMAGES),) * 2
    np.testing.assert_allclose(entropy_divergence.histogram_divergence(low, high, even, TOKENS), np.log(2))
    np.testing.assert_allclose(entropy_divergence.histogram_divergence(low, low, even, TOKENS), 0, atol=1e-12)


@pytest.mark.parametrize("measure", entropy_divergence.MEASURES)
def test_a_difference_at_one_level_is_found_at_that_level(measure):
    result = entropy_divergence.compare(attention(), attention([0, 0.3, 0], seed=1), measure, draws=200)
    assert result.p[1] < 0.02 and result.p[[0, 2]].min() > 0.05
    assert result.value.low.shape == (LEVELS,) and result.within.shape == (2, LEVELS, 200)


def test_means_are_blind_to_heads_that_cancel_and_heads_are_not():
    apart = 0.2 * np.array([1, -1, 1, -1, 1, -1])
    pair = attention(), attention(seed=1, heads=apart)
    assert entropy_divergence.compare(*pair, "means", draws=100).p.min() > 0.05
    assert entropy_divergence.compare(*pair, "heads", draws=100).p.max() < 0.05


def test_p_values_of_equal_data_sets_are_not_too_small():
    pairs = [(attention(seed=i), attention(seed=1000 + i)) for i in range(60)]
    for measure in ("means", "heads"):
        p = np.array([entropy_divergence.compare(*pair, measure, draws=60, seed=3).p.min() for pair in pairs])
        assert (p <= 0.2).mean() < 0.35


def test_unlike_sets_are_refused():
    other = attention().assign_coords(t=[5, 6, 7])
    with pytest.raises(ConfigError, match="differ in 't'"):
        entropy_divergence.compare(attention(), other)
    with pytest.raises(ConfigError, match="unknown measure"):
        entropy_divergence.compare(attention(), attention(), "entropy")


def of_people(seed, people=10, each=8) -> xr.Dataset:
    """Entropies whose noise is mostly that of the person: nothing differs between two such sets."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), each)
    apart = 0.1 * rng.standard_normal((1, LEVELS, people))[..., person]
    plain = attention(seed=seed, images=people * each)
    return plain.assign(entropy=plain["entropy"] + apart).assign_coords(person=("image", person))


def test_people_not_images_are_relabelled_and_drawn():
    # Images as units find a difference where only other people were drawn (null), people as units don't.
    pairs = [(of_people(i), of_people(1000 + i)) for i in range(40)]
    unknown = [tuple(side.drop_vars("person") for side in pair) for pair in pairs]
    half_known = [(pair[0], attention(seed=2000 + i, images=80)) for i, pair in enumerate(pairs)]

    def errs(sets):
        p = [entropy_divergence.compare(*pair, "means", draws=99).p.min() for pair in sets]
        return np.mean(np.array(p) <= 0.05)

    assert errs(unknown) > 0.3 and errs(pairs) < 0.17
    assert errs(half_known) < 0.17
    shifted = of_people(1).assign(entropy=of_people(1)["entropy"] + 0.4)
    result = entropy_divergence.compare(of_people(0), shifted, "means", draws=99)
    assert result.p.max() < 0.05 and result.value.n == 10
    by_image = entropy_divergence.compare(*unknown[0], "means", draws=99).value
    by_person = entropy_divergence.compare(*pairs[0], "means", draws=99).value
    assert ((by_person.high - by_person.low) > 1.3 * (by_image.high - by_image.low)).all()
    with pytest.raises(ConfigError, match="3 people"):
        entropy_divergence.compare(of_people(0, people=3), of_people(1, people=3))
