"""All claims of one evaluation, on made-up results whose truth is known."""

import dataclasses
import functools

import numpy as np
import pytest
from reference.made_networks import (
    IMAGES,
    NAMES,
    answers_of,
    complex_study,
    ladder,
    network,
    shaken,
    untrained_beside,
)

from mechdiff.study import claims
from mechdiff.study.claims import across_seeds, verdicts
from mechdiff.study.network_results import NetworkResults


@pytest.fixture(scope="module")
def planted():
    """CelebA: damage spread evenly but for one bottleneck; synthetic: most of it in the bottleneck. Sharp
    heads matter more, and entropies differ between the data sets."""
    made = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shake = functools.partial(shaken, rng, 0.05)
        heads = 0.2 + 0.1 * np.arange(6)
        even = np.r_[1.0, np.full(5, 0.3), 0.35 - 0.05 * np.arange(6)] * shake()
        narrow = np.r_[1.0, np.full(5, 0.02), 0.035 - 0.005 * np.arange(6)] * shake()
        sloped = heads + 0.3 + 0.06 * rng.standard_normal(6) + np.linspace(-0.2, 0.2, 4)[:, None]
        made.append(network("celeba", seed, even, sloped.T))
        made.append(network("synthetic", seed, narrow, heads + 0.06 * rng.standard_normal(6)))
        made += ladder(seed, shake)
    return answers_of([untrained_beside(each) for each in made])


def test_planted_claims_are_supported(planted):
    for name in ("complexity", "divergence", "variation", "bottlenecks", "entropy"):
        assert planted[name].verdict == "supported", planted[name]
    for name in ("complexity", "divergence", "bottlenecks", "entropy"):
        low, high = planted[name].interval
        assert low <= planted[name].estimate <= high
    assert planted["complexity"].interval[0] > 1.5 and planted["complexity"].n_seeds == 5
    assert "relative loss increase" in planted["complexity"].because
    assert 0.3 < planted["divergence"].estimate < 0.4  # 0.3, and the slope's 0.15
    told = planted["divergence"].because.split(" nats between data sets, ")
    layers = float(planted["divergence"].because.split("nothing is matched, ")[1].split(" (p")[0])
    assert layers == pytest.approx(0.3, abs=0.06)  # of all six heads the same, but for the slope and noise
    between, within = float(told[0].split()[-1]), float(told[1].split()[0])
    assert between**2 - within**2 == pytest.approx(planted["divergence"].estimate ** 2, abs=2e-3)
    assert NAMES[0] in planted["bottlenecks"].because and planted["bottlenecks"].estimate > 60
    assert "untrained" in planted["bottlenecks"].because and planted["entropy"].estimate < -0.3
    by_zero = planted["entropy"].because.split("by zero instead of mean ablation")[1]
    assert "in 5 networks of celeba" in by_zero and "networks of synthetic)" in by_zero


def test_p_values_are_one_family(planted):
    tested = [claim for claim in planted.values() if not np.isnan(claim.p)]
    assert len(tested) == 5
    smallest = min(tested, key=lambda claim: claim.p)
    assert smallest.p_adjusted == pytest.approx(5 * smallest.p)


def test_where_there_is_nothing_nothing_is_supported():
    rng = np.random.default_rng(1)
    made = [
        network(data, seed, 0.3 * (1 + 0.2 * rng.standard_normal(12)), 0.5 + 0.1 * rng.standard_normal(6))
        for data in ("celeba", "synthetic")
        for seed in range(4)
    ]
    assert {claim.verdict for claim in claims.evaluate(made)} <= {
        "undecided", "not supported", "not testable here",
    }  # fmt: skip


