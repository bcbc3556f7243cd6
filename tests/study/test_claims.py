"""Verdicts on made-up results whose truth is known, and on results where there is nothing to find."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from mechdiff import stats
from mechdiff.analysis.roles import matching
from mechdiff.stats import small_samples
from mechdiff.study import claims
from mechdiff.study.claims import across_seeds, verdicts
from mechdiff.study.claims.verdicts import Finding, verdict
from mechdiff.study.records import Network

PARTS = ["res"] * 6 + ["head"] * 6
NAMES = [f"down0.block{i}.res" for i in range(6)] + [f"mid.attn0.head{i}" for i in range(6)]
IMAGES = 12


def network(data, seed, damage, entropy, levels=4, ablations=("zero", "mean"), rung=4):
    """A network whose components do `damage` (shares of the clean loss) and whose heads have `entropy`."""
    rng = np.random.default_rng([seed, len(data)])
    clean = 1 + 0.1 * rng.random((levels, IMAGES))
    noise = 1 + 0.02 * rng.standard_normal((len(ablations), 12, levels, IMAGES))
    damage = np.broadcast_to(damage, (12, levels)) if np.ndim(damage) == 2 else np.array(damage)[:, None]
    loss = clean * (1 + damage[None, :, :, None] * noise)
    axes = {"t": np.arange(levels), "log_snr": ("t", -np.arange(levels, dtype=float))}
    dims = ("ablation", "component", "t", "image")
    sweep = xr.Dataset(
        {"loss": (dims, loss), "change": (dims, loss), "clean_loss": (("t", "image"), clean)},
        coords={
            "ablation": list(ablations),
            "component": NAMES,
            "component_type": ("component", PARTS),
            **axes,
        },
    )
    entropy = np.asarray(entropy)
    entropy = entropy[:, None] if entropy.ndim == 1 else entropy  # of each head, or of each at each level
    heads = entropy[:, :, None] + 0.01 * rng.standard_normal((6, levels, IMAGES))
    values = {name: (("head", "t", "image"), heads) for name in ("entropy", "normalized_entropy")}
    tokens = ("head", np.full(6, 16))
    attention = xr.Dataset(values, coords={"head": NAMES[6:], "tokens": tokens, **axes})
    return Network(f"{data}-{seed}", data, rung, seed, sweep, attention)


def ladder(seed, shake=lambda: 1.0, costs=((0, 0.005), (2, 0.01))):
    """Networks of lower rungs, whose damage is spread less the simpler their faces."""
    return [
        network(
            "synthetic", seed, np.r_[1.0, np.full(11, cost)] * shake(), 0.2 + 0.1 * np.arange(6), rung=rung
        )
        for rung, cost in costs
    ]


def untrained_beside(item):
    """The network with an untrained one beside it, whose entropies and damage have nothing in common."""
    rng = np.random.default_rng([7, item.seed])
    other = network(item.data, 100 + item.seed, 0.1 * rng.random(12), rng.random(6), item.sweep.sizes["t"])
    return dataclasses.replace(item, control=other.sweep, control_attention=other.attention)


def answers_of(networks):
    return {claim.id: claim for claim in claims.evaluate(networks)}


@pytest.fixture(scope="module")
def planted():
    """CelebA: damage spread evenly but for one bottleneck; synthetic: most of it in the bottleneck. Sharp
    heads matter more, and entropies differ between the data sets."""
    made = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shake = lambda: 1 + 0.05 * rng.standard_normal(12)  # noqa: B023
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


def test_too_few_levels_are_no_test_of_four_phases(planted):
    assert planted["phases"].verdict == "not testable here" and "32" in planted["phases"].because


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


def test_the_reverse_is_not_supported():
    made = []
    for seed in range(4):
        shake = 1 + 0.02 * np.random.default_rng(seed).standard_normal(12)
        heads = 0.2 + 0.1 * np.arange(6)
        made.append(network("celeba", seed, np.r_[1.0, np.full(11, 0.02)] * shake, heads))
        spread = np.r_[np.full(6, 0.3), 0.1 + 0.05 * np.arange(6)] * shake
        made.append(network("synthetic", seed, spread, heads))
        made += ladder(seed, costs=((0, 0.1 + 0.002 * seed), (2, 0.2 + 0.002 * seed)))
    answers = answers_of(made)
    assert answers["complexity"].verdict == "not supported" and answers["complexity"].interval[1] < 1


def complex_study(costs, loss=1.0):
    """Networks whose circuits are wider for CelebA, and whose rungs 0, 2 and 4 spread damage by `costs`."""
    made = []
    for seed in range(4):
        shake = lambda seed=seed: 1 + 0.02 * np.random.default_rng(seed).standard_normal(12)
        natural = network("celeba", seed, np.r_[1.0, np.full(11, 0.5)] * shake(), np.linspace(0, 1, 6))
        sweep = natural.sweep.assign({name: natural.sweep[name] * loss for name in ("loss", "clean_loss")})
        made += [
            dataclasses.replace(natural, sweep=sweep),
            *ladder(seed, shake, zip((0, 2, 4), costs, strict=True)),
        ]
    return made


def test_a_measure_that_falls_on_the_ladder_may_not_speak():
    """Audit: circuits get smaller the more complex the faces."""
    answer = answers_of(complex_study((0.3, 0.2, 0.1)))["complexity"]
    assert answer.verdict == "not testable here" and "no measure rises on the ladder" in answer.because
    assert "not matched in loss" not in answer.because
    assert (
        "if one did, networks are not matched"
        in answers_of(complex_study((0.3, 0.2, 0.1), loss=2.0))["complexity"].because
    )
    assert answers_of(complex_study((0.1, 0.2, 0.3)))["complexity"].verdict == "supported"


def test_networks_of_unlike_loss_are_compared_at_snapshots_of_like_loss_or_not_at_all():
    made = complex_study((0.1, 0.2, 0.3), loss=2.0)
    answer = answers_of(made)["complexity"]
    assert answer.verdict == "not testable here" and "not matched in loss" in answer.because
    early = [
        dataclasses.replace(
            item, steps=100, sweep=item.sweep.assign({n: 2 * item.sweep[n] for n in ("loss", "clean_loss")})
        )
        for item in made
        if item.data == "synthetic" and item.complexity == 4
    ]
    made = [dataclasses.replace(item, steps=400) for item in made]
    answer = answers_of([*made, *early])["complexity"]
    assert answer.verdict == "supported" and "ratio of 1.0" in answer.because
    assert answer.n_seeds == 4


def test_loss_increase_over_excess_loss_speaks_first_where_the_floor_is_known():
    made = [
        dataclasses.replace(item, sweep=item.sweep.assign(floor=("t", np.full(4, 0.5))))
        for item in complex_study((0.1, 0.2, 0.3))
    ]
    assert "over excess loss" in answers_of(made)["complexity"].because
    reached = [network("gaussian", seed, np.full(12, 0.3), np.linspace(0, 1, 6)) for seed in range(3)]
    floors = [item.sweep["clean_loss"].mean("image") for item in reached]
    pairs = zip(reached, floors, strict=True)
    reached = [dataclasses.replace(item, sweep=item.sweep.assign(floor=floor)) for item, floor in pairs]
    because = answers_of([*made, *reached])["complexity"].because  # no excess of theirs to divide by
    assert "over excess loss" in because and "gaussian" not in because


def test_control_data_are_described_beside_the_claim_and_decide_nothing():
    made = complex_study((0.1, 0.2, 0.3))
    flat = [network("gaussian", seed, np.full(12, 0.3), np.linspace(0, 1, 6)) for seed in range(3)]
    apart, together = (claims.evaluate(networks) for networks in (made, [*made, *flat]))
    for item, other in zip(apart, together, strict=True):
        assert (item.verdict, item.n_seeds) == (other.verdict, other.n_seeds)
        np.testing.assert_array_equal(
            [item.estimate, *item.interval, item.p], [other.estimate, *other.interval, other.p]
        )
    assert "12.0 in 3 networks of gaussian images" in together[0].because
    assert together[0].because.startswith(apart[0].because)
    assert "CelebA's differ from 3 networks of gaussian images" in together[1].because
    falling = answers_of([*complex_study((0.3, 0.2, 0.1)), *flat])["complexity"]
    assert falling.verdict == "not testable here" and "12.0 in 3 networks of gaussian" in falling.because


def test_a_bottleneck_is_named_by_networks_that_do_not_test_it():
    rng = np.random.default_rng(0)
    made = [
        network(
            "synthetic", seed, np.r_[0.6, np.full(11, 0.1)] * (1 + 0.1 * rng.random(12)), np.linspace(0, 1, 6)
        )
        for seed in range(6)
    ]
    answer = answers_of(made)["bottlenecks"]
    assert answer.verdict == "supported" and "100% of networks" in answer.because
    assert answer.because.count("not testable here") == 2  # neither untrained networks nor random sets
    sets = xr.Dataset(
        {"relative_increase": (("ablation", "component", "set"), np.full((2, 12, 20), 90.0))},
        coords={"ablation": ["zero", "mean"], "component": NAMES},
    )
    beaten = [dataclasses.replace(item, random_sets=sets) for item in made]
    answer = answers_of(beaten)["bottlenecks"]
    assert answer.verdict != "supported" and "points above the 95th percentile of random" in answer.because
    low = [network("synthetic", s, 0.1 * (1 + 0.1 * rng.random(12)), np.linspace(0, 1, 6)) for s in range(6)]
    assert answers_of(low)["bottlenecks"].verdict == "not supported"


def test_a_bottleneck_is_told_by_data_set():
    """A component that costs 20 % in one data set and 90 % in the other: 55 % describes neither."""
    rng, made = np.random.default_rng(1), []
    for data, cost in (("celeba", 0.2), ("synthetic", 0.9)):
        for seed in range(6):
            increases = np.r_[cost, np.full(11, 0.05)] * (1 + 0.05 * rng.random(12))
            made.append(network(data, seed, increases, np.linspace(0, 1, 6)))
    because = answers_of(made)["bottlenecks"].because
    parts = because.split(" % in 6 networks of ")[:2]
    told = [float(part.rsplit(" [", 1)[0].split()[-1].strip("(")) for part in parts]
    assert 20 < told[0] < 21.5 and 90 < told[1] < 95


def test_components_that_an_ablation_can_not_see_do_not_count():
    rng, made = np.random.default_rng(0), []
    for seed in range(6):
        single = network(
            "synthetic", seed, np.r_[0.6, np.full(11, 0.1)] * (1 + 0.1 * rng.random(12)), np.zeros(6)
        )
        hidden = single.sweep.copy(deep=True)
        hidden["loss"][1, 0] = hidden["clean_loss"]  # mean ablation changes nothing of the first
        hidden["change"][1, 0] = 0
        made.append(dataclasses.replace(single, sweep=hidden))
    answer = answers_of(made)["bottlenecks"]
    assert answer.verdict == "supported" and NAMES[0] in answer.because
    assert "mean changes 11 of 12" in answer.because


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


def test_bottlenecks_of_exchangeable_components_are_not_supported():
    """Audit F1: the component that is named changes, and no half confirms the other's choice."""
    for repeat in range(6):
        rng = np.random.default_rng([1, repeat])
        made = [
            network("synthetic", seed, 0.2 * np.exp(0.4 * rng.standard_normal(12)), np.linspace(0, 1, 6))
            for seed in range(6)
        ]
        assert answers_of(made)["bottlenecks"].verdict == "undecided"


