"""Phases: exact segmentation against brute force, planted phases, and the nulls that must find none."""

import itertools

import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis import phases
from mechdiff.core.errors import ConfigError

LEVELS, COMPONENTS, IMAGES = 16, 10, 24
PLANTED = (0, 5, 9, 13)


def sweep(profile, noise=0.3, images=IMAGES, seed=0) -> xr.Dataset:
    """A sweep whose log-damage is `profile` `(t, component)`, with noise of its own for every image."""
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


@pytest.mark.parametrize("seed", range(3))
def test_segmentation_is_that_of_brute_force(seed):
    matrix = np.random.default_rng(seed).standard_normal((2, 7, 3))
    sums, starts = phases.segment(matrix, 7)
    for draw, k in itertools.product(range(2), range(1, 8)):
        tried = [
            (sum(len(part) * part.var(0).sum() for part in np.split(matrix[draw], inner)), (0, *inner))
            for inner in itertools.combinations(range(1, 7), k - 1)
        ]
        best = min(tried)
        assert sums[draw, k - 1] == pytest.approx(best[0], abs=1e-9)
        assert tuple(starts[k - 1][draw]) == best[1]
    fitted = phases.step_means(matrix, starts[2])
    np.testing.assert_allclose(((matrix - fitted) ** 2).sum((1, 2)), sums[:, 2])


def test_planted_phases_are_found_where_they_are():
    found = phases.measure(sweep(steps()), "zero", draws=60)
    assert found.k == 4 and found.starts == PLANTED
    assert found.share[3] > 0.7 and found.likely()[0] <= 4 <= found.likely()[1]
    assert found.p_order[3] < 0.05 and found.stepped > 0.95
    np.testing.assert_allclose(
        found.boundaries, np.interp(np.array(PLANTED[1:]) - 0.5, found.t, found.log_snr)
    )


def test_noise_has_one_phase():
    flat = np.zeros((LEVELS, COMPONENTS))
    found = [phases.measure(sweep(flat, seed=seed), "zero", draws=40, splits=10) for seed in range(4)]
    assert [one.k for one in found] == [1] * 4
    assert np.mean([one.share[0] for one in found]) > 0.9


def test_smooth_drift_is_told_from_phases():
    slopes = np.random.default_rng(2).standard_normal(COMPONENTS)
    found = phases.measure(sweep(np.linspace(-1, 1, LEVELS)[:, None] * slopes), "zero", draws=40)
    assert found.k > 1 and found.p_order[1] < 0.05
    assert found.drift.max() > found.score.max() and found.stepped < 0.05


def test_levels_without_order_gain_no_more_than_shuffled_ones():
    unordered = np.random.default_rng(3).standard_normal((LEVELS, COMPONENTS))
    found = phases.measure(sweep(unordered), "zero", draws=60)
    assert found.p_order[1:4].min() > 0.02
    drawn = phases.excess(phases.measure(sweep(steps()), "zero", draws=60), found)
    assert drawn.low[3] > 0


def test_phases_shared_by_seeds_are_found_on_seeds_held_out():
    rng = np.random.default_rng(4)
    seeds = steps()[None] + 0.3 * rng.standard_normal((3, LEVELS, COMPONENTS))
    assert phases.across_seeds(seeds).mean(0).argmax() == 3
    own = np.stack([steps((0, cut), seed=cut) for cut in (4, 8, 12)])
    assert phases.across_seeds(own).mean(0).argmax() == 0


@pytest.mark.parametrize("levels, expected", [(2, 2), (5, 5), (12, 8)])
def test_any_number_of_levels_from_two_bounds_the_phases(levels, expected):
    found = phases.measure(sweep(np.zeros((levels, 3)), images=5), "zero", draws=10, splits=2)
    assert len(found.score) == len(found.share) == len(found.drift) == expected


def test_unfit_sweeps_are_refused():
    with pytest.raises(ConfigError, match="1 timesteps"):
        phases.measure(sweep(np.zeros((1, 3))), "zero")
    with pytest.raises(ConfigError, match="3 images"):
        phases.measure(sweep(np.zeros((4, 3)), images=3), "zero")
    idle = sweep(np.zeros((4, 3)))
    idle["change"] = idle["change"] * 0
    with pytest.raises(ConfigError, match="no component changed"):
        phases.measure(idle, "zero")
