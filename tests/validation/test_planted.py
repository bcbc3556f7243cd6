"""Every plant is what it says, by exact ablation; scores of methods by hand and by enumeration."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments.examples import own_unet
from mechdiff.circuits.interactions import pair_effects
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.core.numerics import ROUNDING
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import leave_one_out, set_gate
from mechdiff.models.unet import components, denoise
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.in_memory import sweep_in_memory
from mechdiff.validation import planted
from mechdiff.validation.planted import (
    datasets,
    gain,
    hidden_plants,
    methods,
    metrics,
    networks,
    plants,
    weights,
)
from mechdiff.validation.planted.gain import losses

IMAGES = 8
SWEPT = 4  # of them, in sweeps of all components


@pytest.fixture(scope="module")
def chosen():
    return components(networks.unet_of("small"))


@pytest.fixture(scope="module")
def made():
    return {name: planted.make(name, 1, images=IMAGES) for name in planted.PLANTS}


def swept(plant):
    return EvalSet(plant.images[:SWEPT], plant.timesteps, jax.random.key(5))


@pytest.fixture(scope="module")
def exact(made, chosen):
    """Plant -> Deg% `[component, t]` and largest change `[component]` of leaving out each component."""
    results = {}
    for name, plant in made.items():
        engine = Engine(plant.denoiser)
        stacked = leave_one_out(plant.denoiser.identity, chosen)[1]
        eval_set = swept(plant)
        levels = [engine.measure(stacked, eval_set.batch(t_index)) for t_index in range(len(plant.timesteps))]
        rise = [100 * (m.loss.mean(1) / m.clean_loss.mean() - 1) for m in levels]
        results[name] = np.stack(rise, 1), np.max([m.change.max(1) for m in levels], axis=0)
    return results


def damage(plant, names, dose=0.0):
    """Mean Deg% of components at a dose together, on the pictures that the gain was fitted to."""
    others = plant.others, plant.timesteps
    clean = losses(plant.denoiser, plant.denoiser.identity, *others)
    changed = losses(plant.denoiser, set_gate(plant.denoiser.identity, names, dose), *others)
    return float(100 * (changed / clean - 1).mean())


HIDDEN = ("redundant", "two_of_three", "partial_backup", "rare", "changing")  # from means of single ablations


@pytest.mark.parametrize("name", [name for name in planted.PLANTS if name not in HIDDEN])
def test_exact_ablation_finds_what_was_planted_and_its_sign(made, exact, chosen, name):
    plant, (rise, _) = made[name], exact[name]
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    result = metrics.compare(rise, signs)
    assert (result["auroc"], result["precision"], result["sign"]) == (1, 1, 1)
    size = np.abs(rise.mean(axis=1))
    assert size[signs != 0].min() > 2 * size[signs == 0].max()


@pytest.fixture(scope="module")
def by_names(made):
    """The network of all plants as a function of which only its named values are known."""
    denoiser = next(iter(made.values())).denoiser
    return own_unet.wrapped(denoiser.unet, denoiser.schedule, denoiser.params, denoiser.identity)


@pytest.mark.parametrize("name", plants.SHOWN)
def test_plants_are_found_through_named_values_as_through_stages(made, exact, chosen, by_names, name):
    plant = made[name]
    function = dataclasses.replace(by_names, params=plant.denoiser.params)
    names, stacked = leave_one_out(function.identity, [component.name for component in chosen])
    assert list(names) == [component.name for component in chosen]
    losses = sweep_in_memory(function, swept(plant), stacked)
    rise = 100 * (losses.loss.mean(-1) / losses.clean_loss.mean(-1) - 1)
    np.testing.assert_allclose(rise, exact[name][0], rtol=1e-3, atol=0.01)
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    np.testing.assert_equal(metrics.compare(rise, signs), metrics.compare(exact[name][0], signs))


@pytest.mark.parametrize("name", ["uniform", "redundant", "harmful"])
def test_discovery_finds_what_was_planted_and_stand_ins_the_second_of_a_pair(made, chosen, name):
    plant = made[name]
    fewer = dataclasses.replace(
        plant, images=plant.images[:SWEPT], others=plant.others[:SWEPT], timesteps=plant.timesteps[::4]
    )
    result = methods.discovered(fewer, jax.random.key(5), chosen)
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    average, alone, shared = (metrics.compare(values, signs) for values in result.values())
    assert average["auroc"] == alone["auroc"]
    assert shared["auroc"] == shared["precision"] == shared["sign"] == 1
    assert alone["auroc"] == (0.75 if plant.pairs else 1)  # of two that do the same, a circuit needs one


@pytest.mark.parametrize("name", planted.PLANTS)
def test_dead_heads_change_nothing(made, exact, chosen, name):
    silent = [c.component_type == "head" and c.name not in made[name].signs for c in chosen]
    assert exact[name][1][silent].max() < 1e-10


def test_neither_of_the_redundant_pair_is_missed_alone_but_both_are(made, exact):
    rise, _ = exact["redundant"]
    assert np.abs(rise.mean(axis=1)).max() < metrics.NOTHING
    assert damage(made["redundant"], made["redundant"].pairs[0][:2]) > 100


def test_branches_that_cancel_are_missed_one_by_one_and_not_together(made, exact, chosen):
    rise, _ = exact["cancelling"]
    members = [component.name in made["cancelling"].pairs[0] for component in chosen]
    assert rise[members].mean(axis=1).min() > 100
    assert abs(damage(made["cancelling"], made["cancelling"].pairs[0][:2])) < 2


def test_the_windowed_branch_acts_in_its_window_only(made, exact, chosen):
    plant, rise = made["window"], exact["window"][0]
    rise = rise[[component.name in plant.signs for component in chosen]]
    inside = (plant.timesteps >= plant.window[0]) & (plant.timesteps < plant.window[1])
    assert inside.sum() == 2
    assert rise[:, inside].min() > 5
    assert np.abs(rise[:, ~inside]).max() < 1


def shown(plant, removed=(), t_index=0):
    """The clean image that a plant predicts where components are removed, `[image, row, column, channel]`."""
    denoiser, t = plant.denoiser, np.full(len(plant.images), plant.timesteps[t_index])
    noise = image_noise(jax.random.key(0), np.arange(len(t)), plant.images.shape[1:])
    x_t = q_sample(denoiser.schedule, plant.images, t, noise)
    intervention = set_gate(denoiser.identity, removed, 0.0) if removed else denoiser.identity
    eps = _predicted(denoiser.unet, denoiser.schedule, denoiser.params, intervention, x_t, t)
    schedule = denoiser.schedule
    scales = (schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar)
    signal, sigma = (np.asarray(scale)[t[0]] for scale in scales)
    return np.asarray((x_t - sigma * eps) / signal)


_predicted = jax.jit(denoise, static_argnums=0)


def mean_color(images):
    return images.mean((1, 2))


def test_any_one_of_three_may_go_and_two_may_not(made):
    plant = made["two_of_three"]
    members = list(plant.signs)
    for t_index in (0, len(plant.timesteps) - 1):
        for gone in ([], members[:1], members[1:2], members[2:], members[:2], members[1:], members):
            tint = shown(plant, gone, t_index)[..., 2]
            np.testing.assert_allclose(tint, datasets.TINT if len(gone) < 2 else 0, atol=2e-4)
    assert {sign for *_, sign in plant.pairs} == {1} and len(plant.pairs) == 3


def test_without_one_of_three_nothing_changes_beyond_rounding_at_any_timestep(made, exact, chosen):
    plant, (rise, change) = made["two_of_three"], exact["two_of_three"]
    members = [component.name in plant.signs for component in chosen]
    assert change[members].max() < ROUNDING
    assert np.abs(rise[members]).max() < metrics.NOTHING


def test_without_two_of_three_the_loss_rises_much_at_every_timestep(made, chosen):
    plant = made["two_of_three"]
    pairs = list(itertools.combinations([part for part in chosen if part.name in plant.signs], 2))
    exact = pair_effects(plant.denoiser, EvalSet(plant.images, plant.timesteps, jax.random.key(5)), pairs)
    both = 100 * (exact.without_both.mean("image") / exact.clean_loss.mean("image") - 1)
    assert float(both.min()) > 50


def test_a_partial_backup_is_silent_and_repairs_half_of_what_is_gone(made):
    plant = made["partial_backup"]
    (first, second, _) = plant.pairs[0]
    whole, silent = mean_color(shown(plant)), mean_color(shown(plant, [second]))
    assert np.abs(whole - silent).max() < 0.05 * np.abs(whole).max()
    backed, nothing = mean_color(shown(plant, [first])), mean_color(shown(plant, [first, second]))
    slope = np.polyfit((whole - nothing).ravel(), (backed - nothing).ravel(), 1)[0]
    assert slope == pytest.approx(hidden_plants.REPAIRED, abs=0.03)
    alone, other, both = (damage(plant, names) for names in ([first], [second], [first, second]))
    assert both > 2 * (alone + abs(other))


def test_of_two_composed_heads_neither_does_anything_without_the_other(made):
    plant = made["composition"]
    (first, second, _) = plant.pairs[0]
    without = [shown(plant, names) for names in ([first], [second], [first, second])]
    content = np.abs(plant.images[..., 0]).mean()
    assert np.abs(without[0] - without[2]).mean() < 0.05 * content  # the relay is never quite empty
    np.testing.assert_allclose(without[1], without[2], atol=0.02)
    assert np.abs(shown(plant) - without[2])[..., 0].mean() > 0.8 * content


def test_the_rare_component_helps_one_image_in_eight_and_hurts_the_others(made):
    plant = made["rare"]
    (name,) = plant.signs
    rare = np.abs(plant.images[..., 2]).max((1, 2)) > 0
    assert rare.sum() == 1
    error = [((shown(plant, gone) - plant.images) ** 2).mean((1, 2, 3)) for gone in ((), (name,))]
    np.testing.assert_array_equal(error[1] > error[0], rare)
    assert abs(damage(plant, [name]) - gain.LEFT) < 0.1


def test_the_place_component_acts_in_its_quarter_only(made):
    plant = made["place"]
    rows, columns = (slice(4 * i, 4 * i + 4) for i in plant.quarter)
    change = np.abs(shown(plant) - shown(plant, list(plant.signs))).mean((0, 3))
    inside = change[rows, columns].mean()
    change[rows, columns] = 0
    assert inside > 0.15 and change.max() < 0.1 * inside


def test_the_changing_component_helps_where_noise_is_low_and_hurts_where_it_is_high(made):
    plant = made["changing"]
    removed = set_gate(plant.denoiser.identity, list(plant.signs), 0.0)
    clean, without = (
        losses(plant.denoiser, x, plant.others, plant.timesteps) for x in (plant.denoiser.identity, removed)
    )
    rise = 100 * (without / clean - 1)
    assert rise.max() > 15 and rise.min() < -15 and rise.mean() == pytest.approx(gain.LEFT, abs=0.1)


def test_two_features_in_superposition_are_one_number_of_either_sign(made):
    plant = made["superposition"]
    content = plant.images[:, 0, 0, :2]
    whole, without = (mean_color(shown(plant, gone))[:, :2] for gone in ((), list(plant.signs)))
    carried = whole - without
    scale = carried[content > 0] / content[content > 0]
    assert np.ptp(scale) < 0.2 * scale.mean()
    assert np.abs(carried[content == 0]).max() < 0.1 * carried.max()
    assert set(np.sign(content[:, 0] - content[:, 1])) == {-1, 1}


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
    single = {"plant": "a", "method": "b", "auroc": 1.0, "precision": 0.5, "sign": np.nan, "window": np.nan}
    (row,) = planted.summarize([single, single | {"auroc": 0.5, "sign": 1.0}])
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
    result = metrics.compare(scores, signs)
    assert result["auroc"] == pytest.approx(ordered.mean())
    tops = [np.lexsort((rng.random(12), -size))[:4] for _ in range(2000)]
    assert result["precision"] == pytest.approx(np.mean([matters[top].mean() for top in tops]), abs=0.03)


def test_sign_and_window_of_a_hand_example():
    scores = np.array([[0, 10.0, 20], [-5, -5, 0.1], [0, 0, 1], [np.nan] * 3])
    result = metrics.compare(scores, np.array([1, 1, 0, 1]), np.array([False, True, True]))
    assert result == {"auroc": 1, "precision": 1, "sign": 0.5, "window": pytest.approx((1 + 1 / 3) / 2)}


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


def test_what_another_process_scores_in_the_meantime_is_kept(monkeypatch, tmp_path):
    def score(plant, folder, left):
        if left == ["entropy"]:  # while this goes on, another process scores by others
            methods.scored("uniform", 0, "small", tmp_path, ["integrated gradients"])
        of_plant = {"plant": "uniform", "size": "small", "instance": 0}
        return [
            of_plant | dict.fromkeys(planted.metrics.MEASURES, 1.0) | {"method": method} for method in left
        ]

    monkeypatch.setattr(methods, "score", score)
    monkeypatch.setattr(methods, "make", lambda *_: None)
    methods.scored("uniform", 0, "small", tmp_path, ["entropy"])
    monkeypatch.setattr(methods, "score", None)  # all is there
    both = methods.scored("uniform", 0, "small", tmp_path, ["entropy", "integrated gradients"])
    assert {record["method"] for record in both} == {"entropy", "integrated gradients"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"records": None}, "records can't be None"),
        ({"records": [None]}, "lacks plant, size"),
        (
            {"records": [{"plant": "uniform", "size": "small", "instance": 0, "method": "guess"}]},
            "lacks auroc",
        ),
    ],
)
def test_a_damaged_cache_is_one_line(tmp_path, damage, words):
    path = tmp_path / f"uniform-small-0-numerics{methods.NUMERICS_VERSION}.json"
    methods.files.write_json(path, {"methods": ["entropy"], "records": []} | damage)
    with pytest.raises(DataError, match=rf"{path.name}.*{words}[^\n]*; restore the file, or delete it"):
        methods.scored("uniform", 0, "small", tmp_path, ["entropy"])
