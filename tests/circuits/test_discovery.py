"""Circuits of made-up networks whose answer is known, and of a planted one; gradients along the path."""

import dataclasses
import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from mechdiff.core.config import StudyConfig, SweepConfig
from mechdiff.core.errors import ConfigError, NumericsError
from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.build import keep_only, set_gate
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, denoise
from mechdiff.storage import labelled
from mechdiff.study import circuit_results
from mechdiff.study.eval_images import EvalImages
from mechdiff.sweeps.execution import shared_prefix
from mechdiff.validation import planted
from mechdiff.validation.planted import weights
from mechdiff.validation.planted.gain import losses

KEY = jax.random.key(2)
IMAGES = 12


@dataclasses.dataclass(frozen=True)
class MadeUp(CircuitEvaluator):
    """Trials whose loss is 1, less what `rules(has)` says, alike at both timesteps or of each.

    `has` tells who is there.
    """

    rules: object = None

    def _run(self, members):
        name = {component: i for i, component in enumerate(self.names)}
        rng = np.random.default_rng(0)
        luck = 1 + 0.2 * rng.normal(size=self.eval_set.count)  # images differ, alike for all circuits
        levels = np.array([1.0, 0.5])[: len(self.eval_set.timesteps)]
        gain = np.array([levels * self.rules(lambda who: row[name[who]]) for row in members])  # noqa: B023
        return (1 - gain[:, :, None] * luck).astype(np.float32)


@pytest.fixture(scope="module")
def nobody(tiny):
    """A network of zeros: only its components are asked for."""
    params, identity = weights.template(tiny.unet)
    return Denoiser("made up", tiny.unet, make_schedule(tiny.diffusion), params, identity)


@pytest.fixture(scope="module")
def made_up(nobody):
    eval_set = EvalSet(np.zeros((IMAGES, 8, 8, 3), np.float32), [5, 30], KEY)
    settings = {"chosen": components(nobody.unet)}
    return lambda rules, **options: MadeUp(nobody, eval_set, rules=rules, **settings | options)


A, B, C, D = "down0.attn0.head0", "mid.attn0.head1", "up0.block1.skip", "mid.block0.res"


def additive(has):
    return 0.5 * has(A) + 0.25 * has(C) + 0.02 * has(D)


def redundant(has):
    return 0.5 * (has(A) or has(B)) + 0.2 * has(C)


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


@pytest.fixture
def card(made_up):
    evaluator = made_up(additive)
    return scorecards.scorecard(evaluator, circuits.discover(evaluator), knockouts=6, randoms=30)


def test_the_scorecard_of_an_additive_network_is_what_arithmetic_says(card):
    card, result = card
    assert card.members == (A, C) and card.n == IMAGES
    gains = np.array([0, 0.5, 0.75, 0.77] + [0.77] * (result.sizes["component"] - 3))[card.sizes] / 0.77
    np.testing.assert_allclose(card.curve.estimate, gains, atol=1e-5)
    shares = card.sizes / result.sizes["component"]
    assert float(card.cpr.estimate) == pytest.approx(np.trapezoid(gains, shares), abs=1e-5)
    assert float(card.cmd.estimate) == pytest.approx(1 - float(card.cpr.estimate), abs=1e-5)
    assert float(card.circuit.estimate) == pytest.approx(0.75 / 0.77, abs=1e-5)
    assert float(card.complement.estimate) == pytest.approx(0.02 / 0.77, abs=1e-5)
    # Inside, both lose the same, and differ by what the circuit lacks; outside only the network loses.
    assert float(card.inside.estimate) == pytest.approx(0.02 / 0.77, abs=1e-5)
    np.testing.assert_allclose(card.minimality.estimate, [0.5 / 0.77, 0.25 / 0.77], atol=1e-5)
    assert (card.needed < 0.01).all()
    np.testing.assert_allclose(card.by_t.estimate, [0.75 / 0.77] * 2, atol=1e-5)


