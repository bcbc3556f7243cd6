"""Interventions: nothing where nothing is asked for, exactly what is asked for elsewhere, and no state."""

import copy
import dataclasses
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.interventions import record
from mechdiff.interventions.build import (
    ablate,
    keep_only,
    leave_one_out,
    random_subsets,
    set_gate,
    set_temperature,
    windowed,
)
from mechdiff.interventions.components import component_at, select
from mechdiff.interventions.gates import blend
from mechdiff.models import blocks
from mechdiff.models.blocks import Embeddings
from mechdiff.models.stage_modules import Stream, run_stage
from mechdiff.models.stages import stages
from mechdiff.models.unet import apply_unet, components, init_shapes

UNET = preset("tiny").unet
PARAMS, IDENTITY = jax.device_put(random_params(UNET)), identity_of(UNET)
NAMES = tuple(select(IDENTITY, ".*"))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 8, 8, 3)).astype(np.float32)
T = np.array([9, 10, 19, 20], np.int32)
TRACES = []


@jax.jit
def forward(intervention):
    TRACES.append(1)
    return apply_unet(UNET, PARAMS, intervention, X, T)


@pytest.fixture(scope="module")
def plain():
    return np.asarray(forward(IDENTITY))


def bits(x):
    return np.asarray(x).view(np.int32)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, dataclasses.asdict(a), dataclasses.asdict(b))


class PassThrough(nn.Module):
    """Stands in for a gate or a temperature, and does nothing."""

    unit_axis: int = -1

    def __call__(self, a):
        return a


