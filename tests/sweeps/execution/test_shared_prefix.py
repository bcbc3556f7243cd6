"""Shared prefixes and the engine against one pass per intervention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalBatch
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import ablate, leave_one_out, random_subsets, set_temperature, windowed
from mechdiff.interventions.record import ALWAYS, STACKED, Intervention
from mechdiff.models.stages import stages
from mechdiff.models.unet import components
from mechdiff.sweeps.execution import engine, joining_rows, passes, shared_prefix

KEY = jax.random.key(2)
T = 20


@pytest.fixture(scope="module")
def network(denoiser):
    return denoiser


@pytest.fixture(scope="module")
def images(images):
    return images[:5]


@pytest.fixture(scope="module")
def everything(network):
    """One intervention per component, with fills that are not zero."""
    rng = np.random.default_rng(3)
    identity = network.identity
    replacements = {
        site: rng.normal(size=(1,) * np.ndim(replacement))
        for site, replacement in identity.replacement.items()
    }
    replacements = {site: replacement.astype(np.float32) for site, replacement in replacements.items()}
    return leave_one_out(identity, ".*", "constant", replacements)[1]


@pytest.fixture(scope="module")
def plain(network):
    """Losses by one whole pass per intervention, vmapped: nothing is shared."""

    @jax.jit
    def loss(stacked, x0, indices, t):
        noise = image_noise(KEY, indices, x0.shape[1:])
        at = jnp.full(len(x0), t)
        x_t = q_sample(network.schedule, x0, at, noise)
        single = lambda i: network.predict(i, x_t, at)
        eps = jax.vmap(single, in_axes=(STACKED,))(stacked)
        return jnp.mean((eps - noise) ** 2, axis=(2, 3, 4))

    return loss


@pytest.fixture(scope="module")
def passes_of_each(network, plain, everything, images):
    """Losses of one whole pass per intervention, the identity's last."""
    gates = {site: np.concatenate([leaf, np.ones_like(leaf[:1])]) for site, leaf in everything.gate.items()}
    return np.asarray(plain(dataclasses.replace(everything, gate=gates), images, np.arange(5), T))


@pytest.fixture(scope="module")
def expected(passes_of_each):
    return passes_of_each[:-1]


@pytest.mark.parametrize("rows, devices", [(0, 2), (30, 1), (24, 2), (3, 1)])
def test_losses_are_those_of_one_pass_per_intervention(
    network, everything, images, passes_of_each, rows, devices
):
    runner = engine.Engine(network, rows, tuple(jax.devices()[:devices]))
    result = runner.measure(everything, EvalBatch(images, np.arange(5), T, KEY))
    np.testing.assert_allclose(result.loss, passes_of_each[:-1], rtol=2e-5)
    np.testing.assert_allclose(result.clean_loss, passes_of_each[-1], rtol=2e-5)
    assert (result.change > 0).all()


@pytest.mark.parametrize("counts", [1, 3])
def test_losses_do_not_move_where_rows_join_early(network, everything, images, expected, counts):
    runner = engine.Engine(network, devices=tuple(jax.devices()[:1]), row_counts=counts)
    joins = runner._plan(everything, 1000).joins
    assert np.count_nonzero(joins) == counts and sum(joins) == len(expected)
    result = runner.measure(everything, EvalBatch(images, np.arange(5), T, KEY))
    np.testing.assert_allclose(result.loss, expected, rtol=2e-5)


def test_interventions_that_look_like_the_last_ones_are_measured_anew(network, everything, images, expected):
    runner, batch = engine.Engine(network), EvalBatch(images, np.arange(5), T, KEY)
    gates = {site: np.where(leaf == 0, np.float32(0.5), leaf) for site, leaf in everything.gate.items()}
    halved = dataclasses.replace(everything, gate=gates)
    first, second = runner.measure(everything, batch), runner.measure(halved, batch)
    again, alone = runner.measure(everything, batch), engine.Engine(network).measure(halved, batch)
    np.testing.assert_array_equal(first.loss, again.loss)
    np.testing.assert_array_equal(second.loss, alone.loss)
    assert (second.loss != first.loss).any()
    for leaf in gates.values():  # the arrays passed in stay the caller's
        leaf[...] = 1
    np.testing.assert_array_equal(runner.measure(halved, batch).loss, second.loss)


