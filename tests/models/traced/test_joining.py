"""Interventions that join where they first change something: the same predictions, and fewer products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from reference import named_networks

from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import leave_one_out, windowed
from mechdiff.interventions.record import STACKED
from mechdiff.models.traced import wrap
from mechdiff.models.traced.joining import predict_each
from mechdiff.models.traced.programs import subprograms
from mechdiff.sweeps.execution.shared_prefix import plan_passes

WIDTH, DEPTH, IMAGES = 4, 5, 2
X = np.random.default_rng(4).normal(size=(IMAGES, 2, 2, named_networks.CHANNELS)).astype(np.float32)
T = np.array([3, 7], np.int32)
SCHEDULE = linear_schedule(10)


def planned(denoiser, rows=1000):
    """All ablations, and one that changes nothing, in the order in which they join."""
    _, stacked = leave_one_out(denoiser.identity, ".*")
    gate = {site: np.concatenate([leaf, np.ones_like(leaf[:1])]) for site, leaf in stacked.gate.items()}
    plan = plan_passes(denoiser.network, dataclasses.replace(stacked, gate=gate), rows)
    in_order = {site: leaf[plan.order[0]] for site, leaf in gate.items()}
    return plan.joins, dataclasses.replace(stacked, gate=in_order)


@pytest.mark.parametrize("network", named_networks.every(), ids=str)
def test_every_construct_predicts_as_without_joining(network):
    denoiser = wrap(network.fn, network.params, schedule=SCHEDULE, example=(X, T))
    joins, stacked = planned(denoiser)
    assert len(joins) == len(denoiser.identity.gate) and sum(joins) > len(joins)
    clean, eps = map(np.asarray, jax.jit(predict_each, static_argnums=1)(denoiser, joins, stacked, X, T))
    predict = jax.jit(jax.vmap(denoiser.predict, in_axes=(STACKED, None, None)))
    alone = np.asarray(predict(stacked, X, T))
    np.testing.assert_allclose(eps, alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(clean, alone[-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(eps[-1], clean)  # the one that changes nothing, to the last bit


def written_out(params, x, t):
    """Blocks one after the other, each told a product of the time that no edit reaches."""
    h = x
    for index in range(DEPTH):
        time = t.astype(x.dtype)[:, None, None, None] @ params["time"][index]
        h = jnp.tanh(checkpoint_name(h @ params["block"][index], f"block{index}.mlp") + time)
    return h


def scanned(params, x, t):
    """`written_out` as a scan."""

    def block(h, weights):
        time = t.astype(x.dtype)[:, None, None, None] @ weights["time"]
        return jnp.tanh(checkpoint_name(h @ weights["block"], "block*.mlp") + time), None

    return jax.lax.scan(block, x, params)[0]


def wrapped(fn):
    """Its denoiser, of images of one pixel."""
    rng = np.random.default_rng(0)
    params = {
        "block": rng.normal(size=(DEPTH, WIDTH, WIDTH)).astype(np.float32),
        "time": rng.normal(size=(DEPTH, 1, WIDTH)).astype(np.float32),
    }
    example = np.ones((1, 1, 1, WIDTH), np.float32), np.zeros(1, np.int32)
    return wrap(fn, params, schedule=SCHEDULE, example=example)


def products(program, turns=1):
    """Multiplications in the products of matrices of a program."""
    total = 0
    for equation in program.jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += turns * int(depth * np.prod(equation.outvars[0].aval.shape))
        inner = turns * equation.params.get("length", 1) if equation.primitive.name == "scan" else turns
        total += sum(products(program, inner) for program in subprograms(equation))
    return total


@pytest.mark.parametrize("fn", [written_out, scanned])
def test_products_before_a_site_and_beside_it_are_not_repeated(fn):
    denoiser = wrapped(fn)
    _, stacked = leave_one_out(denoiser.identity, ".*")
    x, t = np.ones((IMAGES, 1, 1, WIDTH), np.float32), np.arange(IMAGES, dtype=np.int32)
    joins = plan_passes(denoiser.network, stacked, 100).joins
    assert joins == (1,) * DEPTH
    each = jax.make_jaxpr(lambda denoiser: predict_each(denoiser, joins, stacked, x, t))(denoiser)
    block, time = IMAGES * WIDTH * WIDTH, IMAGES * WIDTH
    # block i is run by the clean pass and by those that have joined before it
    assert products(each) == sum(1 + index for index in range(DEPTH)) * block + DEPTH * time
    together = (DEPTH, *[0] * (DEPTH - 1))
    each = jax.make_jaxpr(lambda denoiser: predict_each(denoiser, together, stacked, x, t))(denoiser)
    assert products(each) >= (1 + (1 + DEPTH) * (DEPTH - 1)) * block


def test_windows_and_directions_act_on_those_that_join():
    denoiser = wrapped(written_out)
    x = np.random.default_rng(1).normal(size=(IMAGES, 1, 1, WIDTH)).astype(np.float32)
    t = np.array([2, 8], np.int32)
    add = np.zeros((2, 1, 1, WIDTH), np.float32)
    add[1] = 0.5
    gate = {site: np.ones((2, WIDTH), np.float32) for site in denoiser.identity.gate}
    gate["block1.mlp"][0] = 0
    stacked = dataclasses.replace(windowed(denoiser.identity, 0, 5), gate=gate, add={"block3.mlp": add})
    joins = plan_passes(denoiser.network, stacked, 100).joins
    assert joins == (0, 1, 0, 1, 0)
    clean, eps = map(np.asarray, jax.jit(predict_each, static_argnums=1)(denoiser, joins, stacked, x, t))
    predict = jax.jit(denoiser.predict)
    np.testing.assert_array_equal(eps[:, 1], np.broadcast_to(clean[1], (2, 1, 1, WIDTH)))  # t = 8: outside
    for row in range(2):
        own = dataclasses.replace(
            stacked,
            gate={site: leaf[row] for site, leaf in gate.items()},
            add={"block3.mlp": add[row]},
        )
        np.testing.assert_allclose(eps[row], predict(own, x, t), rtol=1e-5, atol=1e-6)
        assert np.abs(eps[row, 0] - clean[0]).max() > 1e-3
