"""Temperatures and replaced patterns where a function names them, against our UNet and against softmax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from reference.networks import SMALL, identity_of, random_params

from experiments.examples import own_unet
from mechdiff.api import load
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import set_temperature
from mechdiff.interventions.components import component_at
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.traced import wrap
from mechdiff.models.traced.edits import tempered
from mechdiff.sweeps import attention_patterns, scaling, temperature

SCHEDULE = cosine_schedule(50)
OWN = Denoiser("own", SMALL, SCHEDULE, random_params(SMALL), identity_of(SMALL))
IMAGES = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
EVAL_SET = EvalSet(IMAGES, np.array([20]), jax.random.key(2))
HEADS = ("down0.attn0.head1", "mid.attn0.head0")


@pytest.fixture(scope="module")
def named():
    """Our UNet by its names, patterns among them."""
    return own_unet.wrapped(SMALL, SCHEDULE, OWN.params, OWN.identity, patterns=True)


def heads(denoiser):
    return [component_at(denoiser.components(), name) for name in HEADS]


def same(swept, expected):
    for name in expected.data_vars:
        np.testing.assert_allclose(swept[name], expected[name], rtol=2e-4, atol=1e-6, err_msg=name)
    assert swept["component"].values.tolist() == list(HEADS)


def test_our_unet_through_names_is_tempered_as_through_its_stages(named):
    assert {part.name for part in named.components()} == {part.name for part in OWN.components()}
    swept, expected = (
        temperature.temperature_effects(denoiser, EVAL_SET, (0.5, 4.0), heads=heads(denoiser))
        for denoiser in (named, OWN)
    )
    same(swept, expected)
    assert (swept["change"] > 0).all() and (swept["gate"] != 1).all()


def test_our_unet_through_names_has_patterns_replaced_as_through_its_stages(named):
    for kind in ("uniform", "identity"):
        constant, expected = (
            attention_patterns.constant_patterns(denoiser.network, kind) for denoiser in (named, OWN)
        )
        assert len(constant) == len(expected)
        for site, pattern in expected.items():
            np.testing.assert_array_equal(constant[site.replace("head", "pattern")], pattern)
    swept, expected = (
        attention_patterns.pattern_effects(denoiser, EVAL_SET, ablations=("frozen",), heads=heads(denoiser))
        for denoiser in (named, OWN)
    )
    same(swept, expected)
    assert (swept["change"] > 0).all()


def attention(params, x, t, edit=lambda pattern: checkpoint_name(pattern, "block0.pattern@1")):
    """Three heads over 16 pixels, whose outputs have no name."""
    tokens = x.reshape(len(x), -1, 2)
    logits = jnp.einsum("bqc,bkc,ch->bhqk", tokens, tokens, params)
    return jnp.einsum("bhqk,bkc->bqc", edit(jax.nn.softmax(logits)), tokens).reshape(x.shape)


X = np.random.default_rng(0).standard_normal((2, 4, 4, 2)).astype(np.float32)
T = np.array([3, 30], np.int32)
PARAMS = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)


def wrapped(fn=attention, x=X):
    return wrap(fn, PARAMS, schedule=SCHEDULE, example=(x, T))


def with_outputs(params, x, t):
    """As `attention`, each head's output named too."""
    return attention(params, x, t) + checkpoint_name(jnp.stack([x] * 3, axis=1), "block0.head@1").sum(1)


def test_patterns_are_read_under_the_names_of_their_heads():
    images = np.tanh(X[..., :1])
    read = [
        load(wrapped(fn, images)).attention(images, heads=name, timesteps=20)[name]
        for fn, name in ((with_outputs, "block0.head1"), (attention, "block0.pattern1"))
    ]
    np.testing.assert_array_equal(*read)
    np.testing.assert_allclose(read[0].sum(read[0].dims[-1]), 1, atol=1e-5)
    with pytest.raises(ConfigError, match="no value is named as a pattern of attention"):
        load(wrapped(lambda params, x, t: checkpoint_name(x, "a"), images)).attention(images)


compiled_tempered = jax.jit(lambda pattern, heads: tempered(pattern, heads, -3))
slope_of_squares = jax.jit(jax.grad(lambda heads, pattern: (tempered(pattern, heads, -3) ** 2).sum()))


