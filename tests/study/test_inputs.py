"""Anyone's images as what a model is examined on: prepared as it was trained, named, never trained on."""

import dataclasses
import re

import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from PIL import Image
from reference.celeba_packs import write_pack
from reference.networks import SMALL, identity_of

import mechdiff as md
from mechdiff.api.images import eval_images, how_many
from mechdiff.core.config import (
    DataConfig,
    DiffusionConfig,
    ExperimentConfig,
    Preprocessing,
    SweepConfig,
)
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data import to_bytes, to_float
from mechdiff.data.collection import open_collection
from mechdiff.data.folder import list_images
from mechdiff.data.images import thumbnail
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.traced import wrap
from mechdiff.study import choosing, condition_sources, held_out, inputs

FEW = SweepConfig(images=4, reference_images=3)


def network(channels: int) -> Denoiser:
    unet = dataclasses.replace(SMALL, in_channels=channels, out_channels=channels)
    return Denoiser("mine", unet, make_schedule(DiffusionConfig(steps=10)), {}, identity_of(unet))


RGB, GRAY = network(3), network(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """12 images of 12x10."""
    place = tmp_path_factory.mktemp("inputs") / "plots"
    place.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return place


def test_images_from_a_folder_are_prepared_and_named(place):
    prepared = Preprocessing(crop="center-9", filter="box")
    images = inputs.images_from(place, RGB, FEW, preprocessing=prepared)
    assert images.scored.shape == (4, 8, 8, 3) and images.reference.shape == (3, 8, 8, 3)
    expected = {thumbnail(path.read_bytes(), 8, "x", prepared).tobytes() for path in place.iterdir()}
    shown = np.concatenate([images.scored, images.reference])
    assert len({image.tobytes() for image in shown}) == 7
    assert {image.tobytes() for image in to_bytes(shown)} <= expected
    digest = open_collection(place).digest
    assert images.label == (
        f"4 of 12 images of plots and 3 more for replacements (sha256 {digest[:12]}; center-9 crop, box, "
        "RGB, resized to 8x8); not known whether the model was trained on them"
    )
    assert images.facts["sha256"] == digest and images.facts["held_out"] is None


def test_images_from_follow_the_channels_of_the_network(place):
    gray = inputs.images_from(place, GRAY, FEW)
    assert gray.scored.shape == (4, 8, 8, 1) and ", gray," in gray.label
    with pytest.raises(DataError, match="mine takes 4 channels; images are made RGB or gray"):
        inputs.images_from(place, network(4), FEW)


def test_images_are_not_made_for_other_layouts(place):
    def fn(params, x, t):
        return checkpoint_name(params * x, "scaled")

    example = np.zeros((1, 3, 8, 8), np.float32), np.zeros(1, np.int32)
    denoiser = wrap(fn, np.float32(2), schedule=RGB.schedule, example=example, name="mine")
    with pytest.raises(
        DataError, match=re.escape("mine takes rows of shape (3, 8, 8); images are (height, wid")
    ):
        inputs.images_from(place, denoiser, FEW)


def test_images_from_leave_out_what_was_trained_on(place):
    digests = open_collection(place).digests
    trained_on = frozenset(digest[: inputs.DIGEST_LENGTH] for digest in digests[:5])
    left = inputs.images_from(place, RGB, FEW, trained_on=trained_on)
    seen = inputs.images_from(place, RGB, SweepConfig(images=5, reference_images=7)).scored
    shown = {image.tobytes() for image in np.concatenate([left.scored, left.reference])}
    assert not shown & {image.tobytes() for image in seen} and left.facts["held_out"]
    assert "none was trained on" in left.label
    with pytest.raises(DataError, match="plots: 7 different images and 5 that mine was trained on, but"):
        inputs.images_from(place, RGB, SweepConfig(images=5, reference_images=3), trained_on=trained_on)


@pytest.mark.parametrize("held", ["file", "array"])
def test_floats_are_known_again_by_the_bytes_that_were_trained_on(held, tmp_path):
    """A training reads an array of floats as bytes, and so records these."""
    floats = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 3)).astype(np.float32)
    np.save(tmp_path / "floats.npy", floats)
    listed = list_images(tmp_path / "floats.npy")
    trained_on = frozenset(digest[: inputs.DIGEST_LENGTH] for digest in listed.digests[:5])
    source = tmp_path / "floats.npy" if held == "file" else floats
    left = inputs.images_from(source, RGB, FEW, trained_on=trained_on)
    shown = to_bytes(np.concatenate([left.scored, left.reference]))
    seen = {np.asarray(listed.read(row)).tobytes() for row in range(5)}
    assert len(shown) == 7 and not seen & {image.tobytes() for image in shown}


