"""Effects over training: which models are snapshots of one run, and that the figure has its numbers."""

import dataclasses

import numpy as np
import xarray as xr
from matplotlib import rc_context

from mechdiff.analysis.effects import Effects
from mechdiff.core.presets import preset
from mechdiff.report import over_training, style
from mechdiff.report.over_training import trainings
from mechdiff.stats.intervals import Interval
from mechdiff.study.examined_model import ExaminedModel
from mechdiff.study.network_results import NetworkResults

IMAGES = 5
COMPONENTS = tuple(f"block{k}.res" for k in range(9))


def interval(estimate) -> Interval:
    return Interval(estimate=estimate, low=estimate - 1, high=estimate + 2, confidence=0.95, n=IMAGES)


def examined(steps, seed=0, inputs="some"):
    """A snapshot of a run: component k has the effect k x steps."""
    pooled, cells = np.arange(9.0) * steps, np.zeros((9, 2))
    numbers = np.arange(9)
    measured = Effects(
        ablation="zero",
        components=COMPONENTS,
        component_type=("res",) * 9,
        resolution=numbers,
        depth=numbers,
        t=np.arange(2),
        log_snr=np.zeros(2),
        cells=interval(cells),
        p=cells,
        pooled=interval(pooled),
        pooled_losses=interval(pooled),
        effective=interval(np.array([3.0])),
        change=pooled,
        rms=interval(pooled),
        hurt=interval(pooled),
        quantiles=interval(cells),
        images=IMAGES,
        people=0,
        precision_error=pooled * 0,
    )
    config, sweep = (
        dataclasses.replace(preset("tiny"), seed=seed),
        xr.Dataset(coords={"image": range(IMAGES), "component": list(COMPONENTS), "ablation": ["zero"]}),
    )
    network = NetworkResults("faces", "synthetic", 4, seed, sweep, sweep)
    model = ExaminedModel(f"faces@{steps}", inputs, 0, config, {"steps": steps}, network, b"")
    model.__dict__["increases"] = {"zero": measured}  # what `increases` would compute and keep
    return model


def test_trainings_joins_snapshots_of_one_run_in_order():
    models = [examined(100), examined(10), examined(50, seed=1), examined(1000), examined(20, seed=1)]
    first, second = trainings(models)
    assert first.steps.tolist() == [10, 100, 1000] and second.steps.tolist() == [20, 50]
    assert first.name == "faces" and first.counted == f"{IMAGES} images, with the same noise"
    np.testing.assert_array_equal(first.estimate, np.outer([10, 100, 1000], np.arange(9)))
    np.testing.assert_array_equal(first.high - first.low, 3)


def test_snapshots_on_own_samples_are_of_one_training():
    first, last = (examined(steps, inputs=f"faces@{steps}'s own samples") for steps in (10, 20))
    assert [training.steps.tolist() for training in trainings([first, last])] == [[10, 20]]
    assert trainings([first, examined(20)]) == []


def test_trainings_are_those_of_the_models_that_are_shown():
    models = [examined(10), examined(20), examined(10, seed=1), examined(20, seed=1)]
    assert [training.steps.tolist() for training in trainings(models, models[3:])] == [[10, 20]]
    assert trainings(models, []) == []


def test_trainings_keeps_apart_what_can_not_be_compared():
    assert trainings([examined(10), examined(20, seed=1)]) == []
    assert trainings([examined(10), examined(20, inputs="others")]) == []
    assert trainings([examined(10), examined(10)]) == []
    imported = dataclasses.replace(examined(10), record={"steps": None})
    assert trainings([examined(20), imported]) == []


def test_draw_names_the_largest_and_draws_all():
    (training,) = trainings([examined(10), examined(100)])
    assert training.largest.tolist() == [8, 7, 6, 5, 4, 3]
    with rc_context(style.settings(style.LIGHT)):
        axes = over_training.draw(style.LIGHT, training).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 2}
    for component in training.largest:
        np.testing.assert_array_equal(lines[COMPONENTS[component]], [10 * component, 100 * component])
    assert len(axes.collections) == len(training.largest)  # intervals
    assert axes.get_xscale() == "log"
