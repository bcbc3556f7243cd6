"""Words on what a mean over networks may hide."""

import numpy as np
import xarray as xr

from mechdiff.study.claims import apart
from mechdiff.study.network_results import NetworkResults

NONE = xr.Dataset()
NETWORKS = [
    NetworkResults(f"{data}{seed}", data, 4, seed, NONE, NONE)
    for data in ("celeba", "synthetic")
    for seed in range(3)
]
VALUES = np.array([1.0, 2.0, 3.0, 7.0, 8.0, 9.0])


def test_data_sets_are_told_apart():
    half = 4.30265 / np.sqrt(3)  # Student's, two degrees of freedom, standard deviation 1
    assert apart.by_data(NETWORKS, VALUES, digits=2, unit=" %") == (
        f"2.00 [{2 - half:.2f}, {2 + half:.2f}] % in 3 networks of celeba, "
        f"8.00 [{8 - half:.2f}, {8 + half:.2f}] % in 3 networks of synthetic"
    )
    assert not apart.by_data(NETWORKS[:3], VALUES[:3])
    assert not apart.by_data(NETWORKS, np.r_[VALUES[:5], np.nan])


def test_networks_of_one_seed_count_once():
    half = 4.30265 / np.sqrt(3)
    assert apart.by_start(NETWORKS, VALUES) == (
        f"5.0 [{5 - half:.1f}, {5 + half:.1f}] over 3 seeds, networks that share one averaged"
    )
    assert not apart.by_start(NETWORKS[:3], VALUES[:3])


def test_two_networks_have_no_interval():
    assert (
        apart.by_data(NETWORKS[::3], VALUES[::3])
        == "1.0 in 1 network of celeba, 7.0 in 1 network of synthetic"
    )


def test_two_networks_of_one_seed_are_one():
    words = "4.0 over one seed, networks that share one averaged"
    assert apart.by_start(NETWORKS[::3], VALUES[::3]) == words