def with_roles(item, place, role):
    """`one` whose heads, in the order `place`, move a target each and have the role `role(i)`."""
    rng = np.random.default_rng([item.seed, len(item.data)])
    values = np.eye(6)[place] + 0.1 * rng.standard_normal((6, 6))
    named = ("component", [role(i) for i in place])
    data = xr.Dataset(
        {"selectivity": (("component", "target"), values), "role": named},
        coords={"component": NAMES[6:], "target": list("abcdef")},
    )
    heads = item.attention["entropy"].values.mean(axis=(1, 2))
    statistics = {
        name: (("head", "t", "image"), heads[place][:, None, None] * np.ones((6, 4, IMAGES)))
        for name in matching.STATISTICS
    }
    return dataclasses.replace(item, roles=data, attention=item.attention.assign(statistics))


@pytest.mark.parametrize(
    "role, agree, verdict",
    [
        (lambda i: "abcdef"[i], True, "supported"),
        (
            lambda i: matching.UNASSIGNED,
            True,
            "undecided",
        ),  # alike in every seed, but nothing above the nulls
        (lambda i: "abcdef"[i], False, "undecided"),
    ],
)
def test_roles_take_both_selectivity_and_agreement_between_seeds(role, agree, verdict):
    made, rng = [], np.random.default_rng(0)
    for data in ("celeba", "synthetic"):
        for seed in range(5):
            single = network(data, seed, np.full(12, 0.3), 0.2 + 0.1 * np.arange(6))
            whole = with_roles(single, rng.permutation(6), role)
            if not agree:  # attention no longer says which head does what
                names = ("component", "target")
                mixed = rng.permutation(whole.roles["selectivity"].values)
                whole = dataclasses.replace(whole, roles=whole.roles.assign(selectivity=(names, mixed)))
            made.append(whole)
    answer = answers_of(made)["roles"]
    assert answer.verdict == verdict, answer
    if agree:
        assert answer.estimate > 0.5 and answer.interval[0] > 0.3
    assert "of 6 heads" in answer.because


