"""The table beside the claim about complexity, on made-up results of known values."""

import numpy as np
import pytest
import xarray as xr

from mechdiff.study.claims import across_seeds, complexity, complexity_table
from mechdiff.study.network_results import NetworkResults


def network(data, seed, loss, sizes, *, complexity=4, steps=100, components=4):
    """A network whose components cost 10 % each, with circuits of `sizes` components."""
    clean = np.full((2, 3), loss)
    names = [f"up0.block{i}.res" for i in range(components)]
    dims = ("ablation", "component", "t", "image")
    damaged = np.broadcast_to(1.1 * clean, (1, components, 2, 3))
    sweep = xr.Dataset(
        {"loss": (dims, damaged), "change": (dims, damaged), "clean_loss": (("t", "image"), clean)},
        coords={"ablation": ["mean"], "component": names, "t": [10, 500]},
    )
    circuits = {"mean": xr.Dataset(attrs={"sizes": sizes})}
    return NetworkResults(
        f"{data}{seed}", data, complexity, seed, sweep, xr.Dataset(), circuits=circuits, steps=steps
    )


@pytest.fixture(scope="module")
def table():
    networks = [network("celeba", seed, 0.2, [4.0, 4.0, 4.0]) for seed in range(2)]
    for seed, size in enumerate([1.0, 2.0, 4.0]):
        networks.append(network("synthetic", seed, 0.1, [size, 3.0, 4.0]))
        networks.append(network("synthetic", seed, 0.3, [8.0, 8.0, 8.0], steps=25))
    networks.append(network("synthetic", 0, 0.02, [2.0, 2.0, 2.0], complexity=0))
    return complexity_table.measure(networks)


def test_rows_are_data_sets_and_steps_in_the_order_of_the_last_loss(table):
    keys = table[[*complexity_table.KEYS, "networks"]].drop_duplicates().values.tolist()
    expected = [
        ["synthetic", 0, 100, 1],
        ["synthetic", 4, 25, 3],
        ["synthetic", 4, 100, 3],
        ["celeba", -1, 100, 2],
    ]
    assert keys == expected
    assert table.groupby("steps")["clean_loss"].first()[25] == pytest.approx(0.3)


def test_values_are_geometric_means_with_students_intervals(table):
    rows = table[(table["data"] == "synthetic") & (table["complexity"] == 4) & (table["steps"] == 100)]
    row = rows[rows["measure"] == "circuit to 0.8, mean"].iloc[0]
    logs = np.log([1.0, 2.0, 4.0])
    half = 4.30265 * logs.std(ddof=1) / np.sqrt(3)  # Student's 97.5 % quantile, two degrees of freedom
    assert row["value"] == pytest.approx(2)
    np.testing.assert_allclose(
        [row["low"], row["high"]], np.exp([logs.mean() - half, logs.mean() + half]), 1e-4
    )
    equal = rows[rows["measure"] == "circuit to 0.9, mean"].iloc[
        0
    ]  # of whole numbers, rounded: no width of 0
    assert equal["low"] < 2.9 < equal["value"] < 3.1 < equal["high"]
    effective = rows[rows["measure"] == "effective components of relative loss increase"].iloc[0]
    assert effective["value"] == pytest.approx(4)  # components that cost the same


def test_two_networks_have_no_interval_and_one_no_jackknife(table):
    two = table[table["data"] == "celeba"]
    assert len(two) == len(complexity.complexity.TAUS) + 1 and two["low"].isna().all()
    assert "effective components of relative loss increase" not in set(
        table[table["complexity"] == 0]["measure"]
    )


def test_networks_that_differ_have_no_rows():
    networks = [network("celeba", 0, 0.2, [1.0] * 3), network("celeba", 1, 0.2, [1.0] * 3, components=3)]
    assert not across_seeds.comparable(networks) and complexity_table.measure(networks).empty


def test_lines_show_absent_measures_and_intervals(table):
    heads, lines = complexity_table.lines(table)
    assert heads[:4] == ["data", "steps", "networks", "clean loss"]
    assert lines[0][0] == "synthetic, complexity 0" and lines[0][-1] == "-"
    assert lines[-1][:5] == ["celeba", "100", "2", "0.200", "4.0"]
    assert lines[2][4].startswith("2.0 [")
