"""Simulated networks: what they keep, and scores whose order is known."""

import numpy as np

from mechdiff.validation import simulated


def test_heads_change_places_within_their_layers_alone():
    heads = np.arange(2 * 28.0).reshape(2, 28, 1)
    before = heads.copy()
    simulated.in_any_order(np.random.default_rng(0), heads)
    assert (heads != before).any()
    layers = heads.reshape(2, 7, 4)
    np.testing.assert_array_equal(np.sort(layers, axis=2), before.reshape(2, 7, 4))


def test_four_plateaus_score_above_other_numbers_and_trends_and_a_line_does_not():
    rng = np.random.default_rng(0)
    plateaus = np.repeat(rng.normal(size=(4, 12)), 6, axis=0)
    line = np.linspace(-1, 1, 24)[:, None] * np.ones(12)
    for shape, expected in ((plateaus, True), (line, False)):
        scores = simulated.held_out_scores(rng, np.tile(shape, (6, 1, 1)), 0.2, halves=3)
        assert all(score.shape[0] == 6 for score in scores)
        assert (simulated.four_phases_margin(*scores).mean() > 0) == expected
