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


@pytest.mark.parametrize("fraction, share", [(0.25, 0.4), (0.5, 0.7), (0.375, 0.55), (1.0, 1.0)])
def test_share_of_the_largest_fraction(fraction, share):
    values = np.array([[1.0, -4.0, 2.0, 3.0]])
    assert variation.top_share(values, fraction)[0] == pytest.approx(share)
    assert np.isnan(variation.top_share(np.zeros((1, 3)), fraction)[0])
