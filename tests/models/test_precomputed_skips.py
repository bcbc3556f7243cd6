"""Precomputed skips against skips."""

import dataclasses

import jax
import numpy as np
import pytest
from reference.in_float64 import random
from reference.networks import SMALL

from mechdiff.interventions.record import ALWAYS, Intervention
from mechdiff.models.blocks import Embeddings
from mechdiff.models.stage_modules import Stream, can_precompute_skip, module, precompute_skip, run_stage
from mechdiff.models.stages import Stage

ROWS, SIDE = 3, 4


@pytest.mark.parametrize(
    "stream, skip, options",
    [
        (8, 8, {}),  # no group has channels of both
        (12, 8, {"time_scale_shift": True}),  # of five channels a group
        (4, 12, {"activation": "relu"}),
    ],
)
def test_a_block_given_a_precomputed_skip_is_the_block_given_the_skip(stream, skip, options):
    config = dataclasses.replace(SMALL, image_size=SIDE, **options)
    stage = Stage("up0.block0", "block", 0, SIDE, 8, pop=True)
    h, taken = random(ROWS, SIDE, SIDE, stream), random(ROWS, SIDE, SIDE, skip, seed=1)
    embeddings = Embeddings(random(ROWS, 16, seed=2))
    made = lambda *inputs: module(config, stage).init(jax.random.key(0), *inputs, False)
    shapes = jax.eval_shape(made, h, embeddings, taken)
    seeds = iter(range(3, 100))
    params = {stage.name: jax.tree.map(lambda leaf: random(*leaf.shape, seed=next(seeds)), shapes["params"])}
    gate = {"up0.block0.skip": np.ones((ROWS, skip), np.float32), "up0.block0.time": np.ones(1, np.float32)}
    gate["up0.block0.skip"][1, : skip // 2], gate["up0.block0.res"] = 0.25, np.float32([0.5])
    replacement = {site: np.zeros((1,) * 3 if "time" not in site else (1,), np.float32) for site in gate}
    replacement["up0.block0.skip"] = random(SIDE, SIDE, skip, seed=99)
    add = {"up0.block0.skip": random(ROWS, 1, 1, skip, seed=98)}
    intervention = Intervention(gate, replacement, temperature={}, window=ALWAYS, add=add)

    @jax.jit
    def run(skip, h, embeddings):
        return run_stage(config, stage, params, intervention, Stream(h, (skip,), embeddings))[0].h

    precomputed = jax.jit(lambda skip: precompute_skip(config, stage, params, intervention, skip, stream))
    assert can_precompute_skip(config, stage, params, stream)
    whole, shared = run(taken, h, embeddings), run(precomputed(taken), h, embeddings)
    np.testing.assert_allclose(shared, whole, atol=2e-5 * np.abs(whole).max())
    assert np.abs(whole - run(2 * taken, h, embeddings)).max() > 0.1


def test_what_has_no_group_or_no_projection_of_its_own_stays_whole():
    stage = Stage("up0.block0", "block", 0, SIDE, 8, pop=True)
    norm, shortcut = {"scale": np.ones(8, np.float32)}, {"kernel": np.ones((1, 1, 8, 8), np.float32)}
    params = lambda **layers: {stage.name: {"norm1": norm} | layers}
    assert can_precompute_skip(SMALL, stage, params(shortcut=shortcut), 6)
    assert not can_precompute_skip(SMALL, stage, params(), 6)
    assert not can_precompute_skip(SMALL, stage, params(shortcut=shortcut), 7)
