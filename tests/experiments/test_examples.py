"""The worked examples, tiny: networks that know nothing of this package, each with an oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from experiments.examples import linen_dit, nnx_unet, own_unet
from experiments.examples.common import loss_increases
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import ablate
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import denoise

SIZE = linen_dit.SIZE


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_nnx_unet_without_its_skip_is_the_unet_with_zeros_for_weights():
    draw = lambda key: jax.random.normal(key, (2, 16, 16, 3))
    model = nnx_unet.denoiser(steps=2, width=8, heads=2, draw=draw)
    assert [component.name for component in model.components()] == [
        *("down.time", "down.residual", "mid.time", "mid.residual"),
        *("mid.attention.head0", "mid.attention.head1"),
        *("up.skip", "up.time", "up.residual"),
    ]
    x, t = normal(0, 2, 16, 16, 3), np.array([10, 900])
    state = jax.tree.map(lambda leaf: leaf, model.params)
    state["join"]["kernel"][...] = state["join"]["kernel"][...].at[:, :, 8:].set(0)
    network = jax.jit(model.network.fn)
    expected = network(state, x, t)
    assert np.abs(expected - network(model.params, x, t)).max() > 1e-4
    close(jax.jit(model.predict)(ablate(model.identity, ["up.skip"]), x, t), expected)


def test_a_probed_direction_moves_predictions_by_its_length_while_it_is_short():
    probe = pytest.importorskip("experiments.examples.probe", reason="scikit-learn is absent")
    denoiser = Denoiser("small", SMALL, linear_schedule(50), random_params(SMALL), identity_of(SMALL))
    images, labels = probe.labeled_faces(4, 8)
    accuracy, direction, _ = probe.fitted(denoiser, EvalSet(images, [20], jax.random.key(0)), labels, 20)
    assert 0 <= accuracy <= 1 and np.linalg.norm(direction) == pytest.approx(1)
    steps = np.array([0.0, 0.01, -0.01])[:, None] * direction
    still, forth, back = probe.richer(denoiser, images, labels, 20, steps)
    assert still == 0 and abs(forth) > 1e-6 and forth == pytest.approx(-back, rel=0.1)


@pytest.fixture(scope="module")
def dit():
    draw = lambda key: (jax.random.normal(key, (5, SIZE, SIZE, 3)), jnp.arange(5))
    model = linen_dit.denoiser(steps=1, width=16, depth=2, heads=2, draw=draw)
    rng = np.random.default_rng(1)
    # adaLN-Zero begins at zero.

    def noisy(leaf):
        return leaf + np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32)

    return dataclasses.replace(model, params=jax.tree.map(noisy, model.params))


def test_dit_without_an_mlp_is_the_dit_with_zeros_for_weights(dit):
    names = [component.name for component in dit.components()]
    assert names[:5] == [
        "embedding.class",
        "embedding.time",
        "block0.attention.adaln",
        "block0.mlp.adaln",
        "block0.head0",
    ]
    assert len(names) == 2 + 2 * (2 + 2 + 1)
    x, t = normal(0, 2, SIZE, SIZE, 3), np.array([10, 900])
    label = np.array([1, 4])
    params = jax.tree.map(lambda leaf: leaf, dit.params)
    blocks = params["params"]["blocks"]["mlp_out"]
    params["params"]["blocks"]["mlp_out"] = jax.tree.map(lambda leaf: leaf.at[1].set(0), blocks)
    network = jax.jit(dit.network.fn)
    expected = network(params, x, t, label)
    assert np.abs(expected - network(dit.params, x, t, label)).max() > 1e-3
    close(jax.jit(dit.predict)(ablate(dit.identity, ["block1.mlp"]), x, t, label), expected)


def test_a_class_that_is_left_out_is_worth_nothing(dit):
    x0, label = normal(2, 5, SIZE, SIZE, 3), np.arange(5)
    noise, t = normal(3, *x0.shape), np.full(5, 400)
    worth = linen_dit.worth_of_the_class(dit, x0, t, noise, label, "embedding.class")
    np.testing.assert_array_equal(worth, np.zeros(5))
    assert np.abs(linen_dit.worth_of_the_class(dit, x0, t, noise, label)).max() > 1e-3


def test_equinox_network_learns_the_exact_denoiser_and_needs_its_blocks():
    pytest.importorskip("equinox")
    from experiments.examples import equinox_mlp

    model = equinox_mlp.denoiser(steps=500, width=16, depth=2, batch=64)
    x0, t = (
        np.asarray(jax.jit(equinox_mlp.points, static_argnums=1)(jax.random.key(1), 256)),
        np.full(256, 500),
    )
    noise = normal(2, *x0.shape)
    signal, scale = (
        float(a[500]) for a in (model.schedule.sqrt_alphas_bar, model.schedule.sqrt_one_minus_alphas_bar)
    )
    x_t = np.float32(signal) * x0 + np.float32(scale) * noise
    best = np.asarray(jax.jit(lambda denoiser, x_t: denoiser(x_t, t))(equinox_mlp.exact(), x_t))
    error = lambda eps: np.mean((eps - best) ** 2)
    identity = error(jax.jit(model.predict)(model.identity, x_t, t))
    # the best guess that is linear in x_t is what a lazy network would learn
    covariance = np.cov(x0.reshape(-1, 2).T, bias=True)
    linear = scale * x_t.reshape(-1, 2) @ np.linalg.inv(signal**2 * covariance + scale**2 * np.eye(2))
    assert identity < 0.25 * error(linear.reshape(x_t.shape))
    increases = loss_increases(model, x0, t, noise)
    assert list(increases) == ["into.time", "block0.mlp", "block1.mlp"]
    for values in increases.values():
        assert values.mean() > 3 * values.std(ddof=1) / 16  # its standard error


def test_own_unet_by_names_gives_the_ablations_of_its_stages():
    config = dataclasses.replace(SMALL, prediction="v_prediction")
    params, identity = random_params(config), identity_of(config)
    schedule = linear_schedule()
    model = own_unet.wrapped(config, schedule, params, identity)
    assert model.identity.gate.keys() == identity.gate.keys()
    x, t = normal(2, 2, 8, 8, 3), np.array([10, 900])
    by_name = jax.jit(model.predict)
    by_stages = jax.jit(lambda intervention: denoise(config, schedule, params, intervention, x, t))
    clean = by_stages(identity)
    close(by_name(model.identity, x, t), clean)
    for component in ("down0.block0.res", "mid.attn0.head1", "up0.block1.skip", "mid.block0.time"):
        ablated = ablate(identity, [component])
        assert np.abs(by_stages(ablated) - clean).max() > 1e-3
        close(by_name(own_unet.untempered(ablated), x, t), by_stages(ablated))
