"""The denoiser of a wrapped function: contract, edits, activations, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name as name

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.process import denoising_loss
from mechdiff.diffusion.samplers import Sampler, sample
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import ablate, leave_one_out, set_gate, windowed
from mechdiff.interventions.record import STACKED
from mechdiff.models.traced import Parameterization, wrap, wrapping
from mechdiff.models.traced.sites import ROWS

SCHEDULE = linear_schedule(20)
X = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)
T = np.array([2, 9, 15], np.int32)
PARAMS = {
    "in": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4),
    "block": (0.5 * np.eye(4) + 0.1).astype(np.float32),
}


def network(params, x, t):
    h = name(jnp.tanh(x @ params["in"]), "in.mlp")

    def turn(h, _):
        h = h + name(jnp.sin(h @ params["block"]), "block*.mlp")
        return name(h, "block*.head"), None

    h, _ = jax.lax.scan(turn, h, None, length=2)
    return h @ params["in"].T + 0.01 * t[:, None, None, None]


def by_hand(params, x, t, edit):
    h = edit(jnp.tanh(x @ params["in"]), "in.mlp")
    for turn in range(2):
        h = h + edit(jnp.sin(h @ params["block"]), f"block{turn}.mlp")
        h = edit(h, f"block{turn}.head")
    return h @ params["in"].T + 0.01 * t[:, None, None, None]


@pytest.fixture(scope="module")
def denoiser():
    return wrap(network, PARAMS, schedule=SCHEDULE, example=(X, T))


@jax.jit
def predict(denoiser, intervention, x, t, condition=None):
    """One program for each network and shape: operation by operation, each would be one of its own."""
    return denoiser.predict(intervention, x, t, condition)


def written(edit, params=PARAMS, network=by_hand):
    """The twin with its edits, compiled as a whole."""
    return jax.jit(lambda params: network(params, X, T, edit))(params)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_components_in_order_of_execution(denoiser):
    components = denoiser.components()
    heads = [f"block{turn}.head{unit}" for turn in range(2) for unit in range(4)]
    names = [component.name for component in components]
    assert names == ["in.mlp", "block0.mlp", *heads[:4], "block1.mlp", *heads[4:]]
    assert [component.depth for component in components] == sorted(c.depth for c in components)
    assert {component.resolution for component in components} == {4}
    groups = [component.name for component in denoiser.components(channel_groups=2)]
    assert [group for group in groups if group.startswith("in")] == ["in.mlp", "in.mlp.0-2", "in.mlp.2-4"]


def test_is_a_pytree_whose_name_is_no_reason_to_compile_again(denoiser):
    renamed = dataclasses.replace(denoiser, name="another")
    assert jax.tree.structure(renamed) == jax.tree.structure(denoiser)
    assert jax.tree.map(lambda leaf: leaf, renamed).name == "another"
    assert denoiser.name == "network" and denoiser.stages is None and denoiser.image_shape == (4, 4, 2)
    traces = []

    @jax.jit
    def loss(denoiser, x, t):
        traces.append(1)
        return denoiser.predict(denoiser.identity, x, t).sum()

    loss(denoiser, X, T), loss(renamed, X, T)
    louder = dataclasses.replace(
        denoiser, params=jax.tree.map(lambda leaf: 2 * np.asarray(leaf), denoiser.params)
    )
    assert loss(louder, X, T) != loss(denoiser, X, T)
    assert len(traces) == 1


def test_digests_say_what_decides_numbers(denoiser):
    again = wrap(network, PARAMS, schedule=SCHEDULE, example=(X, T))
    assert again.digests() == denoiser.digests()
    other = wrap(lambda p, x, t: 2 * network(p, x, t), PARAMS, schedule=SCHEDULE, example=(X, T))
    changed = {key for key, value in other.digests().items() if value != denoiser.digests()[key]}
    assert changed == {"program"}
    louder = dataclasses.replace(
        denoiser, params=jax.tree.map(lambda leaf: 2 * np.asarray(leaf), denoiser.params)
    )
    assert louder.digests()["params"] != denoiser.digests()["params"]


def test_digest_sees_constants_of_the_function():

    def at(*values):
        values = jax.device_put(np.array(values, np.float32))
        denoiser = wrap(lambda p, x, t: name(x * values, "a"), 0.0, schedule=SCHEDULE, example=(X, T))
        return denoiser.digests()["program"]

    assert at(1, 2) == at(1, 2) != at(1, 3)


def test_rows_of_one_batch_hold_different_interventions(denoiser):
    names, stacked = leave_one_out(denoiser.identity, ["in.mlp", "block1.mlp", "block1.head2"])
    output = np.asarray(predict(denoiser, stacked, X, T))
    for row, component in enumerate(names):
        alone = np.asarray(predict(denoiser, ablate(denoiser.identity, [component]), X, T))
        close(output[row], alone[row])


def test_replacements_doses_and_windows(denoiser):
    replacements = {
        site: np.full((1, 1, gate.shape[-1]), 0.3) for site, gate in denoiser.identity.gate.items()
    }
    intervention = ablate(denoiser.identity, ["block1.mlp"], "mean", replacements)
    intervention = set_gate(intervention, ["block0.head1"], 0.25)
    intervention = windowed(intervention, 5, 12)  # the second row alone

    def edit(value, site):
        if site == "block1.mlp":
            return jnp.full_like(value, 0.3)
        if site == "block0.head":
            return value.at[..., 1].set(0.25 * value[..., 1] + 0.75 * 0.3)
        return value

    output, clean = (np.asarray(predict(denoiser, i, X, T)) for i in (intervention, denoiser.identity))
    close(output[1], np.asarray(written(edit))[1])
    np.testing.assert_array_equal(output[::2], clean[::2])


def test_replacements_of_one_turn_alone_may_have_rows(denoiser):
    own = np.random.default_rng(1).normal(size=(3, 4, 4, 4)).astype(np.float32)
    replacement = {**denoiser.identity.replacement, "block0.mlp": own}
    intervention = dataclasses.replace(ablate(denoiser.identity, ["block0.mlp"]), replacement=replacement)
    edit = lambda value, site: own if site == "block0.mlp" else value
    close(predict(denoiser, intervention, X, T), written(edit))


def test_directions_are_added_within_the_window(denoiser):
    direction = np.array([1.0, -1.0, 0.5, 0.0], np.float32).reshape(1, 1, 4)
    whole_map = np.random.default_rng(2).normal(size=(4, 4, 4)).astype(np.float32)
    add = {"block1.mlp": direction, "in.mlp": whole_map}
    intervention = dataclasses.replace(denoiser.identity, add=add)
    edit = lambda value, site: value + add[site] if site in add else value
    expected = np.asarray(written(edit))
    close(predict(denoiser, intervention, X, T), expected)
    clean = np.asarray(predict(denoiser, denoiser.identity, X, T))
    during = np.asarray(predict(denoiser, windowed(intervention, 5, 12), X, T))
    close(during[1], expected[1])
    close(during[::2], clean[::2])
    at = lambda dose: dataclasses.replace(denoiser.identity, add={"block1.mlp": dose * direction})
    doses = np.array([0, 1], np.float32)
    swept = np.asarray(jax.jit(jax.vmap(lambda dose: denoiser.predict(at(dose), X, T)))(doses))
    close(swept[0], clean)
    close(swept[1], written(lambda v, s: v + direction if s == "block1.mlp" else v))


def test_activations_are_those_before_the_gate(denoiser):

    @jax.jit
    def passed(params):
        values = {}
        by_hand(params, X, T, lambda value, site: values.setdefault(site, value))
        return values

    expected = passed(PARAMS)
    captured = jax.jit(lambda intervention: denoiser.captured(intervention, X, T)[1])
    values = captured(denoiser.identity)
    assert values.keys() == expected.keys()
    for site, value in values.items():
        close(value, expected[site])
    close(captured(ablate(denoiser.identity, ["block0.mlp"]))["block0.mlp"], expected["block0.mlp"])


@pytest.mark.parametrize("positive", [True, False])
def test_activations_of_a_branch_that_is_not_taken_are_zeros(positive):
    def fn(params, x, t):
        left, right = (lambda x: name(x + 1, "left"), lambda x: name(x - 1, "right"))
        return jax.lax.cond(x.sum() > 0, left, right, x)

    x = np.abs(X) if positive else -np.abs(X)
    denoiser = wrap(fn, 0.0, schedule=SCHEDULE, example=(X, T))
    values = jax.jit(lambda x: denoiser.captured(denoiser.identity, x, T)[1])(x)
    close(values["left"], x + 1 if positive else np.zeros_like(x))
    close(values["right"], np.zeros_like(x) if positive else x - 1)


@pytest.mark.parametrize("construct", [jax.jit, jax.checkpoint, jax.vmap])
def test_activations_come_out_of_constructs(construct):
    fn = lambda params, x, t: construct(lambda x: jnp.sin(name(2 * x, "a")))(x)
    denoiser = wrap(fn, 0.0, schedule=SCHEDULE, example=(X, T))
    (value,) = jax.jit(lambda x: denoiser.captured(denoiser.identity, x, T)[1])(X).values()
    close(value, 2 * X)


def test_predicts_noise_whatever_the_network_returns():
    clean = lambda params, x, sigma: name(jnp.zeros_like(x) * sigma[:, None, None, None], "a")  # D = 0
    denoiser = wrap(clean, 0.0, schedule=SCHEDULE, example=(X, T), parameterization="edm_denoised")
    noise = np.asarray(SCHEDULE.sqrt_one_minus_alphas_bar)[T][:, None, None, None]
    close(predict(denoiser, denoiser.identity, X, T), X / noise)


def test_losses_and_samplers_take_it_as_it_is(denoiser):
    @jax.jit
    def loss_and_images(denoiser, noise, key):
        denoise = lambda x, t: denoiser.predict(denoiser.identity, x, t)
        loss = denoising_loss(denoise, SCHEDULE, X, T, noise)
        return loss, sample(denoise, Sampler(SCHEDULE), key, X.shape)

    noise = np.random.default_rng(3).normal(size=X.shape).astype(np.float32)
    loss, images = loss_and_images(denoiser, noise, jax.random.key(4))
    assert loss.shape == (3,)
    assert images.shape == X.shape and np.all(np.isfinite(images))


def test_condition_reaches_the_function():
    fn = lambda params, x, t, label: name(x, "a") * label[:, None, None, None]
    label = np.array([1, 2, 3], np.float32)
    denoiser = wrap(fn, 0.0, schedule=SCHEDULE, example=(X, T, label))
    close(denoiser.predict(denoiser.identity, X, T, label), X * label[:, None, None, None])
    with pytest.raises(ConfigError, match=r"takes a condition; give predict\(..., condition=...\)"):
        denoiser.predict(denoiser.identity, X, T)


def test_gates_may_be_differentiated_under_vmap(denoiser):
    def loss(gate, x):
        intervention = dataclasses.replace(denoiser.identity, gate=gate)
        return denoiser.predict(intervention, x[None], T[:1]).sum()

    mapped = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))
    slopes = jax.tree.map(np.asarray, mapped(denoiser.identity.gate, X))
    alone = jax.jit(jax.grad(loss))(denoiser.identity.gate, X[1])
    jax.tree.map(lambda many, item: close(many[1], item), slopes, alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_function_is_given_x_in_the_dtype_of_its_example(dtype):
    """Whatever floats `predict` is given: sweeps make float32."""

    def network(params, x, t):
        assert x.dtype == dtype
        return name(jax.lax.dot_general(x, params, (((3,), (0,)), ((), ()))), "mlp")

    params, x = jnp.eye(2, dtype=dtype) * 3, X.astype(dtype)
    denoiser = wrap(network, params, schedule=SCHEDULE, example=(x, T))
    for given in (X, X.astype(np.float64), x):
        output = denoiser.predict(denoiser.identity, given, T)
        close(output, network(params, x, T))
        assert output.dtype == np.float32  # so that errors are measured in it


@pytest.mark.parametrize(
    "mix",
    [lambda h: h - h.mean(0), jax.jit(lambda h: h / h.max()), lambda h: jnp.einsum("bhwc,bhwd->hwcd", h, h)],
)
def test_a_function_whose_rows_depend_on_one_another_is_warned_of(mix, caplog):
    apart = lambda h: h - h.mean((1, 2, 3), keepdims=True)
    slope = jax.grad(lambda h: (h**2).sum())  # the sum itself is not used
    wrap(lambda p, x, t: slope(apart(name(x, "a"))), 0.0, schedule=SCHEDULE, example=(X, T))

    left_behind = []  # values that no output depends on, as libraries leave them in one trace

    def traced_otherwise(p, x, t):
        if len(x) == ROWS[0]:
            left_behind.append(t + 1)
        h = name(x, "a").reshape(len(x), -1)
        return x - h.mean(1)[:, None, None, None]

    wrap(traced_otherwise, 0.0, schedule=SCHEDULE, example=(X, T))
    assert not caplog.text
    wrap(lambda p, x, t: name(x, "a") + mix(x)[:1].mean(), 0.0, schedule=SCHEDULE, example=(X, T))
    assert "runs over the rows of a batch" in caplog.text


class Unhashable:
    """A callable that says what it equals, and so has no hash."""

    def __call__(self, params, x, t):
        return x

    def __eq__(self, other):
        return True


def bad(**changes):
    options = {"schedule": SCHEDULE, "example": (X, T)} | changes
    fn = options.pop("fn", network)
    return wrap(fn, options.pop("params", PARAMS), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fn": "unet"}, r"fn='unet' can't be called; give a function fn\(params, x_t, t\[, condition\]\)"),
        ({"fn": lambda p, x, t: np.sin(x)}, "can't be traced by JAX at 8 rows .* TracerArrayConversionError"),
        ({"fn": lambda p, x: x}, "can't be traced by JAX .* TypeError"),
        ({"fn": lambda p, x, t: x[..., :1]}, r"fn returns \(8, 4, 4, 1\) for x of shape \(8, 4, 4, 2\)"),
        ({"fn": lambda p, x, t: (x, x)}, "fn returns tuple for x of shape"),
        ({"example": (X[0, 0, 0], T[:2])}, r"give vectors as \(rows, 1, 1, size\)"),
        ({"fn": lambda p, x, t: x + 1j}, "fn returns numbers of type complex64; noise is real"),
        ({"fn": lambda p, x, t: x > 0}, "fn returns numbers of type bool"),
        (
            {"params": PARAMS | {"in": np.full((2, 4), np.nan, np.float32)}},
            r"params\['in'\] holds NaN or Inf",
        ),
        ({"fn": Unhashable()}, r"fn can't be hashed .*; give lambda params, x, t: fn\(params, x, t\)"),
        ({"fn": lambda p, x, t: x.reshape(3, 32)}, "can't be traced by JAX at 8 rows"),
        ({"fn": lambda p, x, t: x}, "no value of this function has a name"),
        ({"fn": lambda p, x, t: name(x, "")}, "has the name ''; give it one such as 'block0.mlp'"),
        ({"example": (X,)}, r"example=.*: give \(x, t\)"),
        ({"example": (X, T.astype(float))}, "t of the example has .* float.*give one int a row"),
        ({"example": (X, T[0])}, "t of the example has shape"),
        (
            {"example": (X.astype(np.int8), T)},
            "x of the example has dtype int8; noisy images are real numbers",
        ),
        ({"parameterization": "noise"}, "unknown parameterization 'noise'; closest: edm_denoised"),
        ({"unit_axes": {"block.*.attn": 1}}, "unknown site of unit_axes"),
    ],
)
def test_bad_functions_get_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        bad(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: ablate(i, ["block0.mpl"]), "unknown component 'block0.mpl'; closest: block0.mlp"),
        (lambda i: dataclasses.replace(i, gate={}), "lacks 5 sites, first 'block0.head'; build it from"),
        (lambda i: dataclasses.replace(i, add={"in.mpl": np.ones((1, 1, 4))}), "'in.mpl'; closest: in.mlp"),
        (
            lambda i: dataclasses.replace(i, add={"in.mlp": np.ones(4)}),
            r"direction of 'in.mlp' has shape \(4,\)",
        ),
        (
            lambda i: dataclasses.replace(i, add={"in.mlp": np.ones((1, 1, 3))}),
            r"must have 3 axes that broadcast to \(4, 4, 4\)",
        ),
        (
            lambda i: dataclasses.replace(i, gate={**i.gate, "in.mlp": np.ones(3)}),
            "gate of 'in.mlp' has 3 units, the site 4",
        ),
    ],
)
def test_bad_interventions_get_one_line(denoiser, change, message):
    with pytest.raises(ConfigError, match=message):
        denoiser.predict(change(denoiser.identity), X, T)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (X, T - 3, "t from -1 to 12 is out of range"),
        (X, T + 5, "t from 7 to 20 is out of range"),
        (np.moveaxis(np.asarray(X), -1, 1), T, "channels come last"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "captured"])
def test_inputs_that_are_none_get_one_line(denoiser, method, x, t, message):
    with pytest.raises(ConfigError, match=message):
        getattr(denoiser, method)(denoiser.identity, x, t)


def test_a_denoiser_is_shown_in_a_line(denoiser):
    parts = len(denoiser.components())
    assert repr(denoiser).endswith(f"4x4x2, {count(PARAMS)} parameters, {parts} components)")


def test_a_missing_schedule_gets_one_line():
    with pytest.raises(ConfigError, match="schedule=None is not a noise schedule"):
        wrapping._check_schedule(None)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_two_names_that_become_one_are_refused():
    def fn(params, x, t):
        x = jax.lax.scan(lambda h, _: (name(h, "block*.mlp"), None), x, None, length=2)[0]
        return name(x, "block1.mlp")

    with pytest.raises(ConfigError, match=r"two sites are called 'block1\.mlp'"):
        wrap(fn, 0.0, schedule=SCHEDULE, example=(X, T))


def test_time_is_scaled_for_networks_that_are_told_it_so():
    seen = lambda params, x, time: name(x, "a") * 0 + time[:, None, None, None]
    parameterization = Parameterization(time_scale=2.0)
    denoiser = wrap(seen, 0.0, schedule=SCHEDULE, example=(X, T), parameterization=parameterization)
    close(np.asarray(predict(denoiser, denoiser.identity, X, T))[:, 0, 0, 0], 2 * T)


def test_leave_one_out_under_vmap_is_row_by_row(denoiser):
    names, stacked = leave_one_out(denoiser.identity, "block.*mlp")
    many = jax.jit(jax.vmap(denoiser.predict, in_axes=(STACKED, None, None)))(stacked, X, T)
    for output, component in zip(np.asarray(many), names, strict=True):
        close(output, predict(denoiser, ablate(denoiser.identity, [component]), X, T))


def test_a_named_pattern_is_replaced_head_by_head():
    def attention(params, x, t, edit=lambda pattern: name(pattern, "block0.pattern@1")):
        tokens = x.reshape(len(x), -1, 2)
        logits = jnp.einsum("bqc,bkc,ch->bhqk", tokens, tokens, params)
        pattern = edit(jax.nn.softmax(logits))
        return jnp.einsum("bhqk,bkc->bqc", pattern, tokens).reshape(x.shape)

    params = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    denoiser = wrap(attention, params, schedule=SCHEDULE, example=(X, T))
    (site,) = denoiser.identity.gate
    uniform = np.full((1, 1, 16), 1 / 16, np.float32)  # shared by heads and queries
    gate = {site: np.array([1.0, 0.0, 1.0], np.float32)}
    intervention = dataclasses.replace(denoiser.identity, gate=gate, replacement={site: uniform})
    expected = written(lambda pattern: pattern.at[:, 1].set(1 / 16), params, attention)
    close(predict(denoiser, intervention, X, T), expected)