@pytest.mark.parametrize("value", [0.05, 0.5, 3.0, 100.0])
def test_a_tempered_pattern_is_the_softmax_of_logits_over_the_temperature(value):
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    logits[0, 1, 2, 3] = -np.inf  # a masked key

    def softmax(z):
        weights = np.exp(z - z.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    heads = np.array([1.0, value, value], np.float32)
    natural = np.float32(softmax(logits))
    changed = np.asarray(compiled_tempered(natural, heads))
    np.testing.assert_allclose(changed[:, 1:], softmax(logits / value)[:, 1:], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(changed[:, 0], natural[:, 0])  # bit by bit
    assert changed[0, 1, 2, 3] == 0
    assert np.isfinite(slope_of_squares(heads, natural)).all()


def test_a_temperature_of_one_head_is_the_network_with_other_logits():
    denoiser = wrapped()
    assert [part.name for part in denoiser.components()] == [f"block0.pattern{i}" for i in range(3)]
    changed = set_temperature(denoiser.identity, ["block0.pattern1"], 2.0)

    def flatter(pattern):
        return pattern.at[:, 1].set(jax.nn.softmax(jnp.log(pattern[:, 1]) / 2))

    predict = jax.jit(denoiser.predict)
    expected = jax.jit(lambda params: attention(params, X, T, flatter))(PARAMS)
    np.testing.assert_allclose(predict(changed, X, T), expected, rtol=1e-5, atol=1e-6)
    at_rest = set_temperature(denoiser.identity, ["block0.pattern1"], 1.0)
    np.testing.assert_array_equal(predict(at_rest, X, T), predict(denoiser.identity, X, T))
    patterns_of = jax.jit(lambda change: denoiser.captured(change, X, T, collection="patterns")[1])
    patterns, natural = (patterns_of(change)["block0.pattern"] for change in (changed, denoiser.identity))
    np.testing.assert_allclose(patterns, jax.jit(flatter)(natural), atol=1e-6)


def test_patterns_without_outputs_are_tempered_scaled_and_replaced_by_themselves():
    denoiser, shown = wrapped(), EvalSet(np.asarray(X), [30], jax.random.key(3))
    single = denoiser.components()[1:2]
    swept = temperature.temperature_effects(denoiser, shown, (1.0, 4.0), heads=single, matched=False)
    assert (swept["change"].sel(temperature=1.0) == 0).all() and (
        swept["change"].sel(temperature=4.0) > 0
    ).all()
    assert (swept["entropy"].sel(temperature=4.0) > swept["entropy"].sel(temperature=1.0)).all()
    with pytest.raises(ConfigError, match=r"block0\.head@2"):
        temperature.temperature_effects(denoiser, shown, heads=single)
    curve = scaling.scaling_curves(denoiser, shown, single, (0.0, 1.0))
    assert (curve["change"].sel(gate=1.0) == 0).all() and (curve["change"].sel(gate=0.0) > 0).all()


def refused(fn, *names, **options):
    with pytest.raises(ConfigError) as error:
        attention_patterns.pattern_effects(
            wrapped(fn), EvalSet(np.asarray(X), [3], jax.random.key(3)), **options
        )
    line = str(error.value)
    assert "\n" not in line and all(name in line for name in names), line


def test_what_is_no_pattern_is_refused_in_one_line():
    refused(lambda params, x, t: checkpoint_name(x, "mlp"), "no value is named as a pattern", "@1")

    def logits(params, x, t):
        return attention(params, x, t, lambda pattern: checkpoint_name(3 * pattern, "a.pattern@1"))

    refused(logits, "a.pattern", "sums over keys are 3 to 3")
    with pytest.raises(ConfigError, match=r"last axis of pattern 'a.pattern'"):
        wrapped(lambda *args: attention(*args, lambda pattern: checkpoint_name(pattern, "a.pattern")))
    with pytest.raises(ConfigError, match=r"the pattern of 'a.head0' has no name"):
        denoiser = wrapped(lambda params, x, t: checkpoint_name(x, "a.head"))
        set_temperature(denoiser.identity, ["a.head0"], 2.0)
    other = dataclasses.replace(wrapped().identity, temperature={"nowhere": np.ones(3)})
    with pytest.raises(ConfigError, match="nowhere"):
        wrapped().predict(other, X, T)
