"""Second-order effects of pairs against finite differences and exact ablations, and which are verified."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechdiff.circuits import interactions, redundancy, score_agreement
from mechdiff.core import keys
from mechdiff.core.errors import ConfigError, NumericsError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.build import set_gate
from mechdiff.interventions.components import component_at
from mechdiff.models.unet import components, denoise

KEY = jax.random.key(3)
LEVELS = [4]
NAMES = ("down0.block0.res", "mid.attn0.head0", "up0.block0.skip")


@pytest.fixture(scope="module")
def chosen(denoiser):
    return [component_at(components(denoiser.unet), name) for name in NAMES]


@pytest.fixture(scope="module")
def loss(denoiser, images):
    """Loss per image with the components scaled by the doses given."""

    @jax.jit
    def run(intervention):
        noise = image_noise(KEY, jnp.arange(6), images.shape[1:])
        at = jnp.full(6, LEVELS[0])
        x_t = q_sample(denoiser.schedule, images, at, noise)
        eps = denoise(denoiser.unet, denoiser.schedule, denoiser.params, intervention, x_t, at)
        return jnp.mean((eps - noise) ** 2, axis=(1, 2, 3))

    def dosed(doses):
        point = denoiser.identity
        for component, dose in doses:
            point = set_gate(point, [component], dose)
        return np.asarray(run(point), np.float64)

    return dosed


@pytest.fixture(scope="module")
def exact(denoiser, images, chosen):
    a, b, c = chosen
    return interactions.pair_effects(denoiser, EvalSet(images, LEVELS, KEY), [(a, b), (a, c), (b, c)])


def test_pair_scores_are_mixed_differences_of_the_loss(denoiser, images, chosen, loss):
    scored = interactions.pair_scores(denoiser, EvalSet(images, LEVELS, KEY), chosen, block=4)
    result = scored.curvature.isel(t=0)
    np.testing.assert_allclose(result, result.T, rtol=1e-3, atol=1e-5)
    assert float(scored.clean_loss[0]) == pytest.approx(loss([]).mean(), rel=1e-5)
    h, (a, _, c) = 2.0**-4, chosen
    at = lambda x, y: loss([(a, 1 + x), (c, 1 + y)]).mean()
    mixed = (at(h, h) - at(h, -h) - at(-h, h) + at(-h, -h)) / (4 * h * h)
    assert float(result.sel(a=NAMES[0], b=NAMES[2])) == pytest.approx(mixed, rel=0.05, abs=2e-3)


def test_exact_interaction_is_that_of_single_and_double_ablations(chosen, loss, exact):
    a, b, c = chosen
    out = lambda *components: loss([(component, 0.0) for component in components])
    for row, (first, second) in enumerate([(a, b), (a, c), (b, c)]):
        expected = out(first, second) - out(first) - out(second) + out()
        np.testing.assert_allclose(exact.interaction[row, 0], expected, atol=2e-6)
        np.testing.assert_allclose(exact.without_b[row, 0], out(second), atol=2e-6)


def test_the_best_pairs_and_an_audit_are_verified_on_other_images(denoiser, images, chosen, exact):
    others = np.random.default_rng(2).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    few = redundancy.PairConfig(top=2, audit=5)
    result = redundancy.verified_pairs(denoiser, EvalSet(images, LEVELS, KEY), others, chosen, config=few)
    scored = interactions.pair_scores(
        denoiser, EvalSet(others, LEVELS, keys.stream(KEY, "pair scores")), chosen
    )
    percent = (100 * scored.curvature / scored.clean_loss).isel(t=0)
    expected = [float(percent.sel(a=a, b=b)) for a, b in zip(result.a.values, result.b.values, strict=True)]
    np.testing.assert_allclose(result.score, expected, rtol=1e-6)
    assert (np.diff(abs(result.score)) <= 0).all() and result.audited.values.tolist() == [False, False, True]

    place = {(a, b): row for row, (a, b) in enumerate(zip(exact.a.values, exact.b.values, strict=True))}
    rows = [place[pair] for pair in zip(result.a.values, result.b.values, strict=True)]
    clean = exact.clean_loss.values[0]
    estimate = 100 * exact.interaction.values[rows, 0].mean(-1) / clean.mean()
    np.testing.assert_allclose(result.estimate, estimate, rtol=1e-3, atol=1e-3)
    assert ((result.low <= result.estimate) & (result.estimate <= result.high)).all()
    # Six images have 64 flips of signs: no p value is below 2 / 64, nor the smallest of three by Holm 6 / 64.
    assert ((result.p >= 6 / 64) & (result.p <= 1)).all()
    alone = 100 * (exact.without_a.values[rows, 0].mean(-1) / clean.mean() - 1)
    np.testing.assert_allclose(result.single_a, alone, rtol=1e-3, atol=1e-3)

    agreed = redundancy.pair_agreement(result, k=1)["verified"]
    expected = score_agreement.agreement(result.score.values, result.estimate.values, 1)
    assert dataclasses.astuple(agreed) == dataclasses.astuple(expected)
    people = np.repeat(np.arange(len(images) // 2), 2)  # two images of each
    by_person = redundancy.verified_pairs(
        denoiser, EvalSet(images, LEVELS, KEY), others, chosen, config=few, people=people
    )
    np.testing.assert_array_equal(by_person.estimate, result.estimate)
    assert (by_person.p >= 3 * 2 / 8).all() and not by_person.low.equals(
        result.low
    )  # 8 flips of three people

    lines = redundancy.pair_lines(result)
    largest = int(np.argmax(np.abs(result.estimate.values)))
    assert lines[1].split()[:3] == [result.a.values[largest], "+", result.b.values[largest]]
    assert f"{float(result.estimate[largest]):.3f}" in lines[1]
    assert sum(line.endswith("audited") for line in lines) == 1
    # A single pair has no rank correlation, and no largest.
    assert re.fullmatch(r"audited: 1 pair, equal signs (0|100)%", lines[-1])
    two = dataclasses.replace(expected, n=2, spearman=float("nan"), sign=0.5, recall=0.0)
    line = redundancy.agreement_line("verified", two)
    assert line == "verified: 2 pairs, equal signs 50%, the largest does not have the best score"


@pytest.mark.parametrize("bad", [{"top": 0}, {"audit": -1}])
def test_bad_requests_of_pairs_are_refused(bad):
    with pytest.raises(ConfigError, match="at least"):
        redundancy.PairConfig(**bad)


def test_a_pair_whose_loss_overflows_is_refused(denoiser, images, chosen, monkeypatch):
    measure = interactions.Engine.measure

    def overflowed(self, *args):
        losses = measure(self, *args)
        return losses._replace(loss=np.where(np.arange(3)[:, None] == 2, np.inf, losses.loss))

    monkeypatch.setattr(interactions.Engine, "measure", overflowed)
    with pytest.raises(NumericsError, match="losses of 1 of 3 ablated components and pairs are NaN or Inf"):
        interactions.pair_effects(denoiser, EvalSet(images, LEVELS, KEY), [tuple(chosen[:2])])


def test_a_single_component_makes_no_pair(denoiser, images, chosen):
    with pytest.raises(ConfigError, match="a pair needs two"):
        redundancy.verified_pairs(denoiser, EvalSet(images, LEVELS, KEY), images, chosen[:1])