def test_images_of_roles_are_counted_where_roles_were_examined_on_fewer():
    made = []
    for data in ("celeba", "synthetic"):
        for seed in range(3):
            single = network(data, seed, np.full(12, 0.3), 0.2 + 0.1 * np.arange(6))
            whole = with_roles(single, np.arange(6), lambda i: "abcdef"[i])
            made.append(dataclasses.replace(whole, roles=whole.roles.assign_coords(image=np.arange(2))))
    answers = answers_of(made)
    assert answers["roles"].n_images == 2 and answers["divergence"].n_images == IMAGES


def test_measures_of_complexity_and_their_ratios():
    rng = np.random.default_rng(0)
    made = []
    for seed in range(3):
        for data, factor in (("celeba", 2.0), ("synthetic", 1.0)):
            single = network(data, seed, np.full(12, 0.3), np.linspace(0, 1, 6))
            values = factor * (1 + 0.01 * rng.standard_normal((1, 3, 2)))
            activity = xr.Dataset({"value": (("measure", "site", "t"), values)}, coords={"measure": ["rank"]})
            runs = xr.Dataset(attrs={"sizes": [2 * factor, 3 * factor, 4.0]})
            control = {"control": single.sweep, "control_attention": single.attention}
            made.append(dataclasses.replace(single, activity=activity, circuits={"mean": runs}, **control))
    got = across_seeds.ratios(made)
    assert (
        got["activations: rank"].estimate == pytest.approx(2, rel=0.02) and got["activations: rank"].low > 1.9
    )
    assert got["circuit to 0.8, mean"].estimate == pytest.approx(2)
    assert got["circuit to 0.95, mean"].estimate == pytest.approx(1)
    assert got["effective components, zero"].estimate == pytest.approx(1, rel=0.01)
    assert "untrained: effective components" in got
    lower = dataclasses.replace(made[1], complexity=0)
    assert set(across_seeds.ladder([*made, lower])) == {0, 4} and len(across_seeds.ladder(made)[4]) == 3


