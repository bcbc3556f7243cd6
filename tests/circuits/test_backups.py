"""Pairs that make up for each other: numbers by hand, a null, and a planted network whose backup is known."""

import itertools

import jax
import numpy as np
import pytest
import xarray as xr

from mechdiff import stats
from mechdiff.circuits import backups, strengths
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.unet import components
from mechdiff.validation import planted

IMAGES, TIMESTEPS = 24, 2


def losses(rng, **costs):
    """Losses of `pair_effects` whose relative increases are as told, scattered over images."""
    clean = np.exp(0.3 * rng.normal(size=(TIMESTEPS, IMAGES)))
    pairs = len(next(iter(costs.values())))
    scattered = 1 + 0.2 * rng.normal(size=(pairs, TIMESTEPS, IMAGES))
    raised = {
        name: clean * (1 + np.array(cost)[:, None, None] / 100 * scattered) for name, cost in costs.items()
    }
    dims = ("pair", "t", "image")
    variables = {name: (dims, value) for name, value in raised.items()}
    interaction = raised["without_both"] - raised["without_a"] - raised["without_b"] + clean
    coords = {"a": ("pair", [f"a{i}" for i in range(pairs)]), "b": ("pair", [f"b{i}" for i in range(pairs)])}
    return xr.Dataset(
        variables | {"interaction": (dims, interaction), "clean_loss": (dims[1:], clean)}, coords
    )


def test_a_partial_backup_common_work_and_independent_parts_are_told_apart():
    rng = np.random.default_rng(2)
    exact = losses(
        rng, without_a=[25.0, 30.0, 20.0], without_b=[0.0, 20.0, 10.0], without_both=[100.0, 30.0, 30.0]
    )
    table = backups.interaction_table(exact)
    assert table.named.values.tolist() == [backups.BACKUP, backups.COMMON, ""]
    np.testing.assert_allclose(table.estimate, [75, -20, 0], atol=5)
    np.testing.assert_allclose(table.strength[:2], [0.75, 1], atol=0.1)
    low, high = table.strength_low.values[:2], table.strength_high.values[:2]
    np.testing.assert_allclose([low, high], [[0.75, 1]] * 2, atol=1e-5)  # all of a pair scatter alike
    assert backups.lines(table)[2].endswith("1.00  [1.00, 1.00]   common")
    assert (table.low < table.estimate).all() and (table.estimate < table.high).all()
    assert (table.p.values[:2] < 0.05).all() and table.p.values[2] > table.p.values[:2].max()
    assert backups.named_pairs(table).a.values.tolist() == ["a0", "a1"]
    shown = backups.lines(table)
    assert shown[1].startswith("a0 + b0") and shown[1].endswith(backups.BACKUP) and shown[-1][:6] == "2 of 3"


def test_independent_parts_are_hardly_ever_named():
    rng, named = np.random.default_rng(1), 0
    for number in range(40):
        exact = losses(rng, without_a=[8.0, 3.0], without_b=[5.0, 3.0], without_both=[13.0, 6.0])
        named += (backups.interaction_table(exact, seed=number).named.values != "").sum()
    assert named <= 4  # of 80; a 95 % interval beyond +-1 % errs in 2.5 % at most


@pytest.mark.parametrize("n", [2, 4, 6])
def test_of_few_images_a_pair_takes_a_small_p_too(n):
    """Intervals of few images are too narrow: without p more than promised is named from 2 and 4."""
    rng, named, narrow = np.random.default_rng(3), 0, 0
    for number in range(30):
        exact = losses(rng, without_a=[20.0] * 8, without_b=[20.0] * 8, without_both=[40.0] * 8)
        exact["interaction"] = exact["interaction"].copy(data=0.1 * rng.normal(size=(8, TIMESTEPS, IMAGES)))
        table = backups.interaction_table(exact.isel(image=slice(n)), seed=number)
        named += (table.named.values != "").sum()
        narrow += (
            (table.low.values > backups.MIN_INTERACTION) | (table.high.values < -backups.MIN_INTERACTION)
        ).sum()
    assert named <= 0.05 * 240 and (n > 4 or narrow > named)
    exact = losses(rng, without_a=[5.0, 5.0], without_b=[0.0, 5.0], without_both=[60.0, 10.0])
    few = backups.interaction_table(exact.isel(image=slice(n)))
    assert few.named.values.tolist() == (["", ""] if n < 6 else [backups.BACKUP, ""])
    assert f"n = {n} is few" in backups.lines(few)[-1] and few.attrs["n"] == n
    assert ("no pair can be named" in backups.lines(few)[-1]) == (n < 6)
    assert "few" not in backups.lines(backups.interaction_table(exact))[-1]


@pytest.mark.parametrize(
    "singles, joint, strength",
    [((25, 0), 100, 0.75), ((0, 0), 80, 1.0), ((40, 60), 60, 1.0), ((50, 50), 0, 2.0), ((10, 20), 30, 0.0)],
)
def test_strength_by_hand(singles, joint, strength):
    result = strengths.strengths(np.array(singles, float)[:, None], np.array([joint], float))
    assert result[0] == pytest.approx(strength)
    swapped = strengths.strengths(np.array(singles[::-1], float)[:, None], np.array([joint], float))
    assert swapped[0] == result[0]


