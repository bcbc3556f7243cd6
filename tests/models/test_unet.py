"""The UNet against diffusers' `UNet2DModel` in PyTorch (frozen), its gates against hooks, its fold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, shapes
from reference.torch_unets import GATED, PATHS, reference

from mechdiff.core.presets import preset
from mechdiff.interventions.build import ablate, leave_one_out
from mechdiff.interventions.components import select
from mechdiff.models.stage_modules import enter, run_stage
from mechdiff.models.stages import stages
from mechdiff.models.unet import apply_unet, components, count_parameters, init_unet

FORWARD = jax.jit(apply_unet, static_argnums=0)


def gated_rows(identity, stacked, images):
    """A batch's gates: every intervention of a stack for `images` rows each, the identity first."""
    gate = {
        site: np.repeat(np.concatenate([identity.gate[site][None], gates]), images, axis=0)
        for site, gates in stacked.gate.items()
    }
    return dataclasses.replace(identity, gate=gate)


def precisions(jaxpr):
    """Of all products of matrices and convolutions, however deep."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from precisions(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("chosen", [None, "tensorfloat32"])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_float32_products_are_made_in_full_unless_the_user_chose_otherwise(monkeypatch, chosen, backend):
    """Accelerators would drop bits; the gradient's products too."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = SMALL
    params, identity = shapes(config), identity_of(config)
    x = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    loss = lambda params, x, t: apply_unet(config, params, identity, x, t).sum()
    with jax.default_matmul_precision(chosen):
        result = set(precisions(jax.make_jaxpr(jax.grad(loss))(params[0], x, t).jaxpr))
    expected = jax.lax.Precision.HIGH if chosen else jax.lax.Precision.HIGHEST
    assert (expected, expected) in result and (result == {(expected, expected)} or backend == "cpu")


@pytest.mark.parametrize("name", [name for name in PATHS if name != GATED])
def test_forward_pass_equals_that_of_torch(name):
    config, params, identity, frozen = reference(name)
    got = np.asarray(FORWARD(config, params, identity, frozen["x"], frozen["t"]))
    assert np.abs(got - frozen["output"]).max() < 1e-5  # outputs have a standard deviation of 0.5 to 0.8


@pytest.fixture(scope="module")
def ablated():
    """Names, and outputs `(1 + component, row, ...)`: untouched, then each component at zero. One batch."""
    config, params, identity, frozen = reference(GATED)
    names, stacked = leave_one_out(identity, components(config))
    batch = gated_rows(identity, stacked, len(frozen["x"]))
    repeats = 1 + len(names)
    x, t = np.tile(frozen["x"], (repeats, 1, 1, 1)), np.tile(frozen["t"], repeats)
    return names, np.asarray(FORWARD(config, params, batch, x, t)).reshape(repeats, *frozen["x"].shape)


def test_gates_at_zero_do_what_hooks_do_in_torch(ablated):
    names, outputs = ablated
    frozen = reference(GATED)[3]
    assert {f"ablated/{name}" for name in names} == {name for name in frozen if name.startswith("ablated/")}
    assert np.abs(outputs[0] - frozen["output"]).max() < 1e-5
    for name, output in zip(names, outputs[1:], strict=True):
        assert np.abs(output - frozen[f"ablated/{name}"]).max() < 1e-5, name


def test_every_component_changes_the_output_of_a_random_network(ablated):
    names, outputs = ablated
    change = np.abs(outputs[1:] - outputs[0]).max(axis=(1, 2, 3, 4))
    assert change.min() > 1e-3, names[change.argmin()]


def joined(config, params, identity, x, t):
    """The fold, with a row joining before every stage; the stage's own gates are zero in that row."""
    result = stages(config)
    stream = enter(config, params, x, t)
    gate = {site: np.ones((1 + len(result), a.shape[-1]), np.float32) for site, a in identity.gate.items()}
    for k, stage in enumerate(result):
        for site in gate:
            if site.startswith(stage.name + "."):
                gate[site][1 + k] = 0
    for stage in result:
        stream = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), stream)
        here = dataclasses.replace(identity, gate={site: a[: len(stream.h)] for site, a in gate.items()})
        stream, _ = run_stage(config, stage, params, here, stream)
    return stream.h


