"""Pattern interventions against attention written out, temperatures at matched norm, and scaling curves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.analysis import effects
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import cosine_schedule
from mechdiff.interventions.build import set_gate, windowed
from mechdiff.interventions.build import set_temperature as set_temperature
from mechdiff.interventions.components import component_at
from mechdiff.models.blocks import Embeddings
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.stage_modules import Stream, run_stage
from mechdiff.models.stages import stages
from mechdiff.models.unet import components, forward
from mechdiff.sweeps import activations, attention_patterns, scaling, temperature
from mechdiff.sweeps.execution import shared_prefix
from mechdiff.sweeps.replacements import resample_replacements

UNET, SCHEDULE = SMALL, cosine_schedule(50)
DENOISER = Denoiser("random", UNET, SCHEDULE, random_params(UNET), identity_of(UNET))
PARAMS, IDENTITY = DENOISER.params, DENOISER.identity
IMAGES = np.random.default_rng(1).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
LEVELS = np.array([3, 40])
KEY = jax.random.key(2)
STAGE = next(stage for stage in stages(UNET) if stage.name == "mid.attn0")
SITE = "mid.attn0.head"
SOME = tuple(
    component_at(components(UNET), f"{site}{i}") for site in ("down0.attn0.head", SITE) for i in (0, 1)
)
plain = jax.jit(functools.partial(forward, UNET, capture=("sites",)))
stage = jax.jit(functools.partial(run_stage, UNET, STAGE))


def noisy(t):
    noise, at = image_noise(KEY, np.arange(5), IMAGES.shape[1:]), jnp.full(5, t)
    return q_sample(SCHEDULE, IMAGES, at, noise), at, noise


def per_row(intervention):
    """The same with every leaf per row and a pattern at every site, so that one program serves all tests."""
    rows = lambda leaf, rank: np.broadcast_to(leaf, (5, *np.shape(leaf)[-rank:]))
    repeated = {"gate": intervention.gate, "temperature": intervention.temperature}
    repeated = {name: {s: rows(a, 1) for s, a in leaves.items()} for name, leaves in repeated.items()}
    uniform = attention_patterns.constant_patterns(UNET, "uniform")
    patterned = {site: intervention.pattern_replacement.get(site, other) for site, other in uniform.items()}
    full = {site: np.broadcast_to(p, (5, 2, 64, 64)) for site, p in patterned.items()}
    mixed = {site: rows(intervention.pattern.get(site, np.ones(2, np.float32)), 1) for site in uniform}
    return dataclasses.replace(intervention, **repeated, pattern=mixed, pattern_replacement=full)


def run(intervention, t):
    """Predicted noise, and activations at every site."""
    x_t, at, _ = noisy(t)
    eps, seen = plain(PARAMS, per_row(intervention), x_t, at)
    return np.asarray(eps), seen["sites"]


def losses(intervention, t):
    return ((run(intervention, t)[0] - noisy(t)[2]) ** 2).mean((1, 2, 3))


def by_hand(h, pattern_of):
    """The attention block in float64, each head's pattern passed through `pattern_of(pattern, row, head)`."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS["mid.attn0"])
    rows, side, _, width = h.shape
    h = h.astype(np.float64)
    grouped = h.reshape(rows, side * side, UNET.norm_groups, -1)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    normed = ((grouped - mean) / np.sqrt(variance + UNET.norm_eps)).reshape(rows, side * side, width)
    normed = normed * p["norm"]["scale"] + p["norm"]["bias"]
    project = lambda name: normed @ p[name]["kernel"] + p[name]["bias"]
    q, k, v = (project(name).reshape(rows, side * side, 2, -1) for name in "qkv")
    z = np.empty_like(v)
    for row in range(rows):
        for head in range(2):
            logits = q[row, :, head] @ k[row, :, head].T / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights = pattern_of(weights / weights.sum(1, keepdims=True), row, head)
            z[row, :, head] = weights @ v[row, :, head]
    out = z.reshape(rows, side * side, width) @ p["out"]["kernel"] + p["out"]["bias"]
    return h + out.reshape(h.shape)


