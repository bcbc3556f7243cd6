"""Attention statistics and mean activations against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.networks import SMALL, identity_of, random_params

from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.build import ablate
from mechdiff.models.attention_stats import attention_statistics
from mechdiff.models.blocks import Embeddings
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.stage_modules import Stream, run_stage
from mechdiff.models.stages import stages
from mechdiff.models.unet import apply_unet, components, forward
from mechdiff.sweeps import activations

UNET, SCHEDULE = SMALL, make_schedule(preset("tiny").diffusion)
PARAMS, IDENTITY = random_params(UNET), identity_of(UNET)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
LEVELS = np.array([3, 40])
KEY = jax.random.key(2)
DENOISER = Denoiser("random", UNET, SCHEDULE, PARAMS, IDENTITY)
run_forward = jax.jit(functools.partial(forward, UNET, capture=("sites", "attention")))
measure = jax.jit(attention_statistics, static_argnums=1)


def statistics(pattern, grid):
    """The definitions, term by term, in float64; pattern is (queries, keys)."""
    log = lambda p: np.log(np.where(p > 0, p, 1))
    entropy = lambda p: -(p * log(p)).sum(-1)
    places = np.array([(y, x) for y in range(grid[0]) for x in range(grid[1])]) / max(grid)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    rows = entropy(pattern).mean()
    return {
        "entropy": rows,
        "normalized_entropy": rows / np.log(len(pattern)),
        "effective_keys": np.exp(rows),
        "mutual_information": entropy(pattern.mean(0)) - rows,
        "distance": (pattern * distance).sum(-1).mean(),
        "identity_mass": np.trace(pattern) / len(pattern),
    }


def measured(pattern, grid):
    result = measure(np.float32(pattern)[None, None], grid)
    return {name: float(np.asarray(value)[0, 0]) for name, value in result._asdict().items()}


def random_pattern(tokens, sharpness):
    weights = np.exp(sharpness * np.random.default_rng(tokens).standard_normal((tokens, tokens)))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (16, 16)])
@pytest.mark.parametrize("sharpness", [0.1, 2.0, 30.0])
def test_attention_statistics_equal_their_definitions(grid, sharpness):
    pattern = random_pattern(grid[0] * grid[1], sharpness)
    expected = statistics(pattern, grid)
    assert measured(pattern, grid) == pytest.approx(expected, rel=2e-5, abs=2e-6)


@pytest.mark.parametrize("pattern, expected", [
    (np.full((4, 4), 0.25), {
        "entropy": np.log(4), "normalized_entropy": 1, "effective_keys": 4, "mutual_information": 0,
        "distance": (2 + np.sqrt(2)) / 8, "identity_mass": 0.25,
    }),
    (np.eye(4), {
        "entropy": 0, "normalized_entropy": 0, "effective_keys": 1, "mutual_information": np.log(4),
        "distance": 0, "identity_mass": 1,
    }),
    (np.eye(4)[::-1], {  # every corner of a 2x2 grid looks at the opposite one
        "entropy": 0, "normalized_entropy": 0, "effective_keys": 1, "mutual_information": np.log(4),
        "distance": np.sqrt(2) / 2, "identity_mass": 0,
    }),
    (np.eye(4)[[1, 1, 1, 1]], {  # all look at the upper right one
        "entropy": 0, "normalized_entropy": 0, "effective_keys": 1, "mutual_information": 0,
        "distance": (2 + np.sqrt(2)) / 8, "identity_mass": 0.25,
    }),
], ids=["uniform", "identity", "opposite", "one key"])  # fmt: skip
def test_attention_statistics_of_patterns_made_by_hand(pattern, expected):
    assert measured(pattern, (2, 2)) == pytest.approx(expected, abs=1e-6)


def test_a_single_position_has_no_entropy_and_no_nan():
    result = measured(np.ones((1, 1)), (1, 1))
    assert result["entropy"] == result["normalized_entropy"] == result["distance"] == 0


def test_statistics_are_of_each_image_and_head():
    patterns = np.stack([random_pattern(9, sharpness) for sharpness in (0.1, 1, 2, 3, 4, 5)])
    result = measure(np.float32(patterns.reshape(2, 3, 9, 9)), (3, 3))
    expected = np.array([statistics(pattern, (3, 3))["entropy"] for pattern in patterns]).reshape(2, 3)
    np.testing.assert_allclose(result.entropy, expected, rtol=1e-5)


def patterns_of(stage, h):
    """The attention patterns `(image, head, query, key)` of a stage, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS[stage.name])
    batch, tokens, groups = len(h), stage.resolution**2, UNET.norm_groups
    grouped = h.reshape(batch, tokens, groups, -1).astype(np.float64)
    centered = grouped - grouped.mean((1, 3), keepdims=True)
    h = centered / np.sqrt(centered.var((1, 3), keepdims=True) + UNET.norm_eps)
    h = h.reshape(batch, tokens, -1) * params["norm"]["scale"] + params["norm"]["bias"]
    heads = UNET.heads[stage.level]
    split = lambda name: (h @ params[name]["kernel"] + params[name]["bias"]).reshape(batch, tokens, heads, -1)
    q, k = split("q"), split("k")
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]))
    return weights / weights.sum(-1, keepdims=True)


