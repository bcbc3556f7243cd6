"""Two denoisers compared on the same images: the least p, and how often it errs."""

import numpy as np
import pytest
from reference.fabricated import random_sweep, sweep

from mechdiff import stats
from mechdiff.analysis import changes, paired


@pytest.mark.parametrize("own, flipped", [(False, 4), (True, 12)])
def test_the_least_p_counts_the_units_that_are_flipped(own, flipped):
    before, after = (
        random_sweep(seed, components=2, images=4).assign_attrs(nested=own, images_total=12 if own else 4)
        for seed in (0, 0)
    )
    raised = after.assign(loss=after["loss"] + np.float32([0.5, 0.7])[None, :, None, None])
    between = paired.paired_difference(before, raised, "zero", repeats=50)
    assert between.flipped == flipped and between.least_p == 2 * 2 / 2**flipped
    assert between.p.min() >= between.least_p and (own or between.p.min() == between.least_p)


@pytest.mark.parametrize(
    "change, spread, grows, least, most",
    [(0.0, 0.5, 0, 0.0, 0.12), (0.05, 0.5, 0, 0.8, 1.0), (0.0, 1.3, 1, 0.0, 0.08)],
)
def test_p_of_a_comparison_errs_as_rarely_as_it_says_where_clean_losses_differ(
    change, spread, grows, least, most
):
    """Ablation costs 30 % in both, or 5 points more; clean losses of an image correlate by .95, costs not, or
    they grow with a skewed clean loss."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(500, 1, 1, 2, 16)), rng.normal(size=(500, 2, 1, 2, 16))
    clean = np.exp(spread * (np.sqrt(0.95) * shared + np.sqrt(0.05) * own))
    cost = np.array([0.3, 0.3 + change])[:, None, None, None] * (1 + 0.05 * rng.normal(size=own.shape))
    mean = clean.mean(axis=(-2, -1), keepdims=True)
    cost *= (clean / mean * np.exp(0.5 * rng.normal(size=own.shape))) ** grows
    loss = clean + cost * mean
    sides = [(clean[:, i], loss[:, i]) for i in (0, 1)]
    pooled, cells = (paired.contributions_to_change(*sides, pooled=each)[:, 0] for each in (True, False))
    pooled = pooled.mean(axis=-2)
    errs = [(stats.permutation_test(values, 199) <= 0.05).mean() for values in (pooled, cells)]
    assert all(least <= rate <= most for rate in errs), errs
    np.testing.assert_allclose(pooled.mean(axis=-1), cells.mean(axis=(1, 2)))
    before, after = (sweep([[loss[0, i, 0]]], clean[0, i, 0]) for i in (0, 1))
    p = paired.paired_difference(before, after, "zero", repeats=20).p, stats.permutation_test(pooled[:1])
    np.testing.assert_allclose(*p)
    np.testing.assert_allclose(changes.cell_differences(before, after, "zero")[1], stats.max_t(cells[:1]))
