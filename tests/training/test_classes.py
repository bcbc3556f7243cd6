"""Training on classes: labels reach the network, some as the null class; guidance while sampling."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from reference.networks import fresh_state, random_params

from mechdiff.core.config import UNetConfig, override
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.data import Dataset
from mechdiff.diffusion.samplers import Sampler, guided, sample
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.models import load
from mechdiff.training import batches, loop, step
from mechdiff.training.placement import BATCH

ONE = jax.make_mesh((1,), (BATCH,), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
NETWORK = UNetConfig(
    image_size=8, widths=(8,), heads=(1,), norm_groups=4, mid_attention=False,
    down_attention=(False,), up_attention=(False,), classes=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def labeled(tiny):
    return dataclasses.replace(
        tiny, unet=NETWORK, data=dataclasses.replace(tiny.data, classes="skin_brightness")
    )


def gradient_of_table(config, labels):
    """First moments of Adam: the clipped gradient, times 0.1."""
    state, params = fresh_state(config), random_params(config.unet)
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    update = jax.jit(functools.partial(step.train_step, config, ONE))
    after, _ = update(step.fixed_parts(config), jnp.uint32(0), state, images, jnp.asarray(labels))
    return (
        np.abs(after.params["class"]["table"]["embedding"] - params["class"]["table"]["embedding"]).max(1) > 0
    )


def test_only_the_rows_of_the_table_that_were_shown_move(labeled):
    config = override(labeled, ["train.label_dropout=0.5"])
    assert gradient_of_table(config, np.zeros(64, np.int32)).tolist() == [True, False, True]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_labels_becomes_the_null_class(labeled, share):
    config = override(labeled, [f"train.label_dropout={share}"])
    labels = step._with_null_labels(config, jax.random.key(0), jnp.zeros(4000, jnp.int32))
    assert set(np.unique(labels)) <= {0, 2} and np.mean(np.asarray(labels) == 2) == pytest.approx(
        share, abs=0.03
    )


def test_a_labeled_model_is_trained_and_loaded(labeled, tmp_path):
    config = override(labeled, ["train.steps=2", "train.save_every=2", "train.eval_every=2"])
    _, params, _, record = load.load_trained(loop.train(config, tmp_path))
    assert params["class"]["table"]["embedding"].shape[0] == 3 and np.isfinite(record["test_loss"])


BAD = [
    (["unet.classes=0"], "unet.classes=0 and data.classes='skin_brightness': both are needed"),
    (["data.classes="], "unet.classes=2 and data.classes='': both are needed"),
    (
        ["unet.classes=9", "data.classes=hair_style"],
        r"is of class 8 \(hair_style 8\) of 9; .* \(now 64\), or fewer cl",
    ),
    (["unet.condition_channels=1"], "training takes classes of a table only"),
]


@pytest.mark.parametrize(("settings", "expected"), BAD)
def test_classes_that_do_not_fit_are_one_line(labeled, settings, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "programs", lambda _: None)  # seen before any is called
    with pytest.raises(ConfigError, match=expected):
        loop.Trainer(override(labeled, settings), tmp_path)


def test_a_class_without_images_is_named(labeled):
    images, config = np.zeros((3, 8, 8, 3), np.uint8), override(labeled, ["data.classes=folder"])
    seen = Dataset(
        name="folder", images=images, digest="", ids=np.arange(3),
        labels={"folder": np.zeros(3, np.int32)}, names={"folder": ("cat", "dog")},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"no training image is of class 1 \(dog\) of 2; take more train"):
        batches._labels(config, seen, all_classes=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [("folder", ".npz are read in examinations"), ("tfds", "'attributes' is"), ("gaussian", "take other im")],
)
def test_where_there_are_no_labels_the_way_out_is_that_of_the_source(labeled, source, words):
    bare = Dataset(name=source, images=np.zeros((3, 8, 8, 3), np.uint8), digest="", ids=np.arange(3))
    with pytest.raises(ConfigError, match=f"images of {source} have no labels here; .*{words}"):
        batches._labels(labeled, bare)


@pytest.fixture(scope="module")
def drawn():
    """Samples of a network that compiles at once, by the scale of guidance, and those by hand."""
    schedule, rng = make_schedule(preset("tiny").diffusion), np.random.default_rng(0)
    into, out, classes = (rng.normal(0, 0.2, n).astype(np.float32) for n in ((192, 16), (16, 192), (3, 16)))

    def predict(x_t, t, condition):
        hidden = x_t.reshape(len(x_t), -1) @ into + jnp.sin(t)[:, None] + 5 * jnp.asarray(classes)[condition]
        return (jnp.tanh(hidden) @ out).reshape(x_t.shape)

    def run(denoise_fn):
        sampler = Sampler(schedule, timesteps=[5, 20, 45])
        return np.asarray(jax.jit(lambda: sample(denoise_fn, sampler, jax.random.key(0), (2, 8, 8, 3)))())

    labels, null = np.array([0, 1]), np.array([2, 2])
    scales = {scale: run(guided(predict, labels, null, scale)) for scale in (0, 0.0, 1, 3.0)}
    by_hand = lambda x, t: 3 * predict(x, t, labels) - 2 * predict(x, t, null)
    alone = {
        label: run(lambda x, t, c=c: predict(x, t, c)) for label, c in (("null", null), ("class", labels))
    }
    return scales, alone | {"hand": run(by_hand)}


def test_guidance_of_scale_zero_is_the_sampler_without_classes_bitwise(drawn):
    scales, expected = drawn
    np.testing.assert_array_equal(scales[0], expected["null"])
    np.testing.assert_array_equal(scales[1], expected["class"])
    np.testing.assert_allclose(scales[3.0], expected["hand"], atol=2e-4)
    assert np.abs(scales[3.0] - scales[1]).max() > 0.05
