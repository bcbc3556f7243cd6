"""The pure training step against hand-made oracles, on one device and on two."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from reference.networks import fresh_state

from mechdiff.core.config import override
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.process import denoising_loss
from mechdiff.models.unet import apply_unet
from mechdiff.training import step
from mechdiff.training.placement import BATCH, Placement, data_parallel, shard_specs

SEED = jnp.uint32(0)
ONE = jax.make_mesh((1,), (BATCH,), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))


def dense(config, params, intervention, x, t, *, condition, mode):
    """A network that compiles at once, for what doesn't depend on the network: two products."""
    hidden = jnp.tanh(x.reshape(len(x), -1) @ params["into"] + 0.02 * t[:, None])
    return (hidden @ params["out"]).reshape(x.shape)


@pytest.fixture
def of_dense(small, setting, monkeypatch):
    """Of `dense`: a state, what is fixed, and a batch."""
    monkeypatch.setattr(step, "apply_unet", dense)
    rng, (_, fixed, batch) = np.random.default_rng(2), setting
    into, out = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((192, 64), (64, 192)))
    return fresh_state(small, {"into": into, "out": out}), fixed, batch


@functools.cache
def update(config, mesh, network):
    return jax.jit(functools.partial(step.train_step, config, mesh))


def stepped(config, setting, mesh=ONE):
    state, fixed, batch = setting
    return update(config, mesh, step.apply_unet)(fixed, SEED, state, batch)


def test_accumulated_micro_batches_make_the_same_step(small, of_dense):
    one, metrics_one = stepped(small, of_dense)
    two, metrics_two = stepped(override(small, ["train.accumulate=2"]), of_dense)
    np.testing.assert_allclose(metrics_one.loss, metrics_two.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics_one.grad_norm, metrics_two.grad_norm, rtol=1e-4)
    moments = [optax.tree.get(state.opt_state, "mu") for state in (one, two)]  # Adam's update divides by |g|
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *moments)


def test_the_ema_moves_by_its_decay(small, setting):
    state, _, _ = setting
    state = dataclasses.replace(state, step=jnp.int32(10_000))  # past the warm-up of the decay
    after = jax.device_get(stepped(small, (state, *setting[1:]))[0])
    expected = jax.tree.map(lambda p: (1 - small.train.ema_decay) * p, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), after.ema, expected)


def test_bfloat16_compute_gives_nearly_the_same_loss_and_keeps_float32_parameters(small, setting):
    full, half = (stepped(override(small, [f"train.dtype={d}"]), setting) for d in ("float32", "bfloat16"))
    np.testing.assert_allclose(full[1].loss, half[1].loss, rtol=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(half[0].params)} == {jnp.dtype("float32")}


def test_the_gradient_is_that_of_finite_differences(small, setting):
    state, (schedule, identity), batch = setting
    x0 = batch.astype(np.float32) / 127.5 - 1
    t, noise = np.arange(8) * 5, np.random.default_rng(3).standard_normal(x0.shape, np.float32)

    @jax.jit
    def loss(params):
        denoise = functools.partial(apply_unet, small.unet, params, identity)
        return denoising_loss(denoise, schedule, x0, t, noise).mean()

    grad = jax.device_get(jax.jit(jax.grad(loss))(state.params))
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(grad)))
    direction = jax.tree.map(lambda g: g / norm, grad)
    h = 1e-2
    moved = lambda s: loss(jax.tree.map(lambda p, d: p + s * d, state.params, direction))
    ahead, behind = float(moved(h)), float(moved(-h))
    np.testing.assert_allclose((ahead - behind) / (2 * h), norm, rtol=2e-2)


def test_timesteps_are_uniform_and_spread():
    spread = jax.jit(step.spread_timesteps, static_argnums=(1, 2))
    t = np.sort(spread(jax.random.key(0), 50, 100))
    assert (np.diff(t) <= 3).all() and t[0] < 3 and t[-1] > 96
    many = np.concatenate([spread(jax.random.key(i), 8, 100) for i in range(200)])
    assert abs(many.mean() - 49.5) < 1 and many.min() == 0 and many.max() == 99


def test_the_learning_rate_warms_up_then_decays(small, setting):
    config = override(small, ["train.clip_norm=1e6", "train.final_fraction=0.1"]).train
    optimizer = step.make_optimizer(config)
    params, next_update = {"w": np.ones((), np.float32)}, jax.jit(optimizer.update)
    state, sizes = optimizer.init(params), []
    for _ in range(config.steps):
        update, state = next_update(params, state, params)
        sizes.append(-float(update["w"]))
    assert int(np.argmax(sizes)) == config.warmup
    np.testing.assert_allclose(max(sizes), config.learning_rate, rtol=1e-3)
    assert sizes[0] < max(sizes) / 2 and sizes[-1] < 0.15 * max(sizes)
    update, _ = next_update(params, state, params)  # a step after the last
    np.testing.assert_allclose(-float(update["w"]), 0.1 * config.learning_rate, rtol=1e-3)


def test_two_devices_train_as_one_does(small, of_dense):
    state, fixed, batch = of_dense
    placement = data_parallel(small.train)
    assert len(placement.batch.device_set) == 2
    spread = jax.device_put(batch, placement.batch)
    one, metrics_one = stepped(small, of_dense)
    placed = jax.device_put(state, placement.everywhere), fixed, spread
    two, metrics_two = stepped(small, placed, placement.mesh)
    np.testing.assert_allclose(metrics_one.loss, metrics_two.loss, rtol=1e-5)
    moments = [optax.tree.get(made.opt_state, "mu") for made in (one, two)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *moments)


def test_sharded_parameters_make_the_same_step_and_take_half_the_room(small, of_dense):
    """Of two devices, each holds half of every large kernel, of its moments and of its EMA."""
    state, fixed, batch = of_dense
    states, losses, sizes = [], [], []
    for config in (small, override(small, ["train.fsdp=True"])):
        placement = data_parallel(config.train)
        shardings = placement.of_state(state)
        placed = jax.device_put(state, shardings), jax.device_put(batch, placement.batch)
        update = functools.partial(step.train_step, config, placement.mesh, fixed, SEED)
        compiled = jax.jit(update, out_shardings=(shardings, placement.everywhere)).lower(*placed).compile()
        after, metrics = compiled(*placed)
        states.append(jax.device_get(after))
        losses.append(metrics)
        sizes.append(compiled.memory_analysis().argument_size_in_bytes)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    moments = [optax.tree.get(state.opt_state, "mu") for state in states]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *moments)
    assert sizes[1] < 0.6 * sizes[0]


def test_shards_lie_along_the_longest_axis_that_divides():
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), "float32"),
        "odd": jax.ShapeDtypeStruct((3, 3, 64, 129), "float32"),
        "small": jax.ShapeDtypeStruct((8, 8), "float32"),
        "bias": jax.ShapeDtypeStruct((8192,), "float32"),
    }
    specs = {name: tuple(spec) for name, spec in shard_specs(shapes, 4).items()}
    axis = BATCH
    assert specs == {
        "kernel": (None, None, None, axis),
        "odd": (None, None, axis, None),
        "small": (),
        "bias": (),
    }


def test_sharding_over_devices_that_do_not_divide_is_refused():
    mesh = jax.make_mesh((2,), (BATCH,), axis_types=(AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placement = Placement(mesh, everywhere, everywhere, fsdp=True)
    with pytest.raises(ConfigError, match=r"train\.fsdp=True .* 2 devices: 0 % .* divides unet\.widths"):
        placement.of_state({"kernel": jax.ShapeDtypeStruct((3, 3, 65, 33), "float32")})
