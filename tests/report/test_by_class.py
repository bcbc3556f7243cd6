"""Effects by class on the page: whose images, which components, what is left out."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from mechdiff.analysis.class_effects import CLASS, class_effects
from mechdiff.core.presets import preset
from mechdiff.report import by_class
from mechdiff.study.condition_sources import CLASS_NAMES
from mechdiff.study.examined_model import ExaminedModel
from mechdiff.study.network_results import NetworkResults

NAMES, T, IMAGES = ("a", "b", "told"), np.array([2, 9]), 24
UNET = dataclasses.replace(preset("tiny").unet, classes=3)


def examined(labels, names=("cats", "dogs", "eels"), unet=UNET):
    """A model on images of 3 classes; component b raises the loss on images of class 1 alone."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.9, 1.1, (len(T), IMAGES))
    of_class = np.zeros(IMAGES) if labels is None else np.asarray(labels) == 1
    factor = np.stack([np.full(IMAGES, 1.1), 1 + 0.5 * of_class, np.full(IMAGES, 1.01)])
    loss = clean * factor[:, None]
    dims = ("ablation", "component", "t", "image")
    sweep = xr.Dataset(
        {
            "loss": (dims, loss[None]),
            "clean_loss": (dims[2:], clean),
            "change": (dims, (loss - clean)[None]),
        },
        coords={
            "ablation": ["zero"],
            "component": list(NAMES),
            "component_type": ("component", ["res", "head", "class"]),
            "resolution": ("component", [8, 8, 8]),
            "depth": ("component", [0, 1, 2]),
            "t": T,
            "log_snr": ("t", [4.0, -1.0]),
            "image": np.arange(IMAGES),
        },
        attrs={"denoiser": "net"},
    )
    if labels is not None:
        sweep = sweep.assign_coords({CLASS: ("image", np.asarray(labels))})
    config = dataclasses.replace(preset("tiny"), unet=unet)
    facts = {"name": "net", "data": "folder", "complexity": 0, "seed": 0, "attention": xr.Dataset()}
    network = NetworkResults(sweep=sweep, **facts)
    record = {CLASS_NAMES: list(names)}
    return ExaminedModel("net", "images", 0, config, record, network, b"")


@pytest.fixture(scope="module")
def model():
    return examined(np.arange(IMAGES) % 3)


def test_each_column_is_the_effect_on_the_images_of_one_class(model):
    table = by_class.by_class(model)
    assert table.classes == ("0: cats", "1: dogs", "2: eels") and table.images == (8, 8, 8)
    assert table.left_out == 0 and {row.component for row in table.rows} == set(NAMES)
    expected = class_effects(model.sweep, "zero")
    for row in table.rows:
        for label, value in enumerate(row.values):
            cell = expected.sel({"component": row.component, CLASS: label})
            assert [value.estimate, value.low, value.high] == [
                float(cell[k]) for k in ("estimate", "low", "high")
            ]
    b = next(row for row in table.rows if row.component == "b")
    assert b.values[1].low > 40 and abs(b.values[0].estimate) < 1e-6 < b.everywhere.estimate


def test_classes_of_few_images_are_left_out_and_the_null_class_is_named():
    model = examined([0] * 9 + [3] * 8 + [1] * 5 + [2] * 2, names=())
    table = by_class.by_class(model)
    assert table.classes == ("0", "no class") and table.left_out == 2
    few = by_class.by_class(
        examined([0, 1, 2] * 5 + [3] * 9, unet=dataclasses.replace(UNET, null_class=False))
    )
    assert few.classes == ("3",) and few.left_out == 3


def test_a_class_of_one_person_is_left_out(model):
    person = ("image", np.where(np.arange(IMAGES) % 3 == 0, 0, np.arange(IMAGES)))
    alone = dataclasses.replace(model.results, sweep=model.sweep.assign_coords(person=person))
    table = by_class.by_class(dataclasses.replace(model, results=alone))
    assert table.classes == ("1: dogs", "2: eels") and table.left_out == 1


def test_without_classes_nothing_is_said():
    model = examined(None, unet=preset("tiny").unet)
    assert by_class.by_class(model) is None and by_class.conditioned_on(model) == ""


def test_what_a_network_is_conditioned_on_is_said_in_words(model):
    assert by_class.conditioned_on(model) == "one of 3 classes: cats, dogs, eels, or none of them (label 3)"
    both = dataclasses.replace(UNET, null_class=False, condition_channels=3)
    assert (
        by_class.conditioned_on(examined([0] * IMAGES, (), both))
        == "one of 3 classes and an image of 3 channels"
    )
    vector = dataclasses.replace(UNET, classes=0, class_embedding="identity")
    assert by_class.conditioned_on(examined([0] * IMAGES, (), vector)) == "a class, by identity embedding"
