"""The table at the end of a sweep holds what the analysis measures, in order."""

import numpy as np
import pytest
import xarray as xr

from mechdiff import stats
from mechdiff.analysis import effects, paired
from mechdiff.cli import tables


@pytest.fixture(scope="module")
def sweep():
    """Three components; the second costs 100 %, the third 10 %, the first nothing."""
    clean = np.random.default_rng(0).uniform(1, 2, (2, 6)).astype(np.float32)
    loss = (clean[None] * np.array([1.0, 2.0, 1.1], np.float32)[:, None, None])[None]
    names = ("ablation", "component", "t", "image")
    return xr.Dataset(
        {"clean_loss": (names[2:], clean), "loss": (names, loss), "change": (names, loss)},
        coords={
            "ablation": ["zero"],
            "component": ["a", "b", "c"],
            "t": [10, 500],
            "log_snr": ("t", [3.0, -1.0]),
            **{
                name: ("component", values)
                for name, values in {
                    "component_type": ["res", "head", "skip"],
                    "resolution": [8, 8, 4],
                    "depth": [0, 1, 2],
                }.items()
            },
        },
    )


def test_the_costliest_come_first_with_the_measured_numbers(sweep):
    rows = tables.top_components(sweep, "zero", count=2)
    measured = effects.measure(sweep, "zero")
    assert [row["component"] for row in rows] == ["b", "c"]
    assert [row["delta_loss"] for row in rows] == pytest.approx([100, 10], abs=1e-4)
    assert rows[0]["high"] == measured.pooled.high[1] and rows[0]["p"] == paired.pooled_p(sweep, "zero")[1]
    assert rows[0]["n"] == 6 and rows[1]["type"] == "skip"


def test_records_of_any_launcher_become_a_table(capsys):
    name = "a" * 101  # names are never cut
    rows = [{"network": name, "f": -1182.4, "95 %": (-0.9, 1.05), "members": 3, "p": float("nan")}]
    tables.print_records("circuits", rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["circuits"],
        ["network", "f", "95", "%", "members", "p"],
        [name, "-1,182", "[-0.9,", "1.05]", "3", "–"],
    ]
    tables.print_records("nothing", [])
    assert capsys.readouterr().out == ""


def test_an_interval_stands_beside_its_number_where_that_is_known(capsys):
    ends = {"low": np.array([0.1, 1.0]), "high": np.array([0.3, 3.0])}
    interval = stats.Interval(estimate=np.array([0.2, np.nan]), **ends, confidence=0.95, n=4)
    rows = tables.interval_rows("head", ["h0", "h1"], {"effect": interval})
    assert rows[0] == {"head": "h0", "effect": 0.2, "effect, 95 %": (0.1, 0.3)}
    turned = tables.interval_rows("head", ["h0", "h1"], {"effect": interval}, order=[1, 0])
    assert [row["head"] for row in turned] == ["h1", "h0"] and turned[1] == rows[0]
    tables.print_records("heads", rows)
    lines = [line.replace("\N{NO-BREAK SPACE}", "~").split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["heads"], ["head", "effect"], ["h0", "0.2", "[0.1,~0.3]"], ["h1", "–"]]


def test_a_table_without_a_terminal_has_a_line_for_each(sweep, capsys):
    tables.print_top(tables.top_components(sweep, "zero"), "of zero")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "of zero" and lines[2].split() == ["b", "head", "100", "[100,", "100]", "0.031", "6"]
    assert len(lines) == 5
