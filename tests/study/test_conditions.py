"""Images that a network with classes is examined on keep their labels."""

import dataclasses

import jax
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import DataError
from mechdiff.data import class_labels, load
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.study import choosing, held_out, inputs


@pytest.fixture(scope="module")
def config(tiny):
    data = dataclasses.replace(tiny.data, classes="skin_brightness", n_test=24)
    unet = dataclasses.replace(SMALL, classes=2)
    sweep = dataclasses.replace(tiny.sweep, images=4, timesteps=3, nested=True, reference_images=6)
    return dataclasses.replace(tiny, data=data, unet=unet, sweep=sweep)


@pytest.fixture(scope="module")
def denoiser(config):
    schedule = make_schedule(DiffusionConfig(schedule="cosine", steps=50))
    return Denoiser("labeled", config.unet, schedule, random_params(config.unet), identity_of(config.unet))


def test_labels_follow_held_out_images_through_every_cut(config, denoiser, tmp_path):
    images = choosing.ImageChoice(config, None, tmp_path)(denoiser, config)
    split = load(dataclasses.replace(config.data, n_test=18), 8, "test", 0, None)
    labels = class_labels(split, "skin_brightness", 2)
    np.testing.assert_array_equal(images.condition, labels[:12].reshape(3, 4))
    np.testing.assert_array_equal(images.reference_condition, labels[12:])
    np.testing.assert_array_equal(images.first(2).condition, images.condition[:, :2])
    np.testing.assert_array_equal(images.subset(slice(1, 3)).condition, labels[1:3])
    key = jax.random.key(0)
    swept = images.swept_set([5, 20, 40], key)
    np.testing.assert_array_equal(swept.condition_at(1), labels[4:8])
    np.testing.assert_array_equal(images.scored_set([5], key).condition, labels[:4])
    np.testing.assert_array_equal(images.reference_set([5], key).condition, labels[12:])


def test_own_samples_and_arrays_come_with_classes_and_folders_without(config, denoiser, tmp_path):
    drawn = held_out.own_samples(denoiser, config.sweep, 0)
    np.testing.assert_array_equal(drawn.condition.ravel(), np.arange(12) % 2)
    pixels = np.random.default_rng(0).integers(0, 256, (18, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(18) % 2
    images = inputs.images_from(pixels, denoiser, config.sweep, condition=labels)
    np.testing.assert_array_equal(images.reference_condition, labels[12:])
    with pytest.raises(DataError, match="is conditioned on label, which other images come without"):
        inputs.images_from(pixels, denoiser, config.sweep)
    unknown = dataclasses.replace(config, data=dataclasses.replace(config.data, classes=""))
    with pytest.raises(DataError, match=r"which label of synthetic they are is not known; give images"):
        choosing.ImageChoice(unknown, None, tmp_path)(denoiser, unknown)
