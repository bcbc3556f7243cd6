"""Variation over timesteps and images, by hand."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from mechdiff.analysis import variation


def sweep(increase):
    """A sweep of two timesteps whose clean loss is 1, from increases `[component, t, image]` in %."""
    loss = 1 + np.asarray(increase, float)[None] / 100
    names = [f"c{i}" for i in range(loss.shape[1])]
    return xr.Dataset(
        {
            "loss": (("ablation", "component", "t", "image"), loss),
            "clean_loss": (("t", "image"), np.ones(loss.shape[2:])),
        },
        coords={"ablation": ["zero"], "component": names},
    )


def test_what_hides_in_a_mean_is_shown():
    steady = np.full((2, 20), 4.0)
    changing = np.stack([np.full(20, 30.0), np.full(20, -30.0)])
    rare = np.tile(np.where(np.arange(20) < 2, 90.0, -10.0), (2, 1))
    frame = variation.variation(sweep([steady, changing, rare]), "zero").set_index("component")
    np.testing.assert_allclose(frame.over_timesteps, [4, 30, 0], atol=1e-9)
    np.testing.assert_allclose(frame.over_images, [4, 0, np.sqrt(0.1 * 90**2 + 0.9 * 10**2)], atol=1e-9)
    np.testing.assert_allclose(frame.hurt[["c0", "c2"]], [100, 10])
    exact = [scipy.stats.binomtest(count, 20).proportion_ci() for count in (20, 2)]
    ends = frame.loc[["c0", "c2"], ["hurt_low", "hurt_high"]]
    np.testing.assert_allclose(ends, [[100 * each.low, 100 * each.high] for each in exact])
    np.testing.assert_allclose(frame.top_tenth[["c0", "c2"]], [10, 50])
    idle = variation.variation(sweep([np.zeros((2, 20))]), "zero").iloc[0]
    assert idle[["over_images", *variation.INTERVALS["over_images"]]].tolist() == [0, 0, 0]
    assert idle[["top_tenth", *variation.INTERVALS["top_tenth"]]].isna().all()


@pytest.mark.filterwarnings("error")
def test_an_end_beyond_all_numbers_is_infinite_without_a_word():
    rare = np.where(np.arange(8) < 1, 100.0, 0.0)
    row = variation.variation(sweep([[rare, rare]]), "zero").iloc[0]
    assert row.over_images_high == np.inf and row.over_images > 0


@pytest.mark.parametrize("fraction, share", [(0.25, 0.4), (0.5, 0.7), (0.375, 0.55), (1.0, 1.0)])
def test_share_of_the_largest_fraction(fraction, share):
    values = np.array([[1.0, -4.0, 2.0, 3.0]])
    assert variation.top_share(values, fraction)[0] == pytest.approx(share)
    assert np.isnan(variation.top_share(np.zeros((1, 3)), fraction)[0])


@pytest.mark.parametrize("people", [False, True])
def test_intervals_of_how_effects_vary_cover_what_more_images_show(people):
    """Of 200 components alike: contributions are 4 times a normal number about 1, of 32 images."""
    rng, truth = np.random.default_rng(0), {"over_timesteps": 4, "over_images": np.sqrt(32)}
    many = np.abs(4 + 4 * rng.normal(size=100_000))
    truth["top_tenth"] = 100 * variation.top_share(many[None], variation.TENTH)[0]
    increase = np.repeat(4 + 4 * rng.normal(size=(200, 1, 32)), 2, axis=1)
    data = sweep(increase)
    if people:  # the same images twice: of as many people
        data = xr.concat([data, data], "image").assign_coords(person=("image", np.tile(np.arange(32), 2)))
    frame = variation.variation(data, "zero")
    for name, value in truth.items():
        low, high = (frame[end].to_numpy() for end in variation.INTERVALS[name])
        estimate = frame[name].to_numpy()
        assert ((low <= estimate) & (estimate <= high)).all()
        assert 0.87 < ((low <= value) & (value <= high)).mean() < 0.99, name
