"""Scorecards of circuits of made-up networks: what arithmetic says, resamples, halves."""

import dataclasses

import jax
import numpy as np
import pytest
from reference.made_up_circuits import IMAGES, KEY, A, B, C, MadeUp, additive, redundant

from mechdiff import circuits
from mechdiff.circuits import (
    discovery,
    robustness,
    scorecards,
)
from mechdiff.core.config import StudyConfig, SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.storage import labelled
from mechdiff.study import circuit_results
from mechdiff.study.eval_images import EvalImages


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