def test_networks_of_different_components_are_not_compared():
    single = network("celeba", 0, np.full(12, 0.3), np.linspace(0, 1, 6))
    other = network("synthetic", 0, np.full(12, 0.3), np.linspace(0, 1, 6))
    names = [f"other{i}" for i in range(12)]
    other = dataclasses.replace(other, sweep=other.sweep.assign_coords(component=names))
    assert across_seeds.alike([single, single]) and not across_seeds.alike([single, other])
    answers = answers_of([single, other]).values()
    assert all(single.verdict == "not testable here" and "--workdir" in single.because for single in answers)


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
    rung = Network(**{**vars(low), "complexity": 0})
    assert all(claim.verdict == "not testable here" for claim in claims.evaluate([rung]))


@pytest.mark.parametrize(
    "interval, p, above, negligible, expected",
    [
        ((0.1, 0.3), 0.01, True, False, "supported"),
        ((0.1, 0.3), 0.2, True, False, "undecided"),
        ((-0.1, 0.3), 0.01, True, False, "undecided"),
        ((-0.3, -0.1), 0.01, False, False, "supported"),
        ((-0.3, -0.1), 0.99, True, False, "not supported"),
        ((-0.01, 0.01), 0.5, True, True, "not supported"),
        ((np.nan, np.nan), np.nan, True, False, "undecided"),
    ],
)
def test_rules_of_verdicts(interval, p, above, negligible, expected):
    single = Finding(np.mean(interval), interval, p, 5, "", above=above, negligible=negligible)
    assert verdict(single, p) == expected
    alone = dataclasses.replace(single, p_alone=True)
    expected = "supported" if p < 0.05 else "not supported" if negligible else "undecided"
    assert verdict(alone, p) == expected