def test_a_member_whose_removal_lowers_the_loss_is_not_needed(card):
    _, result = card
    without = np.flatnonzero(result["role"].values == "less member")
    lowered = result.copy(deep=True)
    lowered["loss"][without[1]] = 2 * lowered["loss"].values[result["role"].values == "circuit"][0]
    lowered["loss"][without[1]] -= result["loss"].values[without[1]]
    needed = scorecards.measure(lowered).needed
    assert needed[0] < 0.01 and needed[1] > 0.9


def test_random_circuits_have_the_same_parts_and_the_p_value_counts_them(card):
    card, result = card
    random = result.isel(circuit=result["role"].values == "random")
    own = result.isel(circuit=result["role"].values == "circuit")
    count = lambda some: some["member"].groupby("component_type").sum("component").values
    assert len(card.random) == 30 and (count(random) == count(own)).all()
    as_good = (card.random >= 0.75 / 0.77 - 1e-6) & (card.random <= 1.026)
    assert card.p == pytest.approx((1 + as_good.sum()) / 31)
    assert np.unique(random["member"].values, axis=0).shape[0] > 5


def test_the_summary_names_every_member_and_the_dataset_is_saved_and_read(card, tmp_path):
    card, result = card
    text = "\n".join(scorecards.lines(card))
    assert all(word in text for word in (A, C, "CPR", "CMD", f"{IMAGES} images"))
    labelled.replace(tmp_path / "card.zarr", result)
    again = scorecards.measure(labelled.read(tmp_path / "card.zarr"))
    assert scorecards.lines(again) == scorecards.lines(card)


def test_completeness_of_a_circuit_that_hides_a_backup(made_up):
    """The circuit keeps one of a redundant pair; without it the network does on, and the circuit does not."""
    evaluator = made_up(redundant)
    card, _ = scorecards.scorecard(evaluator, circuits.discover(evaluator), randoms=20)
    assert float(card.inside.estimate) > 0.3 and float(card.outside.estimate) < 0.05


def test_a_circuit_of_everything_has_no_outside(made_up):
    evaluator = made_up(lambda has: 0.4 * has(A) + 0.4 * has(C))
    evaluator = dataclasses.replace(evaluator, chosen=tuple(c for c in evaluator.chosen if c.name in (A, C)))
    card, _ = scorecards.scorecard(evaluator, circuits.discover(evaluator), randoms=20)
    assert card.p == 1 and np.isnan(card.outside.estimate)


def test_resamples_find_a_clear_circuit_again_and_an_unclear_one_less_often(made_up):
    evaluator = made_up(additive)
    result = robustness.stability(evaluator, circuits.discover(evaluator), repeats=6)
    assert result.to_circuit == result.pairwise == 1 and result.sizes == (2,) * 6
    assert result.chance < 0.5 and result.frequency.sum() == 2
    line = robustness.lines(result)[0]
    assert "2 to 2 members" in line and "5 to 95 % of resamples" in line  # no interval
    rng = np.random.default_rng(0)

    class Noisy(MadeUp):
        def _run(self, members):
            private = np.random.default_rng(1).normal(0.05, 0.1, (members.shape[1], 1, self.eval_set.count))
            return (5 - np.tensordot(members.astype(float), private, 1)).astype(np.float32)

    shown = evaluator.eval_set
    noisy = Noisy(evaluator.denoiser, EvalSet(shown.images, shown.timesteps[:1], KEY))
    unclear = robustness.stability(noisy, circuits.discover(noisy, 0.7), repeats=6)
    assert unclear.pairwise < 0.9
    assert discovery.shuffled(rng, np.arange(6) < 2, ["x"] * 3 + ["y"] * 3)[:3].sum() == 2