@pytest.fixture(scope="module")
def entering():
    return np.random.default_rng(0).standard_normal((3, 8, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("kind, dose", [("uniform", 0.0), ("identity", 0.25), ("frozen", 0.0)])
def test_a_replaced_pattern_is_attention_with_that_pattern_and_own_values(entering, kind, dose):
    rows = np.random.default_rng(1).dirichlet(np.ones(64), (3, 2, 64)).astype(np.float32)
    sources = {"frozen": rows} | {
        name: attention_patterns.constant_patterns(UNET, name)[SITE] for name in ("uniform", "identity")
    }
    full = np.broadcast_to(sources[kind], (3, 2, 64, 64))
    changed = attention_patterns.replace_pattern(IDENTITY, ["mid.attn0.head1"], {SITE: sources[kind]}, dose)
    result = stage(PARAMS, changed, Stream(entering, (), Embeddings(jnp.ones((3, 32)), None)))[0].h
    other = lambda a, row, head: a if head == 0 else dose * a + (1 - dose) * full[row, head]
    np.testing.assert_allclose(result, by_hand(entering, other), rtol=2e-4, atol=2e-5)


def test_without_a_named_site_nothing_is_computed_and_with_open_gates_nothing_changes(entering):
    stream = Stream(entering, (), Embeddings(jnp.ones((3, 32)), None))
    named = attention_patterns.replace_pattern(
        IDENTITY, [], attention_patterns.constant_patterns(UNET, "uniform")
    )
    jaxpr = lambda i: str(jax.make_jaxpr(functools.partial(run_stage, UNET, STAGE))(PARAMS, i, stream))
    assert jaxpr(IDENTITY).count("dot_general") < jaxpr(named).count("dot_general")
    elsewhere = attention_patterns.replace_pattern(
        IDENTITY, [], {"down0.attn0.head": np.full((1, 1, 64), 1 / 64, np.float32)}
    )
    assert jaxpr(IDENTITY).count("dot_general") == jaxpr(elsewhere).count("dot_general")
    np.testing.assert_array_equal(stage(PARAMS, named, stream)[0].h, stage(PARAMS, IDENTITY, stream)[0].h)


def test_a_pattern_acts_in_its_window_alone():
    uniform = attention_patterns.replace_pattern(
        IDENTITY, r".*head\d", attention_patterns.constant_patterns(UNET, "uniform")
    )
    clean = run(IDENTITY, 20)[0]
    np.testing.assert_array_equal(run(windowed(uniform, 21, 30), 20)[0], clean)
    assert np.abs(run(windowed(uniform, 20, 21), 20)[0] - clean).max() > 1e-3


@pytest.fixture(scope="module")
def replaced():
    return attention_patterns.pattern_effects(
        DENOISER, EvalSet(IMAGES, LEVELS, KEY), heads=SOME, ablations=("uniform", "frozen"), draws=2, block=4
    )


def test_effects_of_patterns_are_those_of_plain_passes(replaced):
    donors = resample_replacements(DENOISER, EvalSet(IMAGES, LEVELS, KEY), draws=2).donors
    own = activations.activations(DENOISER, IMAGES, 40, KEY, np.arange(5), collection="patterns")
    own = {site: np.asarray(pattern) for site, pattern in own.items()}
    np.testing.assert_allclose(own[SITE].sum(-1), 1, rtol=1e-5)
    assert len(replaced.attrs["parameters_sha256"]) == 64 and "log-SNR from" in replaced.attrs["schedule"]
    cell = replaced.isel(t=1)
    np.testing.assert_allclose(cell.clean_loss, losses(IDENTITY, 40), rtol=1e-5)
    for head in (SOME[1], SOME[2]):
        changed = attention_patterns.replace_pattern(
            IDENTITY, [head], attention_patterns.constant_patterns(UNET, "uniform")
        )
        result = cell.loss.sel(ablation="uniform", component=head.name)
        np.testing.assert_allclose(result, losses(changed, 40), rtol=1e-5)
        each = [
            losses(
                attention_patterns.replace_pattern(IDENTITY, [head], {s: p[donor] for s, p in own.items()}),
                40,
            )
            for donor in donors
        ]
        result = cell.loss.sel(ablation="frozen", component=head.name)
        np.testing.assert_allclose(result, np.mean(each, axis=0), rtol=1e-5)
    assert (replaced.change > 0).all()
    loss = effects.losses(replaced, "frozen")[1]  # results are read as those of sweeps
    np.testing.assert_array_equal(loss, replaced.loss.sel(ablation="frozen"))


def test_what_is_no_head_or_no_pattern_is_refused():
    uniform = attention_patterns.constant_patterns(UNET, "uniform")
    with pytest.raises(ConfigError, match="not an attention head"):
        attention_patterns.replace_pattern(IDENTITY, ["mid.block0.res"], uniform)
    with pytest.raises(ConfigError, match="temperatures: none is given"):
        temperature.temperature_effects(DENOISER, EvalSet(np.zeros((1, 8, 8, 3), np.float32), [5], KEY), ())
    with pytest.raises(ConfigError, match="kept=nan: expected a finite number"):
        attention_patterns.replace_pattern(IDENTITY, ["mid.attn0.head0"], uniform, kept=np.nan)
    with pytest.raises(ConfigError, match="closest: uniform"):
        attention_patterns.constant_patterns(UNET, "unifrom")


def norms(intervention, t):
    """Of every head's output behind its gate, `(image, head)`."""
    seen = run(intervention, t)[1]
    size = lambda site: np.sqrt((np.asarray(seen[site]) ** 2).sum((1, 3)))
    return {site: size(site) * intervention.gate[site] for site in seen if site.endswith("head")}


def test_temperature_effects_are_those_of_plain_passes_at_the_clean_norm():
    eval_set = EvalSet(IMAGES, LEVELS[1:], KEY)
    result = temperature.temperature_effects(DENOISER, eval_set, (0.5, 4.0), heads=SOME[1:3], block=5)
    clean = norms(IDENTITY, 40)
    for value in (0.5, 4.0):
        for head in SOME[1:3]:
            cell = result.sel(temperature=value, component=head.name).isel(t=0)
            gate = {site: np.tile(leaf, (5, 1)) for site, leaf in IDENTITY.gate.items()}
            gate[head.site][:, head.index[0]] = cell.gate
            changed = dataclasses.replace(set_temperature(IDENTITY, [head], value), gate=gate)
            np.testing.assert_allclose(cell.loss, losses(changed, 40), rtol=1e-4)
            np.testing.assert_allclose(norms(changed, 40)[head.site], clean[head.site], rtol=1e-4)
    sharp, flat = result.entropy.sel(temperature=0.5), result.entropy.sel(temperature=4.0)
    assert (sharp < flat).all() and (flat <= np.log(64) + 1e-5).all()


def test_scaling_curves_are_those_of_plain_passes_in_one_program(monkeypatch):
    traces, walk = [], shared_prefix.forward
    monkeypatch.setattr(shared_prefix, "forward", lambda *args: (traces.append(1), walk(*args))[1])
    chosen = [component_at(components(UNET), name) for name in ("down0.block0.res", "mid.attn0.head1")]
    result = scaling.scaling_curves(
        DENOISER, EvalSet(IMAGES, LEVELS, KEY), chosen, (0.0, 0.5, 1.0, 2.0), block=3
    )
    assert len(traces) == 1
    for component in chosen:
        for gate in (0.0, 0.5, 2.0):
            cell = result.sel(gate=gate, component=component.name).isel(t=1)
            np.testing.assert_allclose(
                cell.loss, losses(set_gate(IDENTITY, [component], gate), 40), rtol=1e-5
            )
    assert (result.change.sel(gate=1.0) < 1e-12).all()
    np.testing.assert_allclose(result.loss.sel(gate=1.0)[0], result.clean_loss, rtol=1e-6)


def test_gates_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match="finite"):
        scaling.scaling_curves(DENOISER, EvalSet(IMAGES, LEVELS, KEY), SOME, (0.0, float("nan")))


def test_stacked_patterns_join_where_they_act():
    stacked = attention_patterns.one_pattern_each(
        IDENTITY, SOME, attention_patterns.constant_patterns(UNET, "uniform")
    )
    place = [result.name for result in stages(UNET)]
    first = shared_prefix.joining_stages(UNET, stacked)
    assert [place[i] for i in first] == [component.site.rsplit(".", 1)[0] for component in SOME]
