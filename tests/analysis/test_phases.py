"""Phases: planted phases, and the nulls that must find none."""

import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis import phases
from mechdiff.core.errors import ConfigError

LEVELS, COMPONENTS, IMAGES = 16, 10, 24
PLANTED = (0, 5, 9, 13)


def sweep(profile, noise=0.3, images=IMAGES, seed=0) -> xr.Dataset:
    """A sweep whose log ratios of losses are `profile` `(t, component)`, with noise of its own an image."""
    rng = np.random.default_rng(seed)
    clean = np.exp(0.1 * rng.standard_normal((len(profile), images)))
    log = profile.T[:, :, None] + noise * rng.standard_normal((*profile.T.shape, images))
    loss = (clean * np.exp(log)).astype(np.float32)[None]
    dims = ("ablation", "component", "t", "image")
    return xr.Dataset(
        {"loss": (dims, loss), "change": (dims, np.abs(loss)), "clean_loss": (dims[2:], clean)},
        coords={
            "ablation": ["zero"],
            "component": [f"mid.block{i}.res" for i in range(profile.shape[1])],
            "t": np.arange(len(profile)),
            "log_snr": ("t", np.linspace(5, -5, len(profile))),
        },
    )


def steps(starts=PLANTED, levels=LEVELS, seed=1):
    values = np.random.default_rng(seed).standard_normal((len(starts), COMPONENTS))
    return values[np.searchsorted(starts, np.arange(levels), "right") - 1]


def test_planted_phases_are_found_where_they_are():
    result = phases.measure(sweep(steps()), "zero", draws=60)
    assert result.k == 4 and result.starts == PLANTED
    assert result.share[3] > 0.7 and result.likely()[0] <= 4 <= result.likely()[1]
    assert result.p_order[3] < 0.05 and result.stepped > 0.95
    np.testing.assert_allclose(
        result.boundaries, np.interp(np.array(PLANTED[1:]) - 0.5, result.t, result.log_snr)
    )


def test_noise_has_one_phase():
    flat = np.zeros((LEVELS, COMPONENTS))
    results = [phases.measure(sweep(flat, seed=seed), "zero", draws=40, splits=10) for seed in range(4)]
    assert [result.k for result in results] == [1] * 4
    assert np.mean([result.share[0] for result in results]) > 0.9


def test_smooth_drift_is_told_from_phases():
    slopes = np.random.default_rng(2).standard_normal(COMPONENTS)
    result = phases.measure(sweep(np.linspace(-1, 1, LEVELS)[:, None] * slopes), "zero", draws=40)
    assert result.k > 1 and result.p_order[1] < 0.05
    assert result.drift.max() > result.score.max() and result.stepped < 0.05


def test_levels_without_order_gain_no_more_than_shuffled_ones():
    unordered = np.random.default_rng(3).standard_normal((LEVELS, COMPONENTS))
    result = phases.measure(sweep(unordered), "zero", draws=60)
    assert result.p_order[1:4].min() > 0.02


@pytest.mark.parametrize("levels, expected", [(2, 2), (5, 5), (12, 8)])
def test_any_number_of_levels_from_two_bounds_the_phases(levels, expected):
    result = phases.measure(sweep(np.zeros((levels, 3)), images=5), "zero", draws=10, splits=2)
    assert len(result.score) == len(result.share) == len(result.drift) == expected


def test_unfit_sweeps_are_refused():
    with pytest.raises(ConfigError, match="1 timesteps"):
        phases.measure(sweep(np.zeros((1, 3))), "zero")
    with pytest.raises(ConfigError, match="3 images"):
        phases.measure(sweep(np.zeros((4, 3)), images=3), "zero")
    of_two = sweep(np.zeros((4, 3)), images=8).assign_coords(person=("image", np.arange(8) % 2))
    with pytest.raises(ConfigError, match="2 people can't be split"):
        phases.measure(of_two, "zero")
    idle = sweep(np.zeros((4, 3)))
    idle["change"] = idle["change"] * 0
    with pytest.raises(ConfigError, match="no component changed"):
        phases.measure(idle, "zero")
