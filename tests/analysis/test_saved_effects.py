"""Effects saved beside losses are those of the table, follow their images, and old results do without."""

import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis import effects, paired, saved_effects
from mechdiff.core.errors import ConfigError
from mechdiff.storage import labelled


@pytest.fixture(scope="module")
def sweep():
    """Two ablations of three components on six images of three people, two timesteps."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(1, 2, (2, 6))
    factors = np.array([[1.0, 2.0, 1.1], [1.5, 1.0, 0.9]])
    loss = clean * factors[:, :, None, None] * rng.uniform(0.99, 1.01, (2, 3, 2, 6))
    dims = ("ablation", "component", "t", "image")
    coords = {
        "ablation": ["zero", "mean"],
        "component": ["a", "b", "c"],
        "t": [10, 500],
        "log_snr": ("t", [3.0, -1.0]),
        "component_type": ("component", ["res", "head", "skip"]),
        "resolution": ("component", [8, 8, 4]),
        "depth": ("component", [0, 1, 2]),
        "person": ("image", [0, 0, 1, 1, 2, 2]),
    }
    return xr.Dataset(
        {"clean_loss": (dims[2:], clean), "loss": (dims, loss), "change": (dims, loss)}, coords=coords
    )


def test_a_saved_result_alone_answers(sweep, tmp_path):
    labelled.replace(tmp_path / "sweep.zarr", saved_effects.with_effects(sweep))
    opened = xr.open_zarr(tmp_path / "sweep.zarr")
    for ablation in ("zero", "mean"):
        measured = effects.measure(sweep, ablation)
        side = opened.sel(ablation=ablation)
        for suffix, end in (("", "estimate"), ("_low", "low"), ("_high", "high")):
            np.testing.assert_array_equal(side[f"delta_loss{suffix}"], getattr(measured.cells, end))
            np.testing.assert_array_equal(side[f"pooled_delta_loss{suffix}"], getattr(measured.pooled, end))
        np.testing.assert_array_equal(side["delta_loss_p"], measured.p)
        np.testing.assert_array_equal(side["pooled_delta_loss_p"], paired.pooled_p(sweep, ablation))
    assert int(opened["delta_loss_n"]) == 3  # people
    assert (
        opened["delta_loss"].attrs["units"] == "%" and "95 %" in opened["delta_loss_low"].attrs["long_name"]
    )
    assert all(opened[name].attrs["units"] for name in saved_effects.VARIABLES)


def test_the_table_is_the_same_with_and_without_saved_effects(sweep):
    saved = saved_effects.with_effects(sweep)
    for ablation, order in (("zero", ["b", "c", "a"]), ("mean", ["a", "b", "c"])):
        table = saved_effects.effect_table(saved, ablation)
        assert table["component"].tolist() == order and table.columns.tolist() == saved_effects.COLUMNS
        assert table.equals(saved_effects.effect_table(sweep, ablation))
    with pytest.raises(ConfigError, match="unknown ablation"):
        saved_effects.effect_table(saved, "noise")


def test_effects_of_other_images_are_not_taken_for_those_of_these(sweep):
    saved = saved_effects.with_effects(sweep)
    assert saved_effects.with_effects(saved) is saved
    fewer = saved.isel(image=slice(4))
    assert not saved_effects.has_effects(fewer)
    expected = effects.measure(fewer, "zero").pooled.estimate
    renewed = saved_effects.with_effects(fewer)["pooled_delta_loss"].sel(ablation="zero")
    np.testing.assert_array_equal(renewed, expected)
    assert set(saved_effects.without_effects(saved).data_vars) == set(sweep.data_vars)


def test_an_effect_that_the_error_of_precision_may_be_all_of_has_p_1(sweep):
    """Under mean ablation components change the loss by 50, 0 and -10 %."""
    error = (("ablation", "component"), np.array([[60.0, 0, 20]]))
    reduced = sweep.sel(ablation=["mean"]).assign(precision_error=error)
    p = saved_effects.with_effects(reduced)["pooled_delta_loss_p"].sel(ablation="mean").values
    exact = paired.pooled_p(sweep, "mean")
    assert p.tolist() == [1, exact[1], 1] and (exact < 1).all()