@pytest.fixture
def optimized():
    """XLA as users run it, whatever the suite does to compile faster."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_identity_is_bitwise_the_network_without_gates_and_temperatures_when_compiled(optimized, monkeypatch):
    params, identity = random_params(SMALL), identity_of(SMALL)  # has every kind of site, and compiles faster
    run = lambda: jax.jit(lambda *leaves: apply_unet(SMALL, *leaves, X, T))(params, identity)
    gated = run()
    for part in ("Gate", "Temperature"):
        monkeypatch.setattr(blocks, part, PassThrough)
    bare = run()
    np.testing.assert_array_equal(bits(gated), bits(bare))


def test_a_fill_behind_an_open_gate_is_bitwise_nothing(plain):
    replacements = {
        site: np.full_like(replacement, 5.0) for site, replacement in IDENTITY.replacement.items()
    }
    np.testing.assert_array_equal(bits(forward(ablate(IDENTITY, [], "constant", replacements))), bits(plain))


def test_outputs_depend_on_the_intervention_alone_not_on_what_ran_before(plain):
    changes = [ablate(IDENTITY, NAMES[0]), set_gate(IDENTITY, NAMES[4], 0.5)]
    changes.append(set_temperature(IDENTITY, r".*head0", 3.0))
    first = [bits(forward(change)) for change in changes]
    again = [bits(forward(change)) for change in changes[::-1]][::-1]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(bits(forward(IDENTITY)), bits(plain))
    assert all((item != bits(plain)).any() for item in first)


def test_building_an_intervention_leaves_the_identity_as_it_was():
    before = identity_of(UNET)
    ablate(IDENTITY, ".*"), set_gate(IDENTITY, ".*", 0.3), set_temperature(IDENTITY, ".*head.*", 2.0)
    windowed(IDENTITY, 0, 1), leave_one_out(IDENTITY, ".*"), keep_only(IDENTITY, NAMES[0])
    same(IDENTITY, before)


def test_builders_compose_in_any_order():
    single = windowed(
        set_temperature(set_gate(ablate(IDENTITY, NAMES[0]), NAMES[1], 0.5), ".*head1", 2.0), 3, 5
    )
    two = ablate(set_gate(set_temperature(windowed(IDENTITY, 3, 5), ".*head1", 2.0), NAMES[1], 0.5), NAMES[0])
    same(single, two)


def test_interventions_of_one_shape_are_traced_once(plain):
    traced = len(TRACES)
    for i, name in enumerate(NAMES):
        for change in (ablate(IDENTITY, name), set_gate(IDENTITY, name, i / 50), keep_only(IDENTITY, name)):
            assert (np.asarray(forward(change)) != plain).any()
        forward(windowed(ablate(IDENTITY, name), i, i + 1))
    assert len(TRACES) == traced


def test_rows_with_their_own_interventions_equal_separate_runs():
    singles = [
        set_gate(IDENTITY, NAMES[:2], 0.5),
        windowed(ablate(IDENTITY, r"mid.*"), 0, 10),  # row 1 has t = 10: outside
        ablate(
            IDENTITY,
            r".*skip",
            "constant",
            {s: np.full_like(f, 0.7) for s, f in IDENTITY.replacement.items()},
        ),
        set_temperature(IDENTITY, r".*head0", 0.2),
    ]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *singles)
    result = np.asarray(forward(together))
    for row, single in enumerate(singles):
        np.testing.assert_allclose(result[row], np.asarray(forward(single))[row], atol=1e-5)


def test_windows_are_half_open_and_act_only_inside(plain):
    """Rows have t = 9, 10, 19, 20."""
    change = set_temperature(ablate(IDENTITY, NAMES[1]), ".*head1", 5.0)
    inside, result = bits(forward(change)), bits(forward(windowed(change, 10, 20)))
    np.testing.assert_array_equal(result[1:3], inside[1:3])
    np.testing.assert_array_equal(result[[0, 3]], bits(plain)[[0, 3]])
    assert (inside != bits(plain)).any(axis=(1, 2, 3)).all()


def test_leave_one_out_stacks_the_ablations_of_each():
    replacements = {
        site: np.full_like(replacement, 2.0) for site, replacement in IDENTITY.replacement.items()
    }
    names, stacked = leave_one_out(IDENTITY, ".*", "constant", replacements)
    assert names == NAMES
    for i, name in enumerate(names):
        single = record.rows(stacked, i, i + 1)
        single = dataclasses.replace(single, gate={site: gate[0] for site, gate in single.gate.items()})
        same(single, ablate(IDENTITY, [name], "constant", replacements))


def test_keep_only_ablates_the_complement():
    kept = [name for name in NAMES if "head" in name]
    same(keep_only(IDENTITY, r".*head.*"), ablate(IDENTITY, [name for name in NAMES if name not in kept]))
    same(keep_only(IDENTITY, ".*"), IDENTITY)
    same(keep_only(IDENTITY, []), ablate(IDENTITY, ".*"))


def test_random_subsets_ablate_their_members_and_are_uniform():
    members, stacked = random_subsets(jax.random.key(0), IDENTITY, ".*", count=600, size=5)
    assert (members.sum(1) == 5).all()
    for i in (0, 17):
        expected = ablate(IDENTITY, [name for name, member in zip(NAMES, members[i], strict=True) if member])
        for site, gate in expected.gate.items():
            np.testing.assert_array_equal(stacked.gate[site][i], gate)
    share = 5 / len(NAMES)
    spread = np.sqrt(share * (1 - share) / 600)
    assert np.abs(members.mean(0) - share).max() < 4.5 * spread


@pytest.mark.parametrize("axis, gate_shape, fill_shape", [
    (-1, (5,), (1, 1, 1)), (-1, (3, 5), (2, 4, 5)), (-2, (4,), (3, 2, 4, 5)), (-2, (3, 4), (1, 1, 1)),
])  # fmt: skip
def test_blend_is_the_mixture_of_activation_and_fill(axis, gate_shape, fill_shape):
    a, gate, replacement = (RNG.standard_normal(shape) for shape in ((3, 2, 4, 5), gate_shape, fill_shape))
    per_row = gate if gate.ndim == 2 else np.tile(gate, (3, 1))
    g = per_row[:, None, None, :] if axis == -1 else per_row[:, None, :, None]
    got = jax.jit(blend, static_argnums=3)(*(v.astype(np.float32) for v in (a, gate, replacement)), axis)
    np.testing.assert_allclose(got, g * a + (1 - g) * replacement, rtol=1e-5, atol=1e-6)


def test_a_closed_gate_gives_the_fill_bitwise():
    a, replacement = RNG.standard_normal((2, 3, 2, 4, 5)).astype(np.float32)
    closed = jax.jit(blend, static_argnums=3)(a, np.zeros(5, np.float32), replacement, -1)
    np.testing.assert_array_equal(bits(closed), bits(replacement))


run = jax.jit(run_stage, static_argnums=(0, 1), static_argnames="capture")
STAGES = {stage.name: stage for stage in stages(UNET)}
DOSE = 0.3


def stream_before(stage, skip_width):
    draw = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
    side = stage.resolution
    width = PARAMS[stage.name][{"block": "norm1", "attention": "norm"}[stage.op]]["scale"].size - skip_width
    skips = (draw(2, side, side, skip_width),) if skip_width else ()
    return Stream(draw(2, side, side, width), skips, Embeddings(draw(2, 32), None))


def test_identity_is_bitwise_a_stage_without_gates_and_temperatures_op_by_op(monkeypatch):
    stage = STAGES["mid.attn0"]  # blocks have no other parts than gates of channels: see below
    stream = jax.tree.map(jax.device_put, stream_before(stage, 0))
    gated = run_stage(UNET, stage, PARAMS, IDENTITY, stream)[0].h
    for part in ("Gate", "Temperature"):
        monkeypatch.setattr(blocks, part, PassThrough)
    bare = run_stage(UNET, stage, PARAMS, IDENTITY, stream)[0].h
    np.testing.assert_array_equal(bits(gated), bits(bare))


@pytest.mark.parametrize("shape", [(2, 4, 4, 8), (2, 8)])  # residuals and skips; time
def test_an_open_gate_of_channels_is_bitwise_nothing_op_by_op(shape):
    a = jax.device_put(RNG.standard_normal(shape).astype(np.float32))
    nothing = np.zeros((1,) * (len(shape) - 1), np.float32)
    np.testing.assert_array_equal(bits(blend(a, np.ones(8, np.float32), nothing, -1)), bits(a))


@pytest.mark.parametrize("name, site", [("mid.block0", "res"), ("mid.attn0", "head")])
def test_output_is_linear_in_the_dose_of_a_branch_or_head(name, site):
    stage = STAGES[name]
    stream = stream_before(stage, 0)
    what = [component for component in NAMES if component.startswith(f"{name}.{site}")][-1:]
    at = lambda gate: np.asarray(run(UNET, stage, PARAMS, set_gate(IDENTITY, what, gate), stream)[0].h)
    out = {gate: at(gate) for gate in (0.0, DOSE, 1.0)}
    np.testing.assert_allclose(out[DOSE], DOSE * out[1.0] + (1 - DOSE) * out[0.0], atol=2e-6)
    assert np.abs(out[1.0] - out[0.0]).max() > 0.01


def test_dose_of_a_skip_scales_the_skip_tensor():
    stage = STAGES["up0.block1"]
    stream = stream_before(stage, 8)
    gated = run(UNET, stage, PARAMS, set_gate(IDENTITY, ["up0.block1.skip"], DOSE), stream)[0].h
    scaled = stream._replace(skips=(stream.skips[0] * np.float32(DOSE),))
    np.testing.assert_allclose(gated, run(UNET, stage, PARAMS, IDENTITY, scaled)[0].h, atol=2e-6)


def test_dose_of_a_time_injection_scales_its_layer():
    stage = STAGES["mid.block0"]
    stream = stream_before(stage, 0)
    gated = run(UNET, stage, PARAMS, set_gate(IDENTITY, ["mid.block0.time"], DOSE), stream)[0].h
    block = PARAMS["mid.block0"]
    injected = {name: np.asarray(leaf) * np.float32(DOSE) for name, leaf in block["time_dense"].items()}
    scaled = {"mid.block0": {**block, "time_dense": injected}}
    np.testing.assert_allclose(gated, run(UNET, stage, scaled, IDENTITY, stream)[0].h, atol=2e-6)


def test_temperature_flattens_or_sharpens_only_its_head():
    stage = STAGES["mid.attn0"]
    stream = stream_before(stage, 0)

    def entropy(value):
        change = set_temperature(IDENTITY, ["mid.attn0.head1"], value)
        result = run(UNET, stage, PARAMS, change, stream, capture=("attention",))[1]
        return np.asarray(result["attention"]["mid.attn0.head"].entropy)

    plain, flat, sharp = entropy(1.0), entropy(1e7), entropy(1e-5)
    np.testing.assert_allclose(flat[:, 1], np.log(16), rtol=1e-5)
    assert (sharp[:, 1] < 0.02).all()
    np.testing.assert_allclose(flat[:, 0], plain[:, 0], rtol=1e-5)
    same(set_temperature(IDENTITY, ".*head.*", 1.0), IDENTITY)


def test_regular_expressions_match_whole_names():
    assert list(select(IDENTITY, r"mid\.attn0\.head\d")) == ["mid.attn0.head0", "mid.attn0.head1"]
    assert list(select(IDENTITY, r"mid\.block0\.res")) == ["mid.block0.res"]


def test_channel_groups_are_selected_by_their_components():
    group = component_at(components(UNET, channel_groups=4), "mid.block0.res.4-8")
    gate = ablate(IDENTITY, [group]).gate["mid.block0.res"]
    assert np.flatnonzero(gate == 0).tolist() == [4, 5, 6, 7]


def by_hand(**fields):
    """The identity with sites written by hand, which no builder has looked at."""
    merged = {name: {**getattr(IDENTITY, name), **sites} for name, sites in fields.items()}
    return dataclasses.replace(IDENTITY, **merged)


def acting(intervention):
    x = jax.ShapeDtypeStruct((1, UNET.image_size, UNET.image_size, UNET.in_channels), np.float32)
    t = jax.ShapeDtypeStruct((1,), np.int32)
    return jax.eval_shape(lambda p, x, t: apply_unet(UNET, p, intervention, x, t), init_shapes(UNET)[0], x, t)


@pytest.mark.parametrize("call, message", [
    (lambda: ablate(IDENTITY, ["mid.attn0.head7"]), r"unknown component 'mid.attn0.head7'; closest: mid"),
    (lambda: ablate(IDENTITY, r"mid\.atn.*"), r"unknown component .*; (closest|choose from): "),
    (lambda: ablate(IDENTITY, "("), r"pattern '\(' is not a regular expression"),
    (lambda: ablate(IDENTITY, ".*", "mean"), r"mean ablation needs replacements"),
    (lambda: ablate(IDENTITY, ".*", "mean", {}), r"replacements lack 24 sites .* first 'down0.block0.res'"),
    (lambda: set_temperature(IDENTITY, NAMES[0], 2.0), r"component '.*' is not an attention head"),
    (lambda: set_temperature(IDENTITY, ".*head.*", 0.0), r"temperature=0.0 must be above 0"),
    (lambda: set_temperature(IDENTITY, ".*head.*", float("nan")), r"temperature=nan must be above 0"),
    (lambda: by_hand(temperature={"mid.attn0.head": np.zeros(2)}), r"temperature=0.0 of site 'mid.attn0.h"),
    (lambda: by_hand(temperature={"mid.attn0.head": -np.ones(2)}), r"temperature=-1.0 of site 'mid.attn0."),
    (lambda: by_hand(temperature={"mid.attn0.head": -jnp.ones(2)}), r"temperature=-1.0 of site 'mid.attn0."),
    (lambda: by_hand(temperature={"mid.attn0.head": np.zeros(2, int)}), r"temperature=0 of site 'mid.attn0."),
    (lambda: acting(by_hand(gate={"mid.block0.rs": np.ones(1)})), r"unknown site 'mid.block0.rs'; closest"),
    (lambda: acting(by_hand(temperature={"mid.head": np.ones(2)})), r"unknown site 'mid.head'; "),
    (lambda: windowed(IDENTITY, 5, 5), r"window \[5, 5\) is empty or negative"),
    (lambda: set_gate(IDENTITY, ".*", float("nan")), r"gate=nan: expected a finite number"),
    (lambda: windowed(IDENTITY, -1, 5), r"window \[-1, 5\) is empty or negative"),
    (lambda: random_subsets(jax.random.key(0), IDENTITY, ".*", 1, 0), r"subset size 0 is out of range"),
    (lambda: random_subsets(jax.random.key(0), IDENTITY, ".*", -1, 1), r"count=-1 is too small"),
    (lambda: components(UNET, channel_groups=-1), r"channel_groups=-1 is too small"),
    (lambda: component_at(components(UNET), "mid.block0.rs"), r"unknown component 'mid.block0.rs'; closest"),
])  # fmt: skip
def test_errors_are_one_line_that_names_the_value_and_the_way_out(call, message):
    with pytest.raises(ConfigError) as caught:
        call()
    assert re.match(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_interventions_cant_be_edited_in_place():
    """A compiled function that closes over an intervention would not see it."""
    own = np.ones(2, np.float32)
    plain = record.Intervention(
        {"a.head": own}, {"a.head": np.zeros((1, 1, 1))}, {"a.head": np.ones(2)}, record.ALWAYS
    )
    made = [plain, copy.copy(plain), copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))]
    made += [windowed(plain, 0, 3), leave_one_out(plain, ".*")[1], ablate(plain, ".*")]
    made += [set_gate(plain, ".*", 0.5), set_temperature(plain, ".*", 2.0)]
    made += [jax.tree.map(np.array, plain), dataclasses.replace(plain), keep_only(plain, "a.head0")]
    for intervention in made:
        for array in jax.tree.leaves(intervention):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        for edit in (lambda gate: gate.update({"a.head": own}), lambda gate: gate.pop("a.head")):
            with pytest.raises(TypeError, match=r"can't be changed in place; pass a changed dict"):
                edit(intervention.gate)
        with pytest.raises(TypeError, match="can't be changed in place"):
            intervention.temperature["a.head"] = own
    own[0] = 0.5  # the caller's own array stays the caller's
    assert plain.gate["a.head"].tolist() == [1, 1]


@pytest.mark.parametrize("through", ["view", "view of a view", "buffer"])
def test_a_read_only_view_of_what_can_be_written_is_copied(through):
    level = np.ones(1, np.float32)
    memory = bytearray(4)
    gate = np.frombuffer(memoryview(memory).toreadonly(), np.float32)
    if through != "buffer":
        gate = np.broadcast_to(level, (2,))[: 1 if through == "view of a view" else 2]
    assert not gate.flags.writeable
    intervention = record.Intervention({"a.head": gate}, {}, {}, record.ALWAYS)
    before = intervention.gate["a.head"].tolist()
    level[:], memory[:] = 0.5, b"\1\1\1\1"
    assert intervention.gate["a.head"].tolist() == before


def test_what_can_not_be_written_is_not_copied():
    """Stacks of interventions share their arrays, also as views."""
    own = np.ones(4, np.float32)
    own.flags.writeable = False
    for fixed in (own, own[1:3], np.broadcast_to(own, (2, 4)), np.frombuffer(b"1234", np.float32)):
        assert record.read_only(fixed) is fixed
