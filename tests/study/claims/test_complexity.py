"""The claim about complexity, on made-up results whose truth is known."""

import dataclasses
import itertools

import numpy as np
from reference.made_networks import IMAGES, answers_of, complex_study, ladder, network, shaken

from mechdiff.study import claims


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


def test_noise_of_the_images_is_not_taken_for_complexity():
    """Equal effects, whose images scatter more from rung to rung: the measure was let decide."""
    made, sizes = [], np.r_[1.0, 0.5, 0.3, np.zeros(9)]
    laws = (("celeba", 4, 1.0), ("synthetic", 0, 0.02), ("synthetic", 2, 0.1), ("synthetic", 4, 0.4))
    for seed, (data, rung, scatter) in itertools.product(range(4), laws):
        item = network(data, seed, sizes * shaken(seed, 0.02), np.linspace(0, 1, 6), rung=rung)
        noise = scatter * np.random.default_rng([rung, len(data)]).normal(size=(12, 1, IMAGES))
        loss = item.sweep["loss"] + noise * item.sweep["clean_loss"].values
        made.append(dataclasses.replace(item, sweep=item.sweep.assign(loss=loss)))
    answer = answers_of(made)["complexity"]
    assert answer.verdict == "not testable here", answer.verdict
    assert "noise of the images moves by" in answer.because and "sweep.images" in answer.because


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