def test_captured_statistics_are_those_of_the_stages_pattern():
    stage = next(stage for stage in stages(UNET) if stage.op == "attention")
    h = np.random.default_rng(0).standard_normal((2, stage.resolution, stage.resolution, stage.width))
    stream = Stream(np.float32(h), (), Embeddings(np.zeros((2, 4), np.float32), None))
    run = jax.jit(functools.partial(run_stage, UNET, stage, capture=("attention",)))
    result = jax.tree.map(np.asarray, run(PARAMS, IDENTITY, stream)[1]["attention"][f"{stage.name}.head"])
    for image, heads in enumerate(patterns_of(stage, h)):
        for head, pattern in enumerate(heads):
            expected = statistics(pattern, (stage.resolution, stage.resolution))
            got = {name: float(value[image, head]) for name, value in result._asdict().items()}
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def stats():
    return activations.attention_stats(DENOISER, EvalSet(IMAGES, LEVELS, KEY), block=3)


def test_attention_stats_are_labelled_by_head_timestep_and_image(stats):
    heads = [component for component in components(UNET) if component.component_type == "head"]
    assert stats["head"].values.tolist() == [component.name for component in heads]
    assert stats["tokens"].values.tolist() == [component.resolution**2 for component in heads]
    assert dict(stats.sizes) == {"head": len(heads), "t": 2, "image": 5}
    np.testing.assert_allclose(stats.log_snr, np.asarray(SCHEDULE.log_snr)[LEVELS])
    entropy, ceiling = stats.entropy.values, np.log(stats["tokens"].values)[:, None, None]
    assert ((entropy > 0) & (entropy < ceiling)).all()
    np.testing.assert_allclose(stats.normalized_entropy.values * ceiling, entropy, rtol=1e-6)


@jax.jit
def noisy(level):
    """All images at one timestep, and that timestep per image."""
    t = jnp.full(len(IMAGES), level, np.int32)
    return q_sample(SCHEDULE, IMAGES, t, image_noise(KEY, np.arange(len(IMAGES)), IMAGES.shape[1:])), t


@pytest.fixture(scope="module")
def captured():
    """Every site's activations, (level, image, ...), from one plain pass over all images."""
    results = []
    for level in LEVELS:
        results.append(run_forward(PARAMS, IDENTITY, *noisy(level))[1])
    return jax.tree.map(lambda *levels: np.stack(levels), *results)


def test_attention_stats_equal_a_plain_pass_whatever_the_block(stats, captured):
    for site, result in captured["attention"].items():
        for head in range(result.entropy.shape[-1]):
            for name in ("entropy", "mutual_information", "distance"):
                got = stats[name].sel(head=f"{site}{head}").values
                np.testing.assert_allclose(got, getattr(result, name)[..., head], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [2, 5])
def test_activation_means_equal_float64_means_whatever_the_block(block, captured):
    means = activations.activation_means(DENOISER, EvalSet(IMAGES, LEVELS, KEY), block=block)
    assert means.keys() == IDENTITY.gate.keys()
    for site, values in captured["sites"].items():
        expected = values.astype(np.float64).mean(axis=1)
        assert means[site].shape == expected.shape
        np.testing.assert_allclose(means[site], expected, atol=2e-6 * (1 + np.abs(expected).max()))


def test_activation_moments_are_those_of_float64_whatever_the_block(captured):
    deviations = activations.activation_moments(DENOISER, EvalSet(IMAGES, LEVELS, KEY), block=2)[1]
    for site, values in captured["sites"].items():
        expected = values.astype(np.float64).std(axis=1)
        np.testing.assert_allclose(deviations[site], expected, rtol=2e-4, atol=2e-6)
    assert (deviations["mid.block0.time"] < 1e-6).all()  # the same for every image


def test_mean_fills_fit_every_site_and_replace_exactly(captured):
    means = {site: values.mean(1) for site, values in captured["sites"].items()}
    replacements = activations.replacements_at(means, 1)
    everything = ablate(IDENTITY, ".*", "mean", replacements)
    t = np.zeros(5, np.int32)
    out = jax.eval_shape(functools.partial(apply_unet, UNET), PARAMS, everything, IMAGES, t)
    assert out.shape == IMAGES.shape

    stage = next(stage for stage in stages(UNET) if stage.name == "mid.block0")
    h = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)
    run = jax.jit(functools.partial(run_stage, UNET, stage))
    replaced = ablate(IDENTITY, ["mid.block0.res"], "mean", replacements)
    result = run(PARAMS, replaced, Stream(h, (), Embeddings(np.ones((2, 32), np.float32), None)))[0].h
    np.testing.assert_array_equal(result, h + replacements["mid.block0.res"])


def test_sites_are_captured_before_the_gate_acts(captured):
    first = "down0.block0.res"
    result = run_forward(PARAMS, ablate(IDENTITY, [first]), *noisy(LEVELS[0]))[1]["sites"]
    result = jax.tree.map(np.asarray, result)
    np.testing.assert_allclose(result[first], captured["sites"][first][0], atol=1e-6)
    assert any(np.abs(result[site] - captured["sites"][site][0]).max() > 0.01 for site in result)