def test_people_are_counted_and_drawn():
    made = complex_study((0.1, 0.2, 0.3))
    person = ("image", np.arange(IMAGES) // 4)
    known = [
        dataclasses.replace(item, sweep=item.sweep.assign_coords(person=person))
        if item.data == "celeba"
        else item
        for item in made
    ]
    answers = answers_of(known)
    assert {claim.n_people for claim in answers.values()} == {3}
    assert {claim.n_people for claim in answers_of(made).values()} == {0}
    assert known[0].units.count == 3 and across_seeds.weightings(known[0].sweep).shape == (401, IMAGES)


def test_too_few_levels_are_no_test_of_four_phases(planted):
    assert planted["phases"].verdict == "not testable here" and "32" in planted["phases"].because


def test_networks_without_any_effect_stop_no_other_claim():
    """The test of phases ended the command without a verdict on any claim."""
    made = []
    for data in ("celeba", "synthetic"):
        for seed in range(3):
            item = network(data, seed, np.zeros(12), np.linspace(0, 1, 6), levels=24)
            sweep = item.sweep.assign(change=item.sweep["change"] * 0)
            made.append(dataclasses.replace(item, sweep=sweep))
    answers = answers_of(made)
    for name in ("phases", "bottlenecks"):
        assert answers[name].verdict == "not testable here"
        assert "changed" in answers[name].because and "prediction" in answers[name].because
    assert answers["divergence"].verdict == "not supported"


def test_four_phases_are_found_where_they_are():
    made = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        steps = np.repeat(rng.permutation(np.linspace(0.2, 1.5, 12))[:, None], 24, axis=1)
        for phase in range(4):
            steps[:, 6 * phase : 6 * phase + 6] = rng.permutation(np.linspace(0.2, 1.5, 12))[:, None]
        made.append(network("synthetic", seed, steps, np.linspace(0, 1, 6), levels=24, ablations=("zero",)))
    answers = answers_of(made)
    assert "4 in 3 of them" in answers["phases"].because and answers["phases"].estimate > 0
    margins = answers["phases"].because.split("against other numbers ")[1].split(", against trends ")
    least = min(float(margin.split(" [")[0]) for margin in margins)  # near the estimate: a mean of minima
    assert 0 < answers["phases"].estimate <= least + 5e-4
    assert answers["bottlenecks"].verdict == "not testable here"


def test_four_phases_are_not_found_in_a_straight_drift():
    """Audit F2: steps fit a line well enough to beat other numbers of steps; they must beat the line."""
    verdicts_found = []
    for repeat in range(4):
        rng = np.random.default_rng([2, repeat])
        made = []
        for seed in range(4):
            slope = rng.normal(0.5, 0.2, 12)[:, None] * np.linspace(0, 1, 24) * rng.choice([-1, 1], (12, 1))
            made.append(
                network("synthetic", seed, 1 + slope, np.linspace(0, 1, 6), levels=24, ablations=("zero",))
            )
        answer = answers_of(made)["phases"]
        verdicts_found.append(answer.verdict)
        assert answer.estimate < 0
    assert set(verdicts_found) == {"not supported"}


def test_networks_of_different_components_are_not_compared():
    single = network("celeba", 0, np.full(12, 0.3), np.linspace(0, 1, 6))
    other = network("synthetic", 0, np.full(12, 0.3), np.linspace(0, 1, 6))
    names = [f"other{i}" for i in range(12)]
    other = dataclasses.replace(other, sweep=other.sweep.assign_coords(component=names))
    assert across_seeds.comparable([single, single]) and not across_seeds.comparable([single, other])
    fewer = dataclasses.replace(single, attention=single.attention.isel(head=slice(5)))
    assert not across_seeds.comparable([single, fewer])  # a ValueError of array shapes
    by_zero = dataclasses.replace(single, sweep=single.sweep.sel(ablation=["zero"]))
    assert not across_seeds.comparable([single, by_zero])  # phases took the mean over both ablations
    answers = answers_of([single, other]).values()
    assert all(single.verdict == "not testable here" and "--workdir" in single.because for single in answers)


def test_two_trainings_of_one_seed_are_named_and_decide_nothing():
    """They were taken for snapshots of one training, of which the last counts."""
    made = [network("synthetic", seed, np.full(12, 0.2), np.linspace(0, 1, 6)) for seed in range(4)]
    other = dataclasses.replace(made[0], name="longer", steps=100)
    for answer in answers_of([*made, other]).values():
        assert answer.verdict == "not testable here" and "synthetic-0 and longer are" in answer.because
    lower = [network("synthetic", seed, np.full(12, 0.2), np.linspace(0, 1, 6), rung=0) for seed in range(3)]
    twice = answers_of([*made, *lower, dataclasses.replace(lower[0], name="again")])  # on the ladder too
    assert twice["complexity"].because.count("synthetic-0 and again are") == 1
    later = dataclasses.replace(made[0], name="synthetic-0@100", steps=100)
    assert "one seed" not in answers_of([*made, later])["bottlenecks"].because


def test_a_copy_under_another_seed_is_named_and_decides_nothing():
    """Twelve copies of one network made a bottleneck "supported": they have no variance."""
    rng = np.random.default_rng(0)
    made = [network("synthetic", seed, rng.uniform(0.1, 0.3, 12), np.linspace(0, 1, 6)) for seed in range(4)]
    assert across_seeds.copies(made) == []
    copy = dataclasses.replace(made[1], name="copy", seed=7)
    rounded = copy.sweep["loss"] * (1 + np.float32(1e-6) * rng.normal(size=copy.sweep["loss"].shape))
    elsewhere = dataclasses.replace(copy, sweep=copy.sweep.assign(loss=rounded))  # examined on another device
    for again in (copy, elsewhere, dataclasses.replace(copy, data="celeba", seed=0)):
        for answer in answers_of([*made, again]).values():
            assert answer.verdict == "not testable here"
            assert "synthetic-1 and copy have equal" in answer.because


def test_one_seed_decides_nothing():
    made = [network(data, 0, np.full(12, 0.3), np.linspace(0, 1, 6)) for data in ("celeba", "synthetic")]
    answers = answers_of(made)
    assert answers["bottlenecks"].verdict == "undecided" and np.isnan(answers["bottlenecks"].p_adjusted)
    assert "at least 3 networks of each complexity" in answers["complexity"].because
    assert (
        answers["divergence"].verdict == "not testable here"
        and "1 of CelebA" in answers["divergence"].because
    )


def test_simpler_faces_and_no_networks_at_all_are_no_ground_for_claims():
    low = network("synthetic", 0, np.full(12, 0.3), np.linspace(0, 1, 6))
    rung = NetworkResults(**{**vars(low), "complexity": 0})
    assert all(claim.verdict == "not testable here" for claim in claims.evaluate([rung]))


def test_the_table_shows_numbers_and_reasons(planted):
    lines = verdicts.table(list(planted.values())).splitlines()
    assert len(lines) == 1 + 2 * len(planted)
    assert (
        lines[1].startswith("complexity")
        and "supported" in lines[1]
        and lines[1].split()[-3:] == ["5", "12", "-"]
    )
    assert planted["phases"].because in lines[lines.index(next(x for x in lines if "phases" in x)) + 1]
