"""Every plant is what it says, by exact ablation; scores of methods by hand and by enumeration."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.examples import own_unet
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import leave_one_out, set_gate
from mechdiff.models.unet import components
from mechdiff.sweeps.ablation import sweep_in_memory
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.validation import planted
from mechdiff.validation.planted import datasets, methods, metrics, networks, weights
from mechdiff.validation.planted.gain import losses

IMAGES = 8


@pytest.fixture(scope="module")
def chosen():
    return components(networks.unet_of("small"))


@pytest.fixture(scope="module")
def made():
    return {name: planted.make(name, 1, images=IMAGES) for name in planted.FAMILIES}


@pytest.fixture(scope="module")
def exact(made, chosen):
    """Plant -> Deg% `[component, t]` and largest change `[component]` of leaving out each component."""
    found = {}
    for name, plant in made.items():
        engine = Engine(plant.denoiser)
        stacked = leave_one_out(plant.denoiser.identity, chosen)[1]
        eval_set = EvalSet(plant.images, plant.timesteps, jax.random.key(5))
        levels = [engine.measure(stacked, eval_set.batch(t_index)) for t_index in range(len(plant.timesteps))]
        rise = [100 * (m.loss.mean(1) / m.clean_loss.mean() - 1) for m in levels]
        found[name] = np.stack(rise, 1), np.max([m.change.max(1) for m in levels], axis=0)
    return found


def damage(plant, names, dose=0.0):
    """Mean Deg% of components at a dose together, on the pictures that the gain was fitted to."""
    asked = plant.others, plant.timesteps
    clean = losses(plant.denoiser, plant.denoiser.identity, *asked)
    changed = losses(plant.denoiser, set_gate(plant.denoiser.identity, names, dose), *asked)
    return float(100 * (changed / clean - 1).mean())


@pytest.mark.parametrize("name", [name for name in planted.FAMILIES if name != "redundant"])
def test_exact_ablation_finds_what_was_planted_and_its_sign(made, exact, chosen, name):
    plant, (rise, _) = made[name], exact[name]
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    found = metrics.compare(rise, signs)
    assert (found["auroc"], found["precision"], found["sign"]) == (1, 1, 1)
    size = np.abs(rise.mean(axis=1))
    assert size[signs != 0].min() > 2 * size[signs == 0].max()


@pytest.fixture(scope="module")
def by_names(made):
    """The network of all plants as a function of which only its named values are known."""
    denoiser = next(iter(made.values())).denoiser
    return own_unet.wrapped(denoiser.unet, denoiser.schedule, denoiser.params, denoiser.identity)


@pytest.mark.parametrize("name", planted.FAMILIES)
def test_plants_are_found_through_named_values_as_through_stages(made, exact, chosen, by_names, name):
    plant = made[name]
    function = dataclasses.replace(by_names, params=plant.denoiser.params)
    names, stacked = leave_one_out(function.identity, [component.name for component in chosen])
    assert list(names) == [component.name for component in chosen]
    losses = sweep_in_memory(function, EvalSet(plant.images, plant.timesteps, jax.random.key(5)), stacked)
    rise = 100 * (losses.loss.mean(-1) / losses.clean_loss.mean(-1) - 1)
    np.testing.assert_allclose(rise, exact[name][0], rtol=1e-3, atol=0.01)
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    np.testing.assert_equal(metrics.compare(rise, signs), metrics.compare(exact[name][0], signs))


@pytest.mark.parametrize("name", ["uniform", "redundant", "harmful"])
def test_discovery_finds_what_was_planted_and_stand_ins_the_second_of_a_pair(made, chosen, name):
    plant = made[name]
    found = methods.discovered(plant, jax.random.key(5), chosen)
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    average, alone, shared = (metrics.compare(values, signs) for values in found.values())
    assert average["auroc"] == alone["auroc"]
    assert shared["auroc"] == shared["precision"] == shared["sign"] == 1
    assert alone["auroc"] == (0.75 if plant.pair else 1)  # of two that do the same, a circuit needs one


@pytest.mark.parametrize("name", planted.FAMILIES)
def test_dead_heads_change_nothing(made, exact, chosen, name):
    silent = [c.component_type == "head" and c.name not in made[name].signs for c in chosen]
    assert exact[name][1][silent].max() < 1e-10


def test_neither_of_the_redundant_pair_is_missed_alone_but_both_are(made, exact):
    rise, _ = exact["redundant"]
    assert np.abs(rise.mean(axis=1)).max() < metrics.NOTHING
    assert damage(made["redundant"], made["redundant"].pair[:2]) > 100


def test_branches_that_cancel_are_missed_one_by_one_and_not_together(made, exact, chosen):
    rise, _ = exact["cancelling"]
    members = [component.name in made["cancelling"].pair for component in chosen]
    assert rise[members].mean(axis=1).min() > 100
    assert abs(damage(made["cancelling"], made["cancelling"].pair[:2])) < 2


def test_the_windowed_branch_acts_in_its_window_only(made, exact, chosen):
    plant, rise = made["window"], exact["window"][0]
    rise = rise[[component.name in plant.signs for component in chosen]]
    inside = (plant.timesteps >= plant.window[0]) & (plant.timesteps < plant.window[1])
    assert inside.sum() == 2
    assert rise[:, inside].min() > 5
    assert np.abs(rise[:, ~inside]).max() < 1


def test_the_gain_is_where_the_gradient_of_the_loss_vanishes(made):
    # Nearly quadratic: more of it or less of it does the same, small, damage.
    plant = made["uniform"]
    (name,) = plant.signs
    assert min(damage(plant, [name], dose) for dose in (0.9, 1.1)) > 0


def test_instances_differ_and_repeat(made):
    again, other = planted.make("redundant", 1, images=IMAGES), planted.make("redundant", 2, images=IMAGES)
    same = jax.tree.map(np.array_equal, again.denoiser.params, made["redundant"].denoiser.params)
    assert all(jax.tree.leaves(same)) and np.array_equal(again.images, made["redundant"].images)
    assert not np.array_equal(other.images, again.images)
    assert not np.array_equal(other.images, other.others)


def test_summaries_average_over_instances_and_leave_out_what_does_not_apply():
    one = {"plant": "a", "method": "b", "auroc": 1.0, "precision": 0.5, "sign": np.nan, "window": np.nan}
    (row,) = planted.summarize([one, one | {"auroc": 0.5, "sign": 1.0}])
    assert row["n"] == 2 and row["auroc"] == [0.75, 0.5, 1.0] and row["sign"][0] == 1
    assert np.isnan(row["window"]).all()
    assert planted.table([row]).splitlines()[1].split() == [
        "a",
        "b",
        "2",
        "0.75",
        "[0.50,",
        "1.00]",
        "0.50",
        "[0.50,",
        "0.50]",
        "1.00",
        "-",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_in_order_and_precision_of_ties_is_their_mean(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (12, 1)).astype(float)
    signs = rng.permutation([1] * 4 + [0] * 8)
    size, matters = np.abs(scores[:, 0]), signs != 0
    ordered = np.sign(size[matters][:, None] - size[~matters]) / 2 + 0.5
    found = metrics.compare(scores, signs)
    assert found["auroc"] == pytest.approx(ordered.mean())
    tops = [np.lexsort((rng.random(12), -size))[:4] for _ in range(2000)]
    assert found["precision"] == pytest.approx(np.mean([matters[top].mean() for top in tops]), abs=0.03)


def test_sign_and_window_of_a_hand_example():
    scores = np.array([[0, 10.0, 20], [-5, -5, 0.1], [0, 0, 1], [np.nan] * 3])
    found = metrics.compare(scores, np.array([1, 1, 0, 1]), np.array([False, True, True]))
    assert found == {"auroc": 1, "precision": 1, "sign": 0.5, "window": pytest.approx((1 + 1 / 3) / 2)}


def test_what_rounding_makes_is_nothing_and_a_method_without_candidates_says_nothing():
    tiny = np.array([[1e-3], [1e-6], [0.0]])
    assert metrics.compare(tiny, np.array([1, 0, 0]))["auroc"] == 0.5
    assert metrics.compare(tiny, np.array([1, 0, 0]), signed=False)["auroc"] == 1
    assert np.isnan(metrics.compare(tiny, np.zeros(3, int))["auroc"])


def test_scenes_are_pictures_and_the_checkerboard_is_lost_by_pooling():
    for scene in (datasets.regions, datasets.flat, datasets.cells, datasets.checkers):
        image = scene(np.random.default_rng(0), 3, 8)
        assert image.shape == (3, 8, 8, 3) and image.dtype == np.float32 and np.abs(image).max() <= 1
    pooled = image[..., 0].reshape(3, 4, 2, 4, 2).mean((2, 4))
    assert not pooled.any()
    patch = image[0, :3, :3, 0]
    assert (weights.HIGH_PASS * patch).sum() == pytest.approx(patch[1, 1])


def test_unknown_plants_and_sizes_are_named_with_the_way_out():
    with pytest.raises(ConfigError, match="closest: uniform"):
        planted.make("unifrom")
    with pytest.raises(ConfigError, match="small"):
        planted.make("uniform", size="smal")