def test_rows_can_join_at_any_stage(ablated):
    """The wavefront's seam: rows that enter late equal whole forward passes under their intervention."""
    config, params, identity, frozen = reference("defaults")
    x, t = frozen["x"][:1], frozen["t"][:1]
    got = np.asarray(jax.jit(joined, static_argnums=0)(config, params, identity, x, t))
    sites = [[s for s in identity.gate if s.startswith(stage.name + ".")] for stage in stages(config)]
    gates = {
        site: np.stack([gate] + [gate * (site not in own) for own in sites])
        for site, gate in identity.gate.items()
    }
    rows = len(got)
    x, t = x.repeat(rows, 0), t.repeat(rows)
    expected = FORWARD(config, params, dataclasses.replace(identity, gate=gates), x, t)
    np.testing.assert_allclose(got, expected, atol=5e-6)
    changed = np.abs(got - got[0]).max(axis=(1, 2, 3)) > 1e-3
    assert changed[1:].tolist() == [bool(own) for own in sites]


def test_gate_gradients_are_the_slopes_of_the_loss():
    config, params, identity, frozen = reference("defaults")

    def loss(gate, params, x, t):
        return jnp.mean(apply_unet(config, params, dataclasses.replace(identity, gate=gate), x, t) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss))
    slope = lambda gate: compiled(gate, params, frozen["x"], frozen["t"])
    rng = np.random.default_rng(0)
    at = {site: (1 - 0.3 * rng.random(gate.shape)).astype(np.float32) for site, gate in identity.gate.items()}
    gradient = jax.tree.map(np.asarray, slope(at)[1])
    step = 2e-2  # of one component's gates: truncation and float32 rounding are both near 1e-4
    for name, (site, (start, stop)) in select(identity, ".*").items():
        moved = [dict(at) for _ in range(2)]
        for sign, gates in zip((-1, 1), moved, strict=True):
            gates[site] = at[site] + sign * step * (np.isin(np.arange(len(at[site])), np.arange(start, stop)))
        low, high = (float(slope({s: np.float32(g) for s, g in gates.items()})[0]) for gates in moved)
        expected = (high - low) / (2 * step)
        got = float(gradient[site][start:stop].sum())
        assert abs(got - expected) < 1e-3 + 0.01 * abs(expected), (name, got, expected)


def test_paper_preset_has_about_the_size_that_the_paper_names():
    assert abs(count_parameters(preset("paper").unet) / 262e6 - 1) < 0.05  # three attention sites of 8 heads


def test_components_have_unique_names_and_own_every_gate_once():
    config, _, identity, _ = reference(GATED)
    result = components(config)
    assert len({component.name for component in result}) == len(result)
    owned = {site: np.zeros(len(gate)) for site, gate in identity.gate.items()}
    for component in result:
        owned[component.site][slice(*component.index)] += 1
    assert all((count == 1).all() for count in owned.values())
    assert [c.depth for c in result] == sorted(c.depth for c in result)


@pytest.mark.parametrize("groups", [1, 3, 100])
def test_channel_groups_split_a_site_without_gap_or_overlap(groups):
    config, _, identity, _ = reference(GATED)
    plain = {component.name for component in components(config)}
    parts = [component for component in components(config, groups) if component.name not in plain]
    for site, gate in identity.gate.items():
        edges = [component.index for component in parts if component.site == site]
        if site.endswith((".res", ".skip")):
            assert len(edges) == min(groups, len(gate))
            assert [low for low, _ in edges] == [0] + [high for _, high in edges[:-1]]
            assert edges[-1][1] == len(gate)
        else:
            assert not edges


def test_init_is_a_network_that_predicts_zero_and_an_identity_of_ones():
    config = SMALL
    params, identity = jax.jit(init_unet, static_argnums=1)(jax.random.key(0), config)
    out = FORWARD(config, params, identity, np.ones((1, 8, 8, 3), np.float32), np.zeros(1, np.int32))
    assert not np.any(np.asarray(out))  # the last convolution starts at zero
    plain = identity_of(config)
    for field in dataclasses.fields(plain):
        jax.tree.map(np.testing.assert_array_equal, getattr(identity, field.name), getattr(plain, field.name))
    names = [component.name for component in components(config)]
    assert set(names) == set(select(plain, ".*"))
    assert ablate(plain, names).gate.keys() == identity.gate.keys()
