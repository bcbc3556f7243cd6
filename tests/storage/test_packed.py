"""Packed results: rounding within half a step, signs kept, means unmoved, and damage is one line."""

import numpy as np
import pytest
import xarray as xr

from mechdiff.core.errors import CheckpointError
from mechdiff.storage import packed


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    cells = np.exp(rng.normal(size=(3, 5, 400))) * rng.choice([-1, 1], (3, 5, 400))
    cells[0, 0] = 0.25  # no scatter
    cells[0, 1] = 0
    return xr.Dataset(
        {"increase": (("component", "t", "image"), cells), "clean": ("t", rng.random(5))},
        coords={"component": list("abc"), "t": np.arange(5)},
        attrs={"denoiser": "toy"},
    )


def test_cells_return_within_half_a_step_of_their_scatter(result, tmp_path):
    path = tmp_path / "toy.zip"
    packed.write(path, {"name": "toy"}, {"sweep": result}, {"increase": 1 / 8}, {"samples.png": b"png"})
    about, results, members = packed.read(path)
    assert about == {"name": "toy"} and members == {"samples.png": b"png"}
    back = results["sweep"]
    exact, cells = result["increase"].values, back["increase"].values
    half = np.maximum(exact.std(-1) / 8, np.abs(exact).max(-1) / packed.MAX_CODE)[..., None] / 2
    assert (np.abs(cells - exact) <= half * 1.001 + 1e-7).all()
    assert (np.sign(cells) == np.sign(exact)).all()
    assert (np.abs(cells.mean(-1) - exact.mean(-1)) <= half[..., 0] * 0.3 + 1e-4).all()  # errors average out
    np.testing.assert_array_equal(back["clean"], result["clean"])
    assert back.attrs == result.attrs and list(back["component"].values) == list("abc")


def test_equal_results_give_equal_files_and_damage_is_one_line(result, tmp_path):
    paths = [tmp_path / name for name in ("one.zip", "other.zip")]
    for path in paths:
        packed.write(path, {}, {"sweep": result}, {"increase": 1 / 8})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    paths[0].write_bytes(paths[0].read_bytes()[:500])
    with pytest.raises(CheckpointError, match="pack it again"):
        packed.read(paths[0])
    with pytest.raises(CheckpointError, match="pack it again"):
        packed.read(tmp_path / "absent.zip")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_cells_that_are_missing_are_refused_in_one_line(result, tmp_path, value):
    result["increase"][1, 2, 3] = value
    with pytest.raises(CheckpointError, match="1 values of increase in control are missing or not finite"):
        packed.write(tmp_path / "toy.zip", {}, {"control": result}, {"increase": 1 / 8})
    assert not list(tmp_path.iterdir())
    result["increase"][1, 2, 3] = 0
    result["clean"][0] = np.nan  # kept exactly: what isn't there stays so
    packed.write(tmp_path / "toy.zip", {}, {"control": result}, {"increase": 1 / 8})


def test_names_of_earlier_versions_are_read_as_those_of_today(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    sets = xr.Dataset({"damage": (("component", "set"), values)})
    pairs = xr.Dataset({"synergy": ("pair", values[0])}, attrs={"subject": "toy"})
    curves = xr.Dataset({"loss": ("dose", values[0])}, coords={"dose": [0.0, 1.0, 2.0]})
    results = {"random_sets": sets, "pairs": pairs, "curves": curves}
    packed.write(tmp_path / "toy.zip", {}, results, {})
    back = packed.read(tmp_path / "toy.zip").results
    np.testing.assert_array_equal(back["random_sets"]["relative_increase"], values)
    np.testing.assert_array_equal(back["pairs"]["interaction"], values[0])
    assert back["pairs"].attrs == {"denoiser": "toy"}
    assert float(back["curves"]["loss"].sel(gate=2.0)) == values[0, 2]