def test_no_cost_has_no_strength():
    assert np.isnan(strengths.strengths(np.array([[-5.0], [0.0]]), np.array([-20.0]))).all()


@pytest.fixture(scope="module")
def known():
    """A planted network with a partial backup, its components, and its two sets of images."""
    plant = planted.make("partial_backup", 1, images=8)
    sets = [EvalSet(images, plant.timesteps, jax.random.key(3)) for images in (plant.images, plant.others)]
    return plant, components(plant.denoiser.unet), *sets


def test_a_silent_backup_is_among_the_candidates_and_named_with_its_strength(known):
    plant, chosen, eval_set, others = known
    table = backups.verified_backups(plant.denoiser, eval_set, others, chosen, count=5)
    assert table.sizes["pair"] == 10
    first = backups.named_pairs(table).isel(pair=0)
    assert {first.a.item(), first.b.item()} == set(plant.signs) and first.named.item() == backups.BACKUP
    assert 0.65 < float(first.strength) < 0.9  # half of an error is three quarters of its square
    costs = backups.costs_alone_or_paired(table)
    silent = plant.pairs[0][1]
    alone = float(first.single_b if first.b.item() == silent else first.single_a)
    assert costs[silent].mean() > 20 * abs(alone)
    above = first.joint - max(first.single_a, first.single_b)
    np.testing.assert_allclose(costs[silent].mean(), above, rtol=1e-5)


def named_table(singles, joint):
    """Pairs whose single and joint costs are as told; their interactions are certain."""
    pairs = list(joint)
    interaction = np.array([joint[a, b] - singles[a] - singles[b] for a, b in pairs])
    values = {
        "single_a": [singles[a] for a, _ in pairs],
        "single_b": [singles[b] for _, b in pairs],
        "joint": [joint[pair] for pair in pairs],
        "named": np.where(interaction > backups.MIN_INTERACTION, backups.BACKUP, ""),
    }
    coords = {"a": ("pair", [a for a, _ in pairs]), "b": ("pair", [b for _, b in pairs])}
    return xr.Dataset({name: ("pair", value) for name, value in values.items()}, coords)


def test_a_group_is_named_where_any_one_may_go_and_no_two():
    silent = dict.fromkeys("abcd", 0.0)
    everyone = dict.fromkeys(itertools.combinations("abcd", 2), 50.0)
    assert backups.groups(named_table(silent, everyone)) == [tuple("abcd")]
    without_d = everyone | dict.fromkeys([("a", "d"), ("b", "d"), ("c", "d")], 0.0)
    assert backups.groups(named_table(silent, without_d)) == [tuple("abc")]
    two_groups = everyone | {("c", "d"): 0.0}
    assert backups.groups(named_table(silent, two_groups)) == [tuple("abc"), tuple("abd")]


def test_no_group_where_one_costs_much_alone_or_two_may_go():
    everyone = dict.fromkeys(itertools.combinations("abc", 2), 50.0)
    assert not backups.groups(named_table({"a": 0.0, "b": 0.0, "c": 20.0}, everyone))
    assert not backups.groups(named_table(dict.fromkeys("abc", 0.0), everyone | {("a", "c"): 0.5}))


def test_three_of_which_any_one_may_go_are_candidates_and_named_as_a_group(known):
    plant, chosen = planted.make("two_of_three", 1, images=8), known[1]
    eval_set, others = (EvalSet(x, plant.timesteps, jax.random.key(3)) for x in (plant.images, plant.others))
    table = backups.verified_backups(plant.denoiser, eval_set, others, chosen, count=5)
    (members,) = backups.groups(table)
    assert set(members) == set(plant.signs)
    assert f"any one may go, no two: {', '.join(members)}" in backups.lines(table)


def test_one_component_makes_no_pair(known):
    plant, chosen, eval_set, others = known
    with pytest.raises(ConfigError, match="a pair takes two"):
        backups.verified_backups(plant.denoiser, eval_set, others, chosen[:1])


@pytest.mark.parametrize("scatter", [0.5, 1.0])
def test_intervals_of_strengths_cover_and_have_no_end_where_the_cost_may_be_nothing(scatter):
    """Of 16 images: three quarters are repaired; two that do nothing without each other."""
    rng, n = np.random.default_rng(0), 16
    cost = np.array([[5.0, 6.0, 6.0], [0.0, 2.0, 0.0], [15.0, -2.0, -6.0]])[..., None, None]
    images = cost * np.exp(scatter * rng.normal(size=(3, 3, 300, n)) - scatter**2 / 2)
    images[1, 2] += rng.normal(size=(300, n))  # the lesser cost is 0
    images[2] += images[0] + images[1]
    units = stats.Units(np.arange(n), n, False)
    interval = strengths.strength_interval(lambda w: images.reshape(3, -1, n) @ w.T, units)
    low, high = (end.reshape(3, 300) for end in (interval.low, interval.high))
    for pair, truth in ((0, 0.75), (1, 1.0)):
        covered = ((low[pair] <= truth) & (truth <= high[pair])).mean()
        assert 0.93 < covered < 0.995, (pair, covered)
    known = np.isfinite(interval.estimate).reshape(3, 300)[2]
    assert 0.2 < known.mean() < 0.8 and np.isnan(low[2][~known]).all()
    assert np.isinf(high[2][known]).mean() > 0.85
