"""Classes of images from labels."""

import dataclasses

import numpy as np
import pytest

from mechdiff.core.config import DataConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data import class_labels, class_names, load
from mechdiff.data.dataset import Dataset
from mechdiff.data.factors import sample_factors

N = 24
rng = np.random.default_rng(0)
LABELS = {
    "Male": rng.random(N) < 0.5,
    "Smiling": rng.random(N) < 0.5,
    "folder": np.arange(N) % 3,
    "place": np.linspace(0, 1, N),
    "name": np.array(["a"] * N),
}


def dataset(labels: dict = LABELS) -> Dataset:
    images = np.zeros((N, 8, 8, 3), np.uint8)
    return Dataset(name="faces", images=images, digest="", labels=labels, ids=np.arange(N))


def test_labels_become_classes():
    by_hand = 2 * LABELS["Male"] + LABELS["Smiling"]
    np.testing.assert_array_equal(class_labels(dataset(), "Male,Smiling", 4), by_hand)
    np.testing.assert_array_equal(class_labels(dataset(), "folder", 3), LABELS["folder"])
    np.testing.assert_array_equal(
        class_labels(dataset(), "folder, Smiling", 6), 2 * LABELS["folder"] + LABELS["Smiling"]
    )
    np.testing.assert_array_equal(np.bincount(class_labels(dataset(), "place", 4)), [6, 6, 6, 6])


BAD = [
    ("Smilin", 2, ConfigError, "closest: Smiling"),
    ("Smiling", 3, ConfigError, "data.classes=Smiling does not make unet.classes=3"),
    ("Male,Smiling", 2, ConfigError, "does not make unet.classes=2"),
    ("folder,place", 6, ConfigError, "one of several names may have more"),
    ("folder", 2, ConfigError, "label folder=2 needs more than 2 classes"),
    ("name", 2, DataError, "label 'name' holds"),
]


@pytest.mark.parametrize(("names", "classes", "kind", "expected"), BAD)
def test_what_is_no_class_is_one_line(names, classes, kind, expected):
    with pytest.raises(kind) as error:
        class_labels(dataset(), names, classes)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_factors_of_synthetic_faces_are_labels_of_their_images():
    import jax

    config = DataConfig(n_train=N, n_test=8, classes="hair_style")
    split = load(config, 8, "test", 3, None)
    of_face = lambda index: sample_factors(jax.random.fold_in(jax.random.key(3), index), 4)
    drawn = jax.jit(jax.vmap(of_face))(split.ids)
    np.testing.assert_array_equal(class_labels(split, "hair_style", 8), drawn["hair_style"])
    np.testing.assert_array_equal(split.labels["glasses"], drawn["glasses"] == 1)
    halves = class_labels(split, "skin_brightness", 2)
    np.testing.assert_array_equal(halves, np.asarray(drawn["skin_brightness"]) >= 0.5)
    plain = load(dataclasses.replace(config, classes=""), 8, "test", 3, None)
    assert (plain.digest, plain.labels) == (split.digest, {})
    np.testing.assert_array_equal(plain.images, split.images)


def test_classes_are_called_by_their_labels_and_folders():
    named = dataclasses.replace(dataset(), names={"folder": ("cats", "dogs", "eels")})
    assert class_names(named, "folder,Smiling", 6)[:3] == (
        "cats, not Smiling",
        "cats, Smiling",
        "dogs, not Smiling",
    )
    assert class_names(named, "place", 2) == ("place 0", "place 1")
    assert class_names(dataset(), "folder", 4)[3] == "folder 3"