@pytest.mark.parametrize("block", [1, 7])
def test_losses_do_not_move_with_the_rows_that_a_stage_takes_at_once(
    network, everything, images, expected, monkeypatch, block
):
    taken = []
    monkeypatch.setattr(
        joining_rows, "_block", lambda stage, rows, *shape: (taken.append(rows), min(rows, block))[1]
    )
    # Another network to the cache of programs, which took other blocks, though not to rounding.
    unet = dataclasses.replace(network.unet, norm_eps=1e-6 + 1e-9 * block)
    runner = engine.Engine(dataclasses.replace(network, unet=unet), devices=tuple(jax.devices()[:1]))
    result = runner.measure(everything, EvalBatch(images, np.arange(5), T, KEY))
    assert max(taken) > block
    np.testing.assert_allclose(result.loss, expected, rtol=2e-5)


@settings(deadline=None)
@given(rows=st.integers(1, 300), side=st.integers(1, 64))
def test_a_block_of_rows_fits_or_is_one_row(rows, side):
    stage = stages(preset("tiny").unet)[0]
    block = joining_rows._block(stage, rows, side, side, 32)
    assert 1 <= block <= rows
    assert block == 1 or block * side * side * 32 * 4 <= joining_rows.CPU_BLOCK


def test_a_window_and_a_temperature_act_as_they_do_alone(network, images, plain):
    identity = network.identity
    wide = set_temperature(identity, r"down0\.attn0\.head0", 3.0)
    stacked = leave_one_out(wide, r".*\.res")[1]
    inside, outside = windowed(stacked, T, T + 1), windowed(stacked, T + 1, T + 9)
    runner = engine.Engine(network)
    run = lambda stacked: runner.measure(stacked, EvalBatch(images, np.arange(5), T, KEY))
    np.testing.assert_allclose(run(inside).loss, plain(inside, images, np.arange(5), T), rtol=2e-5)
    idle = run(outside)
    assert (idle.change < 1e-12).all()
    np.testing.assert_allclose(idle.loss, np.broadcast_to(idle.clean_loss, idle.loss.shape), rtol=1e-6)


def test_more_interventions_than_a_pass_takes_compile_once(network, images, plain, monkeypatch):
    identity = network.identity
    members, stacked = random_subsets(jax.random.key(1), identity, ".*", 200, size=3)
    assert (members.sum(1) == 3).all()
    traces, forward = [], shared_prefix.forward
    monkeypatch.setattr(shared_prefix, "forward", lambda *args: (traces.append(1), forward(*args))[1])
    runner = engine.Engine(network, rows=80, devices=tuple(jax.devices()[:1]))
    result = runner.measure(stacked, EvalBatch(images[:2], np.arange(2), T, KEY))
    assert result.loss.shape == (200, 2) and len(traces) == 1
    last = dataclasses.replace(stacked, gate={k: v[150:] for k, v in stacked.gate.items()})
    np.testing.assert_allclose(result.loss[150:], plain(last, images[:2], np.arange(2), T), rtol=2e-5)


def test_an_image_does_not_move_with_the_others(network, everything, images, expected):
    """Nor with its place among them."""
    among = np.concatenate([images[3:], images[:3] / 2])
    result = engine.Engine(network).measure(everything, EvalBatch(among, np.array([3, 4, 7, 8, 9]), T, KEY))
    np.testing.assert_allclose(result.loss[:, :2], expected[:, 3:], rtol=2e-5)


def test_running_out_of_memory_halves_the_work_and_loses_nothing(
    network, everything, images, expected, monkeypatch
):
    run_passes, sizes = passes.run_passes, []

    def small(denoiser, stacked, images, common, *, joins, **options):
        sizes.append((1 + sum(joins)) * images.x0.shape[1])
        if sizes[-1] > 60:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
        return run_passes(denoiser, stacked, images, common, joins=joins, **options)

    monkeypatch.setattr(passes, "run_passes", small)
    runner = engine.Engine(network, rows=200, devices=tuple(jax.devices()[:1]))
    result = runner.measure(everything, EvalBatch(images, np.arange(5), T, KEY))
    np.testing.assert_allclose(result.loss, expected, rtol=2e-5)
    assert sizes[0] > 60 >= sizes[-1] and len(sizes) <= 4


