"""Networks with classes: every call knows the class of each image, or asks for it in one line."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from reference import user_network

import mechdiff as md
from mechdiff.api import paired_sweeps
from mechdiff.api.classes import check_labels, for_other
from mechdiff.api.images import eval_images
from mechdiff.core import keys
from mechdiff.core.config import DiffusionConfig, SweepConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data import class_labels, load
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions import build
from mechdiff.models import factories
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


def _named(model, *names, shift=0):
    """The model, its classes called so, and with other parameters if `shift` is not 0."""
    params = jax.tree.map(lambda leaf: leaf * (1 + shift), model.denoiser.params)
    denoiser = dataclasses.replace(model.denoiser, params=params, name=f"named{shift}")
    return dataclasses.replace(model, denoiser=denoiser, record={"class_names": list(names)}, config=None)


def test_compared_models_are_told_the_class_of_the_same_name(labeled, tmp_path):
    """Without images: own samples of the first, said to be its own, under the other's numbers."""
    before, after = _named(labeled, "dark", "bright"), _named(labeled, "bright", "dark", shift=0.01)
    options = {"n": 4, "timesteps": 1, "components": SITE, "folder": tmp_path}
    compared = md.compare(before, after, **options)
    first, second = compared.before.dataset, compared.after.dataset
    assert first["class_label"].values.tolist() == [0, 1, 0, 1]
    assert second["class_label"].values.tolist() == [1, 0, 1, 0]
    assert {side.attrs["inputs"] for side in (first, second)} == {"named0's own samples (not real images)"}
    exchanged = images_from(
        eval_images(before, None, 4).scored,
        after.denoiser,
        dataclasses.replace(FEW, images=4),
        condition=np.array([1, 0, 1, 0]),
    )
    alone = md.api.sweep(after, exchanged, **options).dataset
    np.testing.assert_array_equal(second["clean_loss"], alone["clean_loss"])
    wrong = md.api.sweep(after, dataclasses.replace(exchanged, condition=np.arange(4) % 2), **options)
    assert np.abs(second["clean_loss"] - wrong.dataset["clean_loss"]).max() > 1e-6
    unconditional = md.load(user_network.denoiser())
    assert for_other(exchanged, before, unconditional).condition is None
    with pytest.raises(ConfigError, match=r"conditioned on label, which images of .* come without"):
        for_other(dataclasses.replace(exchanged, condition=None), unconditional, before)


def test_classes_that_can_not_be_matched_by_name_are_refused(labeled, shown, monkeypatch, images, tmp_path):
    monkeypatch.setattr(paired_sweeps, "sweep", lambda *_, **__: pytest.fail("swept"))
    before = _named(labeled, "dark", "bright")
    for names, said in ((("pale", "tan"), "(pale, tan)"), ((), "(not named)")):
        other = _named(labeled, *names, shift=0.01)
        with pytest.raises(
            ConfigError, match=rf"\(dark, bright\) .* {re.escape(said)} can't be matched by name"
        ):
            md.compare(before, other, shown, n=6)
    with pytest.raises(ConfigError, match="can't be matched by name"):
        md.compare(_named(labeled), _named(labeled, shift=0.01), shown, n=6)
    np.savez(tmp_path / "faces.npz", images=images, labels=np.ones(6, int))
    other = _named(labeled, "bright", "dark", shift=0.01)
    with pytest.raises(ConfigError, match=r"image 0 would be bright to named0, but dark to named0\.01; give"):
        md.compare(before, other, tmp_path / "faces.npz", n=6)


def test_labels_stay_where_both_learned_the_same_ones_or_a_user_gave_them(labeled, shown):
    """Numbers of a data set's label are the same in every training; a label for no class stays one."""
    unnamed = [dataclasses.replace(_named(labeled), config=labeled.config) for _ in range(2)]
    np.testing.assert_array_equal(for_other(shown, *unnamed).condition, shown.condition)
    first, second = _named(labeled, "dark", "bright"), _named(labeled, "bright", "dark")
    both = dataclasses.replace(shown, condition={"label": np.array([0, 1, 2, 0, 1, 2])})
    turned = for_other(both, first, second)
    np.testing.assert_array_equal(turned.condition["label"], [1, 0, 2, 1, 0, 2])
    given = dataclasses.replace(first, record={**first.record, factories.WITH_IMAGES: (None, None)})
    assert for_other(both, given, second) is both


def test_conditions_that_are_no_classes_are_given_as_they_are(images):
    """An array of numbers of a wrapped function: to both models the same."""

    def network(params, x, t, text):
        return checkpoint_name(params["scale"] * x, "scaled.mlp") + text.mean(-1)[:, None, None, None]

    example = (
        np.zeros((2, *images.shape[1:]), np.float32),
        np.zeros(2, np.int32),
        np.zeros((2, 3), np.float32),
    )
    schedule = make_schedule(DiffusionConfig(steps=50))
    first, second = (
        md.load(md.wrap(network, {"scale": scale}, schedule=schedule, example=example, name=name))
        for name, scale in (("a", np.float32(0.5)), ("b", np.float32(0.7)))
    )
    texts = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    given = images_from(images, first.denoiser, FEW, condition=texts)
    np.testing.assert_array_equal(for_other(given, first, second).condition, texts)
    check_labels(given, first, given, second)