def test_images_from_an_array_keep_its_order_and_numbers():
    floats = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32)
    images = inputs.images_from(floats, RGB, FEW)
    np.testing.assert_array_equal(np.concatenate([images.scored, images.reference]), floats[:7])
    assert "4 of 8 images of an array and 3 more" in images.label and "as they are" in images.label
    moved = inputs.images_from(to_bytes(floats).transpose(0, 3, 1, 2), RGB, FEW)
    np.testing.assert_array_equal(moved.scored, to_float(to_bytes(floats[:4])))
    assert "as they are; channels moved last" in moved.label
    with pytest.raises(DataError, match=r"floats of shape \(8, 8, 3\), but the network takes \(8, 8, 1\)"):
        inputs.images_from(floats, GRAY, FEW)
    with pytest.raises(
        DataError, match=r"8 different images, but sweep.images \(n\) \+ sweep.reference_images = 5 \+ 7 = 12"
    ):
        inputs.images_from(floats, RGB, SweepConfig(images=5, reference_images=7))
    few = inputs.images_from(floats, RGB, SweepConfig(ablations=("zero",), images=5, reference_images=7))
    assert (len(few.scored), len(few.reference)) == (5, 3)  # zero ablation needs none


def test_images_from_an_array_file(place, tmp_path):
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(place.iterdir())])
    np.savez(tmp_path / "plots.npz", pixels)
    images = inputs.images_from(tmp_path / "plots.npz", RGB, FEW)
    expected = {thumbnail(image, 8, "x").tobytes() for image in pixels}
    assert {image.tobytes() for image in to_bytes(images.scored)} <= expected
    assert "images of plots.npz" in images.label


def test_images_from_nested(place):
    nested = inputs.images_from(
        place, RGB, SweepConfig(images=3, timesteps=3, nested=True, reference_images=3)
    )
    assert nested.swept.shape == (3, 3, 8, 8, 3)


def trained(name="unknown", **data):
    return ExperimentConfig(name="x", data=DataConfig(name=name, **data))


def test_a_choice_prepares_images_as_in_training_unless_told_otherwise(place, tmp_path):
    squash = Preprocessing(crop="squash")
    config = ExperimentConfig(name="x", sweep=FEW)
    choose = choosing.ImageChoice(config, None, tmp_path, str(place))
    images = choose(RGB, trained(preprocessing=squash), {})
    assert "squashed to a square" in images.label
    told = ExperimentConfig(
        name="x", sweep=FEW, data=DataConfig(preprocessing=Preprocessing(crop="center-8"))
    )
    images = choosing.ImageChoice(told, None, tmp_path, str(place))(RGB, trained(preprocessing=squash))
    assert "center-8 crop" in images.label


