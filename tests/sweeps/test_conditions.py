"""Sweeps of networks that are told classes or images: the condition stays with its image."""

import dataclasses

import jax
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.config import DiffusionConfig, SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.build import ablate, leave_one_out
from mechdiff.models.denoiser import Denoiser
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.activations import activation_means
from mechdiff.sweeps.execution.drawing import draw_samples
from mechdiff.sweeps.in_memory import sweep_in_memory
from mechdiff.sweeps.replacements import resample_replacements

CONFIG = dataclasses.replace(SMALL, classes=3, condition_channels=1)
KEY = jax.random.key(3)
T = [5, 30]
COUNT = 5
rng = np.random.default_rng(0)
CONDITION = {
    "label": np.array([0, 1, 2, 3, 1], np.int32),
    "image": rng.standard_normal((COUNT, 8, 8, 1)).astype(np.float32),
}
IMAGES = rng.uniform(-1, 1, (COUNT, 8, 8, 3)).astype(np.float32)


def denoiser_of(config) -> Denoiser:
    schedule = make_schedule(DiffusionConfig(schedule="cosine", steps=50))
    return Denoiser("told", config, schedule, random_params(config), identity_of(config))


DENOISER = denoiser_of(CONFIG)
EVAL_SET = EvalSet(IMAGES, T, KEY, CONDITION)
TYPES = ("class", "condition", "time")
CHOSEN = tuple(part for part in DENOISER.components() if part.component_type in TYPES)
predict = jax.jit(lambda intervention, x, t, told: DENOISER.predict(intervention, x, t, told))


def loss_of(intervention, image: int, t: int) -> float:
    """One image by itself, in one row."""
    noise = np.asarray(image_noise(KEY, np.array([image]), (8, 8, 3)))
    at = np.array([t], np.int32)
    x_t = q_sample(DENOISER.schedule, IMAGES[image : image + 1], at, noise)
    told = {name: leaf[image : image + 1] for name, leaf in CONDITION.items()}
    return float(np.mean((np.asarray(predict(intervention, x_t, at, told)) - noise) ** 2))


def test_a_sweep_is_a_loop_of_single_images_under_their_own_conditions(tmp_path):
    config = SweepConfig(ablations=("zero",), image_block=2)
    swept = ablation_sweep(DENOISER, EVAL_SET, tmp_path, config=config, chosen=CHOSEN)
    for row, component in enumerate(CHOSEN):
        gated = ablate(DENOISER.identity, [component.name])
        loop = [[loss_of(gated, image, t) for image in range(COUNT)] for t in T]
        np.testing.assert_allclose(swept["loss"][0, row], loop, rtol=2e-4)
    clean = [[loss_of(DENOISER.identity, image, t) for image in range(COUNT)] for t in T]
    np.testing.assert_allclose(swept["clean_loss"], clean, rtol=2e-4)
    other = dataclasses.replace(EVAL_SET, condition=CONDITION | {"label": CONDITION["label"][::-1]})
    changed = ablation_sweep(DENOISER, other, tmp_path, config=config, chosen=CHOSEN)
    assert changed.attrs["key"] != swept.attrs["key"]
    assert np.abs(changed["clean_loss"] - swept["clean_loss"]).max() > 1e-4


def test_the_mean_class_is_the_mean_of_the_rows_shown_and_a_donor_is_another_image():
    means = activation_means(DENOISER, EVAL_SET, block=2)
    table = DENOISER.params["class"]["table"]["embedding"]
    for t_index in range(len(T)):
        np.testing.assert_allclose(
            means["mid.block0.class"][t_index], table[CONDITION["label"]].mean(0), atol=1e-6
        )
        np.testing.assert_allclose(means["conv_in.condition"][t_index], CONDITION["image"].mean(0), atol=1e-6)
    source = resample_replacements(DENOISER, EVAL_SET)
    values = source.at(0, np.arange(COUNT), 0)
    np.testing.assert_allclose(
        values["mid.block0.class"], table[CONDITION["label"][source.donors[0]]], atol=1e-6
    )
    stacked = leave_one_out(DENOISER.identity, CHOSEN[:2])[1]
    losses = sweep_in_memory(DENOISER, EVAL_SET, stacked, ablation="resample", replacements=source)
    assert np.isfinite(losses.loss).all()


def test_samples_are_drawn_of_every_class_in_turn_and_guided_towards_them():
    labeled = denoiser_of(dataclasses.replace(SMALL, classes=3))
    draw = lambda **options: draw_samples(labeled, KEY, 4, 3, **options)
    in_turn = draw()
    np.testing.assert_array_equal(in_turn, draw(condition=np.array([0, 1, 2, 0])))
    null = draw(condition=np.full(4, 3))
    np.testing.assert_array_equal(draw(guidance=0.0), null)
    assert np.abs(draw(guidance=2.0) - in_turn).max() > 1e-2
    with pytest.raises(ConfigError, match="label 4 is out of range; 0 to 2, or 3 for none"):
        draw(condition=np.array([0, 1, 2, 4]))
    with pytest.raises(ConfigError, match="label 4 is out of range"):
        wrong = EvalSet(IMAGES, T, KEY, np.array([0, 1, 2, 4, 0]))
        sweep_in_memory(labeled, wrong, leave_one_out(labeled.identity, ".*time")[1])
    with pytest.raises(ConfigError, match="it has no null class"):
        draw_samples(
            denoiser_of(dataclasses.replace(SMALL, classes=3, null_class=False)), KEY, 4, 3, guidance=2.0
        )
    with pytest.raises(ConfigError, match="is conditioned on label and image, for which there is no default"):
        draw_samples(DENOISER, KEY, 4, 3)


def test_conditions_of_another_count_than_the_images_are_refused():
    with pytest.raises(ConfigError, match=r"condition of shape \(4,\) for images of shape \(5, 8, 8, 3\)"):
        EvalSet(IMAGES, T, KEY, CONDITION | {"label": np.zeros(4, np.int32)})
