"""Circuits of made-up networks whose answer is known, and of a planted one; gradients along the path."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.made_up_circuits import IMAGES, KEY, A, B, C, D, additive, redundant

from mechdiff import circuits
from mechdiff.circuits import (
    discovery,
    faithfulness,
    integrated_gradients,
    robustness,
    scorecards,
    screening,
)
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.core.errors import ConfigError, NumericsError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import keep_only, set_gate
from mechdiff.models.unet import components, denoise
from mechdiff.sweeps.execution import shared_prefix
from mechdiff.validation import planted
from mechdiff.validation.planted.gain import losses


def test_the_smallest_circuit_that_is_close_enough_is_found_in_the_order_of_need(made_up):
    evaluator = made_up(additive)
    result = circuits.discover(evaluator, tau=0.9)
    assert result.members == (A, C)
    assert result.order[:3] == (A, C, D) and sorted(result.order) == sorted(evaluator.names)
    assert result.faithfulness == pytest.approx(0.75 / 0.77, abs=1e-5)
    assert circuits.discover(evaluator, tau=0.6).members == (A,)
    assert circuits.discover(evaluator, tau=0.99).members == (A, C, D)


@pytest.mark.parametrize("overflow", [np.inf, np.nan])
def test_ablations_that_overflow_are_no_circuit_of_everything(made_up, overflow):
    """All components would be members, of faithfulness NaN: nothing else reaches tau."""
    evaluator = made_up(lambda has: additive(has) if has(A) else -overflow)
    with pytest.raises(NumericsError, match="made up: losses of 1 of 8 circuits under zero ablation are NaN"):
        circuits.discover(evaluator)


def test_marginal_effects_are_percent_of_the_clean_loss_at_each_timestep(made_up):
    evaluator = made_up(additive)
    result = circuits.discover(evaluator)
    luck = (1 - evaluator.losses(evaluator.ends)[1].mean(1)) / 0.77
    expected = 100 * 0.5 * luck / (1 - 0.77 * luck)
    np.testing.assert_allclose(result.marginal[evaluator.names.index(A)], expected, rtol=1e-4)
    assert not result.marginal[evaluator.names.index(D)].any()


def late(has):
    return np.array([0.7, 0.0]) * has(A) + np.array([0.0, 0.05]) * has(B)


def test_what_acts_at_one_level_only_is_found_where_each_is_asked_for(made_up):
    assert circuits.discover(made_up(late)).members == (A,)  # B is a thirtieth of the average
    result = circuits.discover(made_up(late, every_timestep=True))
    assert result.every_timestep and {*result.members} == {A, B}
    evaluator = made_up(late, every_timestep=True)
    without = np.array([[name != B for name in evaluator.names]])
    assert evaluator.faithfulness_match(without)[0, 0] == pytest.approx(0, abs=1e-5)
    weights = np.eye(IMAGES)[:3]
    assert evaluator.faithfulness_match(without, weights).shape == (1, 3)


def test_levels_at_which_nothing_is_lost_are_not_asked(made_up):
    evaluator = made_up(lambda has: np.array([0.7, 0.0]) * has(A), every_timestep=True)
    assert circuits.discover(evaluator).members == (A,)


def test_of_two_that_do_the_same_one_is_kept_and_the_other_can_stand_in(made_up):
    evaluator = made_up(redundant)
    result = circuits.discover(evaluator)
    assert np.abs(result.effect[[evaluator.names.index(name) for name in (A, B)]]).max() < 1e-3
    assert len(result.members) == 2 and C in result.members
    (kept,) = {A, B} & {*result.members}
    (other,) = {A, B} - {kept}
    places = circuits.backup_components(evaluator, result)
    assert places == {kept: (other,), C: ()}


def test_two_that_cancel_stay_together_since_one_alone_ruins_all(made_up):
    result = circuits.discover(made_up(lambda has: 0.3 * has(C) - 5 * (has(A) != has(B))))
    assert {*result.members} == {A, B, C} or {*result.members} == {C}


def test_a_component_that_hurts_belongs_to_what_the_network_does(made_up):
    evaluator = made_up(lambda has: 0.5 * has(A) - 0.3 * has(B))
    result = circuits.discover(evaluator)
    assert result.members == (A, B)
    assert result.marginal[evaluator.names.index(B)].max() < 0  # the loss falls without it
    # Without it f is 2.5: better than the network, and not close to it.
    assert faithfulness.faithfulness_match(evaluator.faithfulness(evaluator.ends)[:, 0]) == pytest.approx(
        [0, 1]
    )


def test_every_member_is_needed_whatever_the_network(made_up):
    ten = made_up(additive).chosen[:10]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        single, pairs = rng.normal(0, 0.02, 10), rng.normal(0, 0.01, (10, 10))

        def rules(has, single=single, pairs=pairs):
            there = np.array([has(component.name) for component in ten], float)
            return there @ single + there @ pairs @ there

        evaluator = made_up(rules, chosen=ten)
        result = circuits.discover(evaluator, tau=0.8)
        close = discovery.match_function(evaluator)
        members = discovery.as_members(result, evaluator.names)
        assert close(members[None])[0] >= 0.8
        fewer = np.array([members & (np.arange(10) != i) for i in np.flatnonzero(members)])
        assert (close(fewer) < 0.8).all()


@pytest.fixture(scope="module")
def plant():
    return planted.make("uniform", 3, images=4)


def real(plant, **options):
    return CircuitEvaluator(plant.denoiser, EvalSet(plant.images, plant.timesteps[:2], KEY), **options)


def test_circuits_of_all_sizes_share_a_program_and_none_is_run_twice(plant, tmp_path, monkeypatch):
    traces, inner = [], shared_prefix.forward
    monkeypatch.setattr(shared_prefix, "forward", lambda *args: (traces.append(1), inner(*args))[1])
    settings = {"folder": tmp_path, "batch": 7}  # no other test of this process has a program for seven
    result = circuits.discover(real(plant, **settings))
    assert result.members == tuple(plant.signs)
    assert len(traces) == 1 and result.evaluated > 36
    first = real(plant, **settings)
    first.losses(np.random.default_rng(0).random((5, len(first.names))) < 0.5)  # as of its scorecard
    assert len(first._evaluated) > result.evaluated
    monkeypatch.setattr(CircuitEvaluator, "_run", None)  # a second process knows it all
    again = circuits.discover(real(plant, **settings))
    assert again.evaluated == result.evaluated
    assert again.members == result.members and again.faithfulness == result.faithfulness
    np.testing.assert_array_equal(again.marginal, result.marginal)


def test_losses_are_those_of_keep_only_by_one_pass_each(plant):
    replacements = {
        site: np.full((2, *[1] * np.ndim(replacement)), 0.3, np.float32)
        for site, replacement in plant.denoiser.identity.replacement.items()
    }
    evaluator = real(plant, ablation="constant", replacements=replacements)
    kept = [list(plant.signs), ["mid.block0.res", "up0.block0.skip"], []]
    result = evaluator.losses(np.array([np.isin(evaluator.names, names) for names in kept]))
    noise = image_noise(KEY, jnp.arange(4), plant.images.shape[1:])
    denoiser, plain = plant.denoiser, jax.jit(denoise, static_argnums=0)
    here = {site: replacement[1] for site, replacement in replacements.items()}
    at = jnp.full(4, int(plant.timesteps[1]))
    x_t = q_sample(denoiser.schedule, plant.images, at, noise)
    for names, loss in zip(kept, result, strict=True):
        only = keep_only(denoiser.identity, names, "constant", here)
        eps = plain(denoiser.unet, denoiser.schedule, denoiser.params, only, x_t, at)
        np.testing.assert_allclose(loss[1], jnp.mean((eps - noise) ** 2, axis=(1, 2, 3)), rtol=1e-4)


@pytest.fixture(scope="module")
def shares(plant):
    images, levels = plant.images, plant.timesteps[1:3]
    return integrated_gradients.integrated_gradients(
        plant.denoiser, EvalSet(images, levels, jax.random.key(0)), steps=16, block=3
    )


def test_shares_add_up_to_what_all_components_bring(plant, shares):
    denoiser, shown = plant.denoiser, (plant.images, plant.timesteps[1:3])
    without = losses(denoiser, set_gate(denoiser.identity, components(denoiser.unet), 0.0), *shown)
    brought = without - losses(denoiser, denoiser.identity, *shown)
    np.testing.assert_allclose(shares.score.mean("image").sum("component"), brought, rtol=0.02)


def test_nearly_all_is_the_share_of_the_one_that_matters(plant, shares):
    score = shares.score.mean(("image", "t"))
    assert float(score.sel(component=list(plant.signs)).sum()) > 0.9 * float(score.sum())


def test_no_steps_are_refused(plant):
    with pytest.raises(ConfigError, match="steps=0"):
        integrated_gradients.integrated_gradients(
            plant.denoiser, EvalSet(plant.images, plant.timesteps, KEY), steps=0
        )


def test_the_kinds_and_components_asked_for_must_fit(plant, made_up):
    with pytest.raises(ConfigError, match="needs replacements"):
        real(plant, ablation="mean")
    with pytest.raises(ConfigError, match="tau=1"):
        circuits.discover(made_up(additive), tau=1)
    with pytest.raises(ConfigError, match="closest: exact"):
        circuits.discover(made_up(additive), ranking="exakt")
    with pytest.raises(ConfigError, match="folder"):
        circuits.discover(made_up(additive), ranking="screen")
    with pytest.raises(ConfigError, match="nothing that a circuit could explain"):
        circuits.discover(made_up(lambda has: 0.0))
    plain = made_up(additive)
    result, few = circuits.discover(plain), made_up(additive, chosen=plain.chosen[1:])
    with pytest.raises(ConfigError, match="not in both networks"):
        scorecards.scorecard(few, result)
    with pytest.raises(ConfigError, match="'zero'"):
        scorecards.scorecard(
            made_up(additive, ablation="other", replacements=plain.denoiser.identity.replacement), result
        )


def test_a_screen_ranks_by_what_it_verified_and_else_by_its_scores(made_up, tmp_path, monkeypatch):
    evaluator, signature = made_up(additive, folder=tmp_path), inspect.signature(screening.screen_and_verify)

    settings = screening.ScreenConfig(k=3)

    def screen(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        assert arguments["chosen"] == evaluator.chosen and arguments["config"] == settings
        effect = np.where(np.arange(len(evaluator.names)) < 5, discovery.effects(evaluator), np.nan)
        return SimpleNamespace(effect=effect, score=discovery.effects(evaluator) + 1e-3)

    monkeypatch.setattr(screening, "screen_and_verify", screen)
    result = circuits.discover(evaluator, ranking="screen", screen=settings)
    assert result.members == (A, C) and result.ranking == "screen"
    again = robustness.stability(evaluator, result, repeats=3)
    assert again.to_circuit == 1