@pytest.mark.parametrize("celeba", [None, "folder"])
def test_a_choice_changes_only_what_is_stated_of_the_preprocessing(celeba, tmp_path, monkeypatch):
    def kept(preprocessing):
        seen.append(preprocessing)
        return images

    seen, images = [], inputs.images_from(np.zeros((8, 8, 8, 3), np.uint8), RGB, FEW)
    monkeypatch.setattr(choosing, "images_from", lambda *_, preprocessing, **__: kept(preprocessing))
    monkeypatch.setattr(choosing, "held_out_images", lambda data, *_: kept(data.preprocessing))
    of_training = Preprocessing(crop="squash", filter="lanczos", phases="random")

    def prepared(stated, **wanted):
        config = ExperimentConfig(name="x", sweep=FEW, data=DataConfig(preprocessing=Preprocessing(**wanted)))
        folder = None if celeba else "folder"
        choice = choosing.ImageChoice(config, celeba, tmp_path, folder, stated=stated)
        choice(RGB, trained("celeba", preprocessing=of_training))
        return seen.pop()

    assert prepared(()) == of_training
    for changed in ({"crop": "center"}, {"filter": "box"}, {"phases": "kept"}, {"channels": "rgb"}):
        assert prepared(tuple(changed), **changed) == dataclasses.replace(of_training, **changed)
    assert prepared((), filter="box") == dataclasses.replace(of_training, filter="box")


def test_a_choice_takes_one_kind_of_images(tmp_path):
    with pytest.raises(ConfigError, match="--celeba=a and --images=b both name the images"):
        choosing.ImageChoice(ExperimentConfig(name="x"), "a", tmp_path, "b")


def test_of_a_folder_of_celeba_held_out_images_of_known_people_are_taken(tmp_path):
    pack = write_pack(tmp_path / "pack", size=(40, 40), unpacked=True)
    names = sorted(path.name for path in (pack / "img_align_celeba").iterdir())
    (pack / "identity_CelebA.txt").write_text("".join(f"{name} {n // 2}\n" for n, name in enumerate(names)))
    config = ExperimentConfig(name="x", sweep=FEW)
    by_flag = choosing.ImageChoice(config, str(pack), tmp_path)(RGB, trained("celeba"))
    for data in (trained("celeba"), trained("synthetic")):
        images = choosing.ImageChoice(config, None, tmp_path, str(pack))(RGB, data)
        np.testing.assert_array_equal(images.scored, by_flag.scored)
        assert sorted(images.scored_people) == [5, 6, 6, 7]  # of the split `test`, the last four
    assert "not known whether" in images.label and "held-out" in by_flag.label
    model = md.load(RGB)
    np.testing.assert_array_equal(eval_images(model, pack, 4, 3).reference, by_flag.reference)
    assert how_many(model, pack) == 7
    for place in (tmp_path, pack / "img_align_celeba"):  # around it, and within
        np.testing.assert_array_equal(eval_images(model, place, 4, 3).reference, by_flag.reference)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"holds CelebA \(pack\) and beside it cats; name the one"):
        eval_images(model, tmp_path, 4)
    digests = open_collection(pack).digests
    record = {inputs.TRAINING_IMAGES: [digest[: inputs.DIGEST_LENGTH] for digest in digests[:9]]}
    with pytest.raises(DataError, match="6 different images and 9 that mine was trained on"):
        choosing.ImageChoice(config, None, tmp_path, str(pack))(RGB, trained("folder"), record)
    stated = condition_sources.ConditionSources(classes="1")
    with pytest.raises(ConfigError, match="no effect on CelebA, which"):
        choosing.ImageChoice(config, None, tmp_path, str(pack), stated)(RGB, trained("celeba"))


def test_synthetic_images_do_not_fit_a_gray_network(tmp_path):
    config = ExperimentConfig(name="x", sweep=FEW)
    with pytest.raises(DataError, match=r"takes 1 channel\(s\), but its data has 3"):
        choosing.ImageChoice(config, None, tmp_path)(GRAY, trained("synthetic"))


def test_more_images_than_a_split_of_drawn_ones_holds_are_refused_under_the_names_that_were_given(tmp_path):
    many = SweepConfig(images=2_000_000, reference_images=0, ablations=("zero",))
    line = r"^sweep.images \(n\) = 2000000: a split holds 1,000,000 drawn images; lower them$"
    with pytest.raises(DataError, match=line):
        held_out.held_out_images(DataConfig(), 8, many, tmp_path)
