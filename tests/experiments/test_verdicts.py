"""Losses of a study made as wrong as a precision makes them: errors that are known come back."""

import importlib

import numpy as np
import pytest
import xarray as xr
from reference.launching import forget

COMPONENTS, TIMESTEPS = ("a", "b"), np.array([10, 900])


@pytest.fixture(scope="module")
def verdicts():
    module = importlib.import_module("experiments.benchmarks.verdicts")
    yield module
    forget(module)


def sweep(loss, clean, timesteps=TIMESTEPS):
    """Of one ablation; `loss` is `[component, t, image]`."""
    coords = {"ablation": ["zero"], "component": list(COMPONENTS), "t": timesteps}
    dims = ("ablation", "component", "t", "image")
    variables = {"loss": (dims, loss[None]), "clean_loss": (("t", "image"), clean)}
    return xr.Dataset(variables, coords)


def exact(rng, timesteps=TIMESTEPS, images=3):
    shape = (len(COMPONENTS), len(timesteps), images)
    return sweep(rng.uniform(0.2, 0.4, shape), rng.uniform(0.1, 0.2, shape[1:]), timesteps)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def errors(verdicts, rng):
    """Of three images: ablated losses off by up to a hundredth, clean ones by up to a thousandth."""
    before = exact(rng)
    wrong = 1 + rng.uniform(-0.01, 0.01, (2, 2, 3))
    clean_wrong = 1 + rng.uniform(-0.001, 0.001, (2, 3))
    after = sweep(before["loss"].values[0] * wrong, before["clean_loss"].values * clean_wrong)
    measured = verdicts.relative_errors(before, after)
    np.testing.assert_allclose(measured.loss, wrong - 1, atol=1e-12)
    np.testing.assert_allclose(measured.clean, clean_wrong - 1, atol=1e-12)
    return measured


def test_each_image_has_the_errors_of_a_measured_one(verdicts, errors, rng):
    study = exact(rng, np.array([0, 20, 880]), images=50)
    changed = verdicts.drawn(errors, rng, study)
    ratios = (changed["loss"] / study["loss"]).values[0] - 1
    clean = (changed["clean_loss"] / study["clean_loss"]).values - 1
    for place, nearest in enumerate((0, 0, 1)):
        kinds = {tuple(np.round(row, 5)) for row in (*ratios[:, place], clean[place])}
        assert len(kinds) == 3
        cells = np.abs(clean[place][:, None] - errors.clean[nearest]).argmin(1)
        assert set(cells) == {0, 1, 2}
        np.testing.assert_allclose(ratios[:, place], errors.loss[:, nearest, cells], atol=1e-6)


def test_a_shift_is_the_largest_error_against_the_clean_loss(verdicts, errors, rng):
    study = exact(rng)
    changed = verdicts.shifted(errors, np.array([1.0, -1.0]), study)
    largest = np.abs((1 + errors.loss) / (1 + errors.clean) - 1).max(-1)
    ratios = (changed["loss"] / study["loss"]).values[0] - 1
    np.testing.assert_allclose(ratios[0], np.repeat(largest[0][:, None], 3, 1), atol=1e-6)
    np.testing.assert_allclose(ratios[1], -np.repeat(largest[1][:, None], 3, 1), atol=1e-6)
    np.testing.assert_allclose(changed["clean_loss"], study["clean_loss"], rtol=1e-6)


def test_random_sets_are_off_by_the_same_share_of_their_loss(verdicts, errors):
    sets = xr.Dataset({"relative_increase": (("ablation", "component", "set"), np.full((1, 2, 4), 50.0))})
    signs = np.array([1.0, -1.0])
    moved = verdicts._shifted_sets(errors, signs, sets)["relative_increase"].values[0]
    expected = 150 * (1 + signs * errors.largest().max(-1)) - 100
    np.testing.assert_allclose(moved, np.repeat(expected[:, None], 4, 1), rtol=1e-6)


def test_without_errors_nothing_moves(verdicts, errors, rng):
    none = errors._replace(loss=0 * errors.loss, clean=0 * errors.clean)
    study = exact(rng).astype(np.float32)
    for changed in (verdicts.drawn(none, rng, study), verdicts.shifted(none, np.ones(2), study)):
        xr.testing.assert_identical(changed, study)


def test_the_table_names_a_verdict_that_turned(verdicts):
    def judged(estimate, verdict):
        return {"claim": {"verdict": verdict, "estimate": estimate, "interval": [1.0, 3.0]}}

    lines = verdicts.table(
        {"float32": judged(2.0, "supported"), "tf32, up": judged(2.5, "supported"),
         "tf32, down": judged(0.5, "undecided")}
    )  # fmt: skip
    assert "tf32 1.5; tf32, down: undecided" in lines
    assert "the same verdict in all" in verdicts.table(
        {"float32": judged(None, "not testable here"), "tf32, up": judged(None, "not testable here")}
    )
