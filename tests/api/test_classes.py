"""Networks with classes: every call knows the class of each image, or asks for it in one line."""

import dataclasses

import jax
import numpy as np
import pytest

from mechdiff.api.images import eval_images
from mechdiff.core import keys
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data import class_labels, load
from mechdiff.interventions import build
from mechdiff.study.inputs import images_from
from mechdiff.sweeps.activations import activations

SITE = "mid.block0.res"
FEW = SweepConfig(ablations=("zero",), images=6, reference_images=0)


@pytest.fixture(scope="module")
def shown(labeled, images):
    """Six images of both classes in turn."""
    return images_from(images, labeled.denoiser, FEW, condition=np.arange(6) % 2)


def test_held_out_faces_come_with_their_classes(labeled):
    faces = eval_images(labeled, None, 6)
    split = load(dataclasses.replace(labeled.config.data, n_test=6), 8, "test", 0, None)
    np.testing.assert_array_equal(faces.condition, class_labels(split, "skin_brightness", 2))
    assert set(np.asarray(faces.condition)) == {0, 1}


def test_activations_of_replacing_images_are_those_under_their_classes(labeled, shown, images):
    """Of a mean and of a patch; with the classes exchanged they are others."""
    key = keys.stream(jax.random.key(0), "replacing images")
    rows, t = np.arange(6), np.full(6, 20, np.int32)
    own, others = (
        np.asarray(activations(labeled.denoiser, images, 20, key, rows, labels)[SITE])
        for labels in (rows % 2, 1 - rows % 2)
    )
    assert np.abs(own - others).max() > 1e-2 and np.abs(own.mean(0) - others.mean(0)).max() > 1e-3
    run = jax.jit(labeled.denoiser.predict)
    gone = build.ablate(labeled.denoiser.identity, SITE)
    for changed, value in (
        (labeled.ablate(SITE, "mean", shown), own.mean(axis=0)),
        (labeled.patch(SITE, shown), own),
    ):
        replaced = dataclasses.replace(gone, replacement=dict(gone.replacement) | {SITE: value})
        expected = run(replaced, images, t, np.zeros(6, np.int32))
        np.testing.assert_allclose(changed.predict(images, 20, [0] * 6), expected, atol=1e-5)
    drawn = labeled.ablate(SITE, "mean", shown).sample(2, steps=2)
    np.testing.assert_array_equal(
        drawn, labeled.ablate(SITE, "mean", shown).sample(2, steps=2, condition=[0, 1])
    )


WRONG = {  # what the message says -> a condition of four images
    r"labels of shape \(\): expected \(rows,\): one for each image": 0,
    r"a condition of shape \(2,\) for 4 images; give one entry for each": np.array([0, 1]),
    r"a condition of shape \(5,\) for 4 images": {"label": [0, 1, 0, 1, 0]},
    r"label 7 is out of range; 0 to 1, or 2 for none": [0, 1, 0, 7],
    r"labels of type float64: expected integers": [0.0, 1, 0, 1],
    r"labels of type <U4: expected integers": ["dark"] * 4,
    r"condition \[\[0\], \[1, 2\]\]: expected an array": [[0], [1, 2]],
    r"this network takes label": {"class": [0, 1, 0, 1]},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_condition_that_does_not_fit_is_one_line(labeled, images, message):
    for call in (
        lambda: labeled.sample(4, steps=2, condition=WRONG[message]),
        lambda: labeled.predict(images[:4], 20, WRONG[message]),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_lists_of_classes_are_arrays_of_them(labeled, images):
    one = labeled.predict(images[:2], 20, [0, 1])
    np.testing.assert_array_equal(one, labeled.predict(images[:2], 20, {"label": np.array([0, 1])}))
    assert np.abs(one - labeled.predict(images[:2], 20, [1, 0])).max() > 1e-3


def test_arrays_without_classes_are_refused_with_a_way_out_that_works(labeled, images, tmp_path):
    with pytest.raises(DataError, match=r"a sub-folder for each class, or an .npz file with their 'labels'"):
        labeled.activations(images, sites=SITE, timesteps=20, n=6)
    path, labels = tmp_path / "faces.npz", np.arange(6) % 2
    np.savez(path, images=images, labels=labels)
    read = eval_images(labeled, path, 6)
    wanted = [next(i for i in range(6) if np.array_equal(images[i], image)) for image in read.scored]
    np.testing.assert_array_equal(read.condition, labels[wanted])