def test_seeds_without_spread_give_no_p():
    assert np.isnan(small_samples.over_seeds(np.ones(4))[2])


@pytest.mark.parametrize("above", [True, False])
def test_intervals_over_seeds_are_students(above):
    values = np.random.default_rng(0).normal(0.3, 1, 6)
    mean, interval, p = small_samples.over_seeds(values, above=above, null=0.1)
    student = stats.student_mean(values)
    assert (mean, *interval) == pytest.approx((values.mean(), float(student.low), float(student.high)))
    alternative = "greater" if above else "less"
    assert p == pytest.approx(scipy.stats.ttest_1samp(values, 0.1, alternative=alternative).pvalue)


def test_pictures_that_all_seeds_share_widen_the_interval_and_shared_noise_alone_gives_one():
    rng = np.random.default_rng(0)
    images = rng.normal(size=30)  # alike for all seeds
    weights = stats.bootstrap_weights(30, 2000)
    cells = 0.1 * rng.normal(size=(5, 1)) + images
    seeds_alone = small_samples.over_seeds(cells.mean(1))
    both = small_samples.over_seeds(cells.mean(1), cells @ weights.T, 30)
    assert both[0] == seeds_alone[0] and np.diff(both[1]) > 2 * np.diff(seeds_alone[1])
    alike = small_samples.over_seeds(np.full(5, images.mean()), np.tile(weights @ images, (5, 1)), 30)
    expected = stats.student_mean(images)
    assert alike[1] == pytest.approx((float(expected.low), float(expected.high)), abs=0.02)


def test_the_table_shows_numbers_and_reasons(planted):
    lines = verdicts.table(list(planted.values())).splitlines()
    assert len(lines) == 1 + 2 * len(planted)
    assert (
        lines[1].startswith("complexity")
        and "supported" in lines[1]
        and lines[1].split()[-3:] == ["5", "12", "-"]
    )
    assert planted["phases"].because in lines[lines.index(next(x for x in lines if "phases" in x)) + 1]
