"""Framework x construct: what holds for named values, wherever they stand."""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.version import Version
from reference import named_networks

from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import ablate, leave_one_out
from mechdiff.interventions.record import STACKED
from mechdiff.models import traced
from mechdiff.models.traced import wrap

if importlib.util.find_spec("equinox"):
    from reference import named_equinox

    NETWORKS = named_networks.every() + named_equinox.every()
else:
    NETWORKS = named_networks.every()

# XLA of JAX 0.12 may fuse a product with what follows it, and differently where a gate stands between.
FUSED_OTHERWISE = Version(importlib.metadata.version("jaxlib")) >= Version("0.12")

X = np.random.default_rng(4).standard_normal((2, 2, 2, named_networks.CHANNELS)).astype(np.float32)
T = np.array([3, 7], np.int32)
each_network = pytest.mark.parametrize("network", NETWORKS, ids=str)


def table(networks):
    """Rows of the README: each framework with the constructs that values were named in."""
    constructs = {}
    for network in networks:
        constructs.setdefault(network.framework, []).append(network.construct)
    return [f"| {framework} | {'; '.join(names)} |" for framework, names in constructs.items()]


def test_readme_lists_what_is_shown():
    lines = (pathlib.Path(traced.__file__).parent / "README.md").read_text().splitlines()
    start = lines.index("| framework | constructs |") + 2
    rows = table(NETWORKS)
    assert lines[start : start + len(rows)] == rows


def wrapped(network, count=None):
    """Its denoiser; `count` is called whenever its function is traced."""

    def fn(params, x, t):
        if count is not None:
            count()
        return network.fn(params, x, t)

    return wrap(fn, network.params, schedule=linear_schedule(10), example=(X, T))


@each_network
def test_identity_is_bitwise_the_untouched_function(network, optimized):
    denoiser = wrapped(network)
    predicted = np.asarray(jax.jit(denoiser.predict)(denoiser.identity, X, T))
    untouched = np.asarray(jax.jit(network.fn)(network.params, X, T))
    if FUSED_OTHERWISE:
        np.testing.assert_allclose(predicted, untouched, rtol=2e-6, atol=2e-6)
    else:
        np.testing.assert_array_equal(predicted.view(np.uint32), untouched.view(np.uint32))


@each_network
def test_ablations_equal_the_hand_edited_twin_and_trace_nothing_again(network):
    traces = []
    denoiser = wrapped(network, lambda: traces.append(1))
    assert tuple(denoiser.identity.gate) == network.sites
    sites = list(denoiser.identity.gate)
    gates = 1 - np.eye(1 + len(sites), len(sites), -1, np.float32)

    @jax.jit
    @jax.vmap
    def twin(gate):
        of = dict(zip(sites, gate, strict=True))
        return network.twin(lambda value, name: of.get(name, 1.0) * value, network.params, X, T)

    expected = np.asarray(twin(gates))
    predict = jax.jit(denoiser.predict)
    clean = predict(denoiser.identity, X, T)
    traces.clear()
    np.testing.assert_allclose(clean, expected[0], rtol=1e-5, atol=1e-5)
    for site, output in zip(sites, expected[1:], strict=True):
        ablated = ablate(denoiser.identity, f"{site}[0-9]*")  # all heads of a site, where it has them
        np.testing.assert_allclose(predict(ablated, X, T), output, rtol=1e-5, atol=1e-5)
    names, stacked = leave_one_out(denoiser.identity, ".*")
    batched = jax.jit(jax.vmap(denoiser.predict, in_axes=(STACKED, None, None)))(stacked, X, T)
    row = {name: output for name, output in zip(names, np.asarray(batched), strict=True)}
    for site, output in zip(sites, expected[1:], strict=True):
        if site in row:
            np.testing.assert_allclose(row[site], output, rtol=1e-5, atol=1e-5)
    assert not traces


@each_network
def test_gradient_of_gates_equals_finite_differences(network):
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):

        def double(leaf):
            return np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        network = dataclasses.replace(network, params=jax.tree.map(double, network.params))
        x = X.astype(np.float64)
        denoiser = wrap(network.fn, network.params, schedule=linear_schedule(10), example=(x, T))
        ones = {site: np.ones(gate.shape) for site, gate in denoiser.identity.gate.items()}
        way = {site: rng.standard_normal(gate.shape) for site, gate in ones.items()}

        @jax.jit
        @jax.value_and_grad
        def loss(gate):
            intervention = dataclasses.replace(denoiser.identity, gate=gate)
            return jnp.sum(jnp.sin(denoiser.predict(intervention, x, T)))

        slope = sum(np.vdot(way[site], part) for site, part in loss(ones)[1].items())
        step = 1e-5
        ahead = jax.tree.map(lambda a, b: a + step * b, ones, way)
        behind = jax.tree.map(lambda a, b: a - step * b, ones, way)
        assert abs(slope) > 1e-3
        difference = (float(loss(ahead)[0]) - float(loss(behind)[0])) / (2 * step)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


if __name__ == "__main__":
    print(*table(NETWORKS), sep="\n")
