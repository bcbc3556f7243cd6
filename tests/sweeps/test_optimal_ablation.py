"""Optimal fills: no worse than mean or zero where they were sought, better where better is possible."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import component_at
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.sweeps import activations, optimal_ablation
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.execution import shared_prefix
from mechdiff.sweeps.execution.engine import Engine

UNET, SCHEDULE = SMALL, cosine_schedule(50)
DENOISER = Denoiser("random", UNET, SCHEDULE, random_params(UNET), identity_of(UNET))
IMAGES = np.random.default_rng(1).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)
LEVELS = np.array([3, 40])
KEY = jax.random.key(5)
NAMES = ("down0.block0.res", "down0.attn0.head0", "down0.attn0.head1", "up0.block1.skip")
CHOSEN = tuple(component_at(components(UNET), name) for name in NAMES)


@pytest.fixture(scope="module")
def optimal():
    return optimal_ablation.optimal_replacements(
        DENOISER, EvalSet(IMAGES, LEVELS, KEY), chosen=CHOSEN, steps=12, batch=6
    )


@pytest.fixture(scope="module")
def losses(optimal, tmp_path_factory):
    """Mean losses on the reference images under the noise by which the fills were chosen."""
    replacements = {
        "mean": activations.activation_means(DENOISER, EvalSet(IMAGES, LEVELS, KEY)),
        "optimal": optimal,
    }
    config = SweepConfig(ablations=("zero", "mean", "optimal"), image_block=6)
    folder = tmp_path_factory.mktemp("optimal")
    return ablation_sweep(
        DENOISER,
        EvalSet(IMAGES, LEVELS, KEY),
        folder,
        config=config,
        replacements=replacements,
        chosen=CHOSEN,
    ).loss.mean("image")


def test_no_worse_than_mean_and_zero_on_the_reference_images(losses):
    best = losses.sel(ablation="optimal").values
    for ablation in ("zero", "mean"):
        assert (best <= losses.sel(ablation=ablation).values * (1 + 1e-5)).all()


def test_a_random_network_has_better_constants_than_its_means(losses):
    """Its output is not fitted to the noise, so that a better constant is always near."""
    gain = 1 - losses.sel(ablation="optimal") / losses.sel(ablation="mean")
    assert float(gain.max()) > 0.02 and float((gain > 0).mean()) > 0.7


def test_fills_are_a_channelwise_line_in_the_mean(optimal):
    mean = activations.activation_means(DENOISER, EvalSet(IMAGES, LEVELS, KEY))
    site = "down0.attn0.head"
    for level in range(2):
        for head in range(2):
            x, y = mean[site][level][:, head], optimal[site][level][:, head]
            for channel in range(x.shape[1]):
                line = np.polyfit(x[:, channel].astype(float), y[:, channel].astype(float), 1)
                np.testing.assert_allclose(np.polyval(line, x[:, channel]), y[:, channel], atol=1e-4)


def test_what_was_not_chosen_keeps_its_mean(optimal):
    mean = activations.activation_means(DENOISER, EvalSet(IMAGES, LEVELS, KEY))
    np.testing.assert_array_equal(optimal["mid.block0.res"], mean["mid.block0.res"])


def test_the_gradient_is_the_slope_of_each_components_own_loss_and_of_no_other():
    """All components share one array of fills: a step in the part of one must move its loss alone."""
    means, deviations = activations.activation_moments(DENOISER, EvalSet(IMAGES, LEVELS[:1], KEY))
    mean, deviation = activations.replacements_at(means, 0), activations.replacements_at(deviations, 0)
    scale = {
        site: optimal_ablation._scale(DENOISER.unit_axis(site), mean[site], deviation[site]) for site in mean
    }
    point = {site: np.stack([np.ones_like(s), np.zeros_like(s)]) for site, s in scale.items()}
    stacked, index = leave_one_out(DENOISER.identity, CHOSEN)[1], np.arange(6)
    wave = shared_prefix.plan_passes(UNET, stacked, 100)
    gate = {site: leaf[wave.order[0]] for site, leaf in stacked.gate.items()}
    ordered = dataclasses.replace(stacked, gate=gate, replacement=None)
    candidates = optimal_ablation._Candidates(mean, scale)
    batch = EvalBatch(IMAGES, index, 3, KEY)
    slope = optimal_ablation._slopes(DENOISER, wave.joins, ordered, candidates, point, batch)

    engine, site = Engine(DENOISER), "down0.attn0.head"
    way = np.zeros_like(point[site])
    way[:, :, 0] = np.sign(slope[site][:, :, 0])  # the part of the first head

    def losses(step):
        replacement = candidates.replacement({**point, site: point[site] + np.float32(step) * way})
        replaced = dataclasses.replace(stacked, replacement=replacement)
        return engine.measure(replaced, batch).loss.mean(1)

    rise = (losses(0.05) - losses(-0.05)) / 0.1
    np.testing.assert_allclose(rise[1], (slope[site][:, 0] * way[:, 0]).sum(), rtol=0.02)
    np.testing.assert_allclose(rise[[0, 2, 3]], 0, atol=1e-5)


def test_a_descent_that_ran_away_is_not_chosen(monkeypatch):
    """NumPy takes NaN for the least of all losses."""
    site = CHOSEN[0].site
    start = {site: np.ones((2, 1, 1, 4), np.float32)}
    points = [start, {site: start[site] / 2}, {site: start[site] * np.nan}]
    candidates = optimal_ablation._Candidates({site: np.ones((1, 1, 4))}, {site: np.ones((1, 1, 4))})
    loss = lambda replaced: np.full((1, 3), replaced.replacement[site].mean())
    engine, batch = Engine(DENOISER), EvalSet(IMAGES, LEVELS, KEY).batch(0)
    monkeypatch.setattr(engine, "measure", lambda replaced, _: SimpleNamespace(loss=loss(replaced)))
    stacked = leave_one_out(DENOISER.identity, CHOSEN[:1])[1]
    component = dataclasses.replace(CHOSEN[0], index=(0, 4))
    best = optimal_ablation._best(engine, stacked, [component], candidates, points, batch)
    np.testing.assert_array_equal(best[site], points[1][site])


@pytest.mark.parametrize("setting", [{"steps": 0}, {"batch": 0}])
def test_a_descent_without_steps_or_images_is_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"{name}={value} is too small"):
        optimal_ablation.optimal_replacements(DENOISER, EvalSet(IMAGES, LEVELS, KEY), **setting)


def test_components_that_overlap_are_refused():
    single = components(UNET, channel_groups=2)
    with pytest.raises(ConfigError, match="overlap"):
        optimal_ablation.optimal_replacements(DENOISER, EvalSet(IMAGES, LEVELS, KEY), chosen=single)