def test_people_are_left_out_and_drawn_where_they_are_known(made_up):
    evaluator = made_up(additive)
    result = circuits.discover(evaluator)
    moved = {}
    for name, people in {
        "unknown": None,
        "each": np.arange(IMAGES),
        "three": np.repeat([4, 9, 7], 4),
    }.items():
        known = dataclasses.replace(evaluator, people=people)
        moved[name] = robustness.transfer({"own": result}, {"own": known})
    assert moved["unknown"].equals(moved["each"]) and not moved["unknown"].equals(moved["three"])
    assert known.units.people == 3 and set(np.unique(known.units.resamples(50) * 12)) <= {0, 1, 2, 3}
    assert robustness.stability(known, result, repeats=4).to_circuit == 1
    with pytest.raises(ConfigError, match="12 images"):
        dataclasses.replace(evaluator, people=np.arange(5))


def test_halves_are_other_pictures_with_other_noise(nobody):
    pixels = np.random.default_rng(0).uniform(-1, 1, (9, 8, 8, 3)).astype(np.float32)
    pixels_of_people = EvalImages(pixels, pixels[:2], "noise", people=np.arange(9) // 2)
    config = SweepConfig(timesteps=3, images=9)
    settings = config, jax.random.key(4), None
    find, score = circuit_results.circuit_evaluators(nobody, pixels_of_people, "zero", *settings)
    assert find.eval_set.count == 4 and score.eval_set.count == 5 and find.key != score.key
    assert find.people.tolist() == [0, 0, 1, 1] and score.people.tolist() == [2, 2, 3, 3, 4]
    assert not np.array_equal(*(jax.random.key_data(evaluator.eval_set.key) for evaluator in (find, score)))
    assert find.eval_set.timesteps.tolist() == score.eval_set.timesteps.tolist()
    assert len(find.eval_set.timesteps) == 3
    again = dataclasses.replace(pixels_of_people, people=np.array([0, 1, 0, 2, 3, 1, 2, 3, 4]))
    find, score = circuit_results.circuit_evaluators(nobody, again, "zero", *settings)
    assert find.people.tolist() == [0, 1, 0, 1] and score.people.tolist() == [2, 3, 2, 3, 4]
    np.testing.assert_array_equal(score.eval_set.images, pixels[[3, 4, 6, 7, 8]])
    most = dataclasses.replace(again, people=np.array([7] * 6 + [1, 2, 3]))
    assert [half.tolist() for half in most.halves()] == [list(range(7)), [7, 8]]
    few = dataclasses.replace(pixels_of_people, scored=pixels[:3])
    three = dataclasses.replace(again, people=np.arange(9) % 3)
    for images, line in ((few, "too few"), (three, "9 images of 3 people are too few")):
        with pytest.raises(ConfigError, match=line):
            circuit_results.circuit_evaluators(nobody, images, "zero", *settings)
    studied = dataclasses.replace(preset("tiny"), study=StudyConfig(circuits=("zero",), images=9))
    with pytest.raises(ConfigError, match="of 3 people"):  # before anything is swept
        circuit_results.checking(lambda: three, studied)()


def test_a_circuit_is_less_faithful_in_a_network_that_does_otherwise(made_up):
    both = {"one": made_up(additive), "two": made_up(lambda has: 0.5 * has(A) + 0.25 * has(B))}
    results = {name: circuits.discover(evaluator) for name, evaluator in both.items()}
    moved = robustness.transfer(results, both)
    at = lambda name, **where: float(moved[name].sel(**where))
    assert at("estimate", circuit="two", network="two") == pytest.approx(1, abs=1e-5)
    assert at("estimate", circuit="one", network="two") == pytest.approx(0.5 / 0.75, abs=1e-5)
    assert at("drop_estimate", circuit="one", network="two") == pytest.approx(1 / 3, abs=1e-5)
    assert at("drop_estimate", circuit="one", network="one") == 0
    text = robustness.transfer_lines(moved, "zero")
    assert len(text) == 4 and "0.667" in text[2] and text[3].startswith("two")


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