def test_other_errors_of_the_device_are_not_swallowed(network, everything, images, monkeypatch):
    def broken(*args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: bad")

    monkeypatch.setattr(passes, "run_passes", broken)
    runner = engine.Engine(network)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        runner.measure(everything, EvalBatch(images, np.arange(5), T, KEY))


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), size=st.integers(1, 3), rows=st.integers(1, 70))
def test_a_plan_holds_every_intervention_and_lets_none_join_late(seed, count, size, rows):
    config = preset("tiny").unet
    known = components(config)
    rng = np.random.default_rng(seed)
    members = np.array([rng.permutation(len(known)) < size for _ in range(count)])
    widths = {c.site: max(d.index[1] for d in known if d.site == c.site) for c in known}
    gate = {site: np.ones((count, width), np.float32) for site, width in widths.items()}
    for column, component in enumerate(known):
        gate[component.site][members[:, column], slice(*component.index)] = 0
    stacked = Intervention(gate, replacement={}, temperature={}, window=ALWAYS)

    wave = shared_prefix.plan_passes(config, stacked, rows)
    assert set(wave.order.ravel()) == set(range(count))
    assert wave.order.shape[1] == sum(wave.joins) <= rows
    place = {stage.name: i for i, stage in enumerate(stages(config))}
    depth = np.array([place[c.site.rsplit(".", 1)[0]] for c in known])
    first = np.array([depth[row].min() for row in members])
    joined_at = np.repeat(np.arange(len(wave.joins)), wave.joins)
    assert (joined_at <= first[wave.order]).all()
    assert (joined_at == first[wave.order].min(axis=0)).all()
    if count <= rows:  # there is room for all: nothing joins early either
        assert (joined_at == first[wave.order]).all()
    _check_changed_skips(wave, members, known)
    passes = len(wave.order)
    early = np.sort(first)[::passes][: len(joined_at)]  # each as early as the one before its round's end
    assert sorted(joined_at) == sorted(early)
    assert wave.order.size - count < passes  # hardly any place is left over


def _check_changed_skips(wave, members, known):
    """Counted one by one: a skip is taken in the reverse of the order in which skips were made."""
    listed = stages(preset("tiny").unet)
    made = [place for place, stage in enumerate(listed) if stage.push]
    taken = [place for place, stage in enumerate(listed) if stage.pop]
    expected = [0] * len(listed)
    for source, place in zip(reversed(made), taken, strict=True):
        columns = [i for i, c in enumerate(known) if c.site == f"{listed[place].name}.skip"]
        joined = sum(wave.joins[: source + 1])
        late = [sum(members[i, columns].any() for i in order[joined:]) for order in wave.order]
        expected[place] = max(late)
    assert wave.changed_skips == tuple(expected)


def test_the_wave_costs_about_half_of_whole_passes(network, everything, images):
    """By XLA's own count of operations, which nothing else here looks at."""
    wave = shared_prefix.plan_passes(network.unet, everything, 1000)
    x_t, t = images[:1], jnp.int32(T)
    run = jax.jit(shared_prefix.forward, static_argnums=1, static_argnames="changed_skips")
    whole = (wave.order.size, *([0] * (len(wave.joins) - 1)))
    flops = [
        run.lower(network, joins, everything, x_t, t, changed_skips=skips).cost_analysis()["flops"]
        for joins, skips in ((wave.joins, wave.changed_skips), (wave.joins, ()), (whole, ()))
    ]
    assert 0.35 < flops[1] / flops[2] < 0.7
    assert 0.75 < flops[0] / flops[1] < 0.95  # of a skip the same is not computed twice either


def test_ablations_of_one_image_do_not_leak_into_another_row(network, images):
    """Two interventions that share no site: each row equals its own single pass, bitwise order aside."""
    identity = network.identity
    single, two = (ablate(identity, [name]) for name in ("down0.block0.res", "up0.block1.skip"))
    stacked = dataclasses.replace(
        identity, gate={site: np.stack([single.gate[site], two.gate[site]]) for site in identity.gate}
    )
    runner = engine.Engine(network, devices=tuple(jax.devices()[:1]))
    both = runner.measure(stacked, EvalBatch(images[:2], np.arange(2), T, KEY))
    swapped = dataclasses.replace(stacked, gate={k: v[::-1] for k, v in stacked.gate.items()})
    again = runner.measure(swapped, EvalBatch(images[:2], np.arange(2), T, KEY))
    np.testing.assert_allclose(both.loss, again.loss[::-1], rtol=1e-6)
