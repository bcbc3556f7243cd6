"""Directions that are added to activations of a UNet, against arithmetic on what flows between its stages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import ablate, windowed
from mechdiff.models import unet
from mechdiff.models.denoiser import Denoiser
from mechdiff.sweeps.execution import engine, shared_prefix
from mechdiff.sweeps.in_memory import sweep_in_memory

SCHEDULE, KEY = linear_schedule(50), jax.random.key(4)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
MIDDLE = "mid.block1"  # the last stage of the middle: what leaves it is the h-space of the editing literature
SITE = f"{MIDDLE}.res"
DIRECTION = RNG.normal(size=(8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser("small", SMALL, SCHEDULE, random_params(SMALL), identity_of(SMALL))


@pytest.fixture(scope="module")
def predict():
    return jax.jit(Denoiser.predict)


def adding(denoiser, **directions):
    by_site = {name.replace("__", "."): leaf for name, leaf in directions.items()}
    return dataclasses.replace(denoiser.identity, add=by_site)


def stacked_of(interventions):
    """A stack, all of whose members name the same directions; replacements are those of the first."""
    return dataclasses.replace(
        interventions[0],
        **{
            field: jax.tree.map(
                lambda *leaves: np.stack(leaves), *[getattr(each, field) for each in interventions]
            )
            for field in ("gate", "temperature", "window", "add")
        },
    )


def losses(denoiser, predict, intervention, t):
    rows, noise = np.full(3, t), image_noise(KEY, np.arange(3), IMAGES.shape[1:])
    eps = predict(denoiser, intervention, q_sample(SCHEDULE, IMAGES, rows, noise), rows)
    return np.mean((eps - noise) ** 2, axis=(1, 2, 3))


def test_a_direction_at_the_last_block_of_the_middle_moves_the_whole_stream_after_it(denoiser, predict):
    x, t = IMAGES, np.array([3, 20, 40])

    @jax.jit
    def by_hand(direction):
        identity = unet.at_timesteps(denoiser.identity, t)
        stream = unet.enter(SMALL, denoiser.params, x, t)
        for stage in unet.stages(SMALL):
            stream, _ = unet.run_stage(SMALL, stage, denoiser.params, identity, stream)
            if stage.name == MIDDLE:
                stream = stream._replace(h=stream.h + direction)
        return stream.h

    moved = predict(denoiser, adding(denoiser, mid__block1__res=DIRECTION), x, t)
    np.testing.assert_allclose(moved, by_hand(DIRECTION), rtol=1e-4, atol=1e-5)
    assert np.abs(moved - by_hand(0 * DIRECTION)).max() > 1e-2


def test_directions_act_beside_gates_and_inside_their_window_only(denoiser, predict):
    low, high = 10, 30
    added = windowed(adding(denoiser, mid__block1__res=DIRECTION), low, high)
    x, t = IMAGES, np.array([9, 10, 30])
    moved, clean = predict(denoiser, added, x, t), predict(denoiser, denoiser.identity, x, t)
    np.testing.assert_allclose(moved[::2], clean[::2], atol=1e-6)
    assert np.abs(moved[1] - clean[1]).max() > 1e-2
    # a gate of 0 and an added direction are a replacement by that direction
    replacement = dict(denoiser.identity.replacement) | {SITE: DIRECTION}
    replaced = ablate(denoiser.identity, [SITE], "constant", replacement)
    instead = ablate(adding(denoiser, mid__block1__res=DIRECTION), [SITE])
    np.testing.assert_allclose(
        predict(denoiser, instead, x, t), predict(denoiser, replaced, x, t), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rows", [0, 2])
def test_stacks_of_directions_are_whole_passes_one_by_one(denoiser, predict, rows):
    """A map, one vector for all positions, one head, and a time injection; strengths, gates and windows."""
    head = np.zeros((1, 2, 4), np.float32)
    head[0, 1] = RNG.normal(size=4)
    time = RNG.normal(size=8).astype(np.float32)
    nothing = {"mid__block1__res": 0 * DIRECTION, "mid__attn0__head": 0 * head, "up0__block0__time": 0 * time}
    cases = [
        adding(denoiser, **nothing),
        adding(denoiser, **nothing | {"mid__block1__res": 0.5 * DIRECTION}),
        adding(denoiser, **nothing | {"mid__block1__res": 2.0 * DIRECTION}),
        adding(denoiser, **nothing | {"mid__attn0__head": head}),
        ablate(adding(denoiser, **nothing | {"up0__block0__time": time}), ["down0.block0.res"]),
        windowed(adding(denoiser, **nothing | {"up0__block0__time": time}), 0, 10),
    ]
    stacked = stacked_of(cases)
    names = [stage.name for stage in unet.stages(SMALL)]
    joining = [names[i] for i in shared_prefix.joining_stages(SMALL, stacked)]
    assert joining == [
        *("conv_out", "mid.block1", "mid.block1", "mid.attn0"),
        *("down0.block0", "up0.block0"),
    ]
    runner = engine.Engine(denoiser, rows, devices=tuple(jax.devices()[:1]))
    for t in (5, 40):
        measured = runner.measure(stacked, EvalBatch(IMAGES, np.arange(3), t, KEY))
        expected = [losses(denoiser, predict, each, t) for each in cases]
        np.testing.assert_allclose(measured.loss, expected, rtol=2e-5)
        assert (measured.change[0] == 0).all()
        outside = measured.change[5] == 0
        assert outside.all() if t == 40 else not outside.any()


def test_one_direction_shared_by_a_stack_acts_on_every_member(denoiser, predict):
    vector = DIRECTION[:1, :1]
    cases = [adding(denoiser), ablate(denoiser.identity, ["down0.block0.res"])]
    stacked = dataclasses.replace(stacked_of(cases), window=denoiser.identity.window, add={SITE: vector})
    swept = sweep_in_memory(denoiser, EvalSet(IMAGES, [20], KEY), stacked)
    for row, case in enumerate(cases):
        alone = dataclasses.replace(case, add={SITE: vector})
        np.testing.assert_allclose(swept.loss[row, 0], losses(denoiser, predict, alone, 20), rtol=2e-5)


def test_directions_that_fit_no_site_are_refused(denoiser):
    x, t = jnp.asarray(IMAGES), jnp.array([3, 20, 40])
    predict = functools.partial(jax.eval_shape, denoiser.predict)  # refused while it is traced
    with pytest.raises(ConfigError, match=r"mid\.block1\.res"):
        predict(adding(denoiser, mid__block1__ress=DIRECTION), x, t)
    with pytest.raises(ConfigError, match=r"\(8,\).*3 axes"):
        predict(adding(denoiser, mid__block1__res=DIRECTION[0, 0]), x, t)
    with pytest.raises(ConfigError, match=r"\(1, 1, 5\).*broadcast to \(8, 8, 8\)"):
        predict(adding(denoiser, mid__block1__res=np.ones((1, 1, 5))), x, t)
