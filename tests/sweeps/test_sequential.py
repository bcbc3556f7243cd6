"""Sequences that may be looked at, and the sweep that stops by them."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats as scipy_stats

from mechdiff import stats
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import component_at
from mechdiff.models.unet import components
from mechdiff.storage import labelled
from mechdiff.sweeps import sequential
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.stopping import StoppingRule, effect_and_influence, interim_result

KEY = jax.random.key(4)
NAMES = ("down0.block0.res", "mid.attn0.head1", "up0.block1.skip", "up0.block0.time")


def stopped(draws, half_width):
    """Means and half-widths where each row of `draws` first excludes 0, looked at after every eighth unit."""
    n = np.arange(1, draws.shape[1] + 1)
    mean = draws.cumsum(1) / n
    deviation = np.sqrt(np.maximum((draws**2).cumsum(1) / n - mean**2, 0) * n / np.maximum(n - 1, 1))
    looks = np.arange(15, draws.shape[1], 8)
    half = np.stack([half_width(int(n[look]), deviation[:, look]) for look in looks], 1)
    out = np.abs(mean[:, looks]) > half
    where = np.where(out.any(1), out.argmax(1), len(looks) - 1)
    rows = np.arange(len(draws))
    return mean[rows, looks[where]], half[rows, where]


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_a_sequence_covers_where_it_stops_and_an_ordinary_interval_does_not(shape):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 400)) if shape == "normal" else rng.gamma(2.0, size=(2000, 400)) - 2
    for true in (0.0, 0.15):
        mean, half = stopped(draws + true, lambda n, sd: stats.confidence_sequence(n, sd, 0.95, 64))
        assert (np.abs(mean - true) <= half).mean() >= 0.94
    student = lambda n, sd: scipy_stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n)
    mean, half = stopped(draws, student)
    assert (np.abs(mean) <= half).mean() < 0.85


def test_a_sequence_is_tightest_where_planned_and_solves_the_mixture_boundary():
    """At the boundary the normal-mixture martingale exp(S^2 r / 2 (n r + 1)) / sqrt(n r + 1) is 1 / alpha."""
    half = stats.confidence_sequence(200, np.array([1.0, 2.0]), 0.9, planned=50)
    twice = -2 * np.log(0.1)
    r = (twice + np.log1p(twice)) / 50
    total = 200 * half[0]
    assert np.exp(total**2 * r / (2 * (200 * r + 1))) / np.sqrt(200 * r + 1) == pytest.approx(10)
    assert half[1] == 2 * half[0]
    planned = [stats.confidence_sequence(200, np.ones(1), 0.95, p)[0] for p in (20, 200, 2000)]
    assert planned[1] == min(planned)


def test_a_skewed_sequence_is_wider_on_the_side_of_the_long_tail_and_students_where_there_is_none():
    rng = np.random.default_rng(3)
    skewed = np.exp(0.7 * rng.normal(size=(2, 40)))
    skewed[1] = 2 * skewed[0].mean() - skewed[0]  # its mirror image
    below, above = stats.skewed_sequence(skewed, 0.99, 64)
    plain = stats.confidence_sequence(40, skewed.std(-1, ddof=1), 0.99, 64)
    assert above[0] > below[0] > plain[0]
    np.testing.assert_allclose([above[1], below[1]], [below[0], above[0]])
    even = np.r_[skewed[0], skewed[1]][None]  # symmetric
    ends = stats.skewed_sequence(even, 0.99, 64)
    error = even.std(-1, ddof=1) / np.sqrt(80)
    z = stats.confidence_sequence(80, even.std(-1, ddof=1), 0.99, 64) / error
    for end in ends:
        assert scipy_stats.t.sf(end / error, 79) == pytest.approx(scipy_stats.norm.sf(z))
    assert [end[0] for end in stats.skewed_sequence(np.ones((1, 9)))] == [0, 0]


@pytest.mark.parametrize("bad", [{"confidence": 1.0}, {"n": 0}, {"planned": 0}])
def test_a_sequence_refuses_what_it_can_not_mean(bad):
    with pytest.raises(ConfigError):
        stats.confidence_sequence(**{"n": 10, "deviation": np.ones(1), **bad})


def test_influences_give_the_standard_error_of_the_pooled_increase():
    """Against the spread of the estimate over fresh data sets."""
    rng = np.random.default_rng(2)

    def draw():
        clean = rng.gamma(3.0, size=(4, 200))
        return clean, clean * rng.uniform(1.0, 1.4, size=(2, 4, 200)) + 0.1

    results = [effect_and_influence(*draw()) for _ in range(400)]
    errors = np.mean([influence.std(-1, ddof=1) / np.sqrt(200) for _, influence in results], axis=0)
    np.testing.assert_allclose(errors, np.std([estimate for estimate, _ in results], axis=0), rtol=0.12)
    np.testing.assert_allclose(results[0][1].mean(-1), 0, atol=1e-9)


@pytest.mark.parametrize("rise", [0.0, 0.05, 0.1])
def test_the_whole_rule_covers_where_it_stops(rise):
    """Simulated skewed losses, looked at block by block until apart from 0 or narrow; the truth is known."""
    rng, runs, total = np.random.default_rng(5), 300, 640
    rule = StoppingRule(4.0, 0.9, joint=False)
    covered, sizes = 0, []
    for _ in range(runs):
        clean = rng.gamma(2.0, size=(2, total)) * [[1.0], [0.2]]
        loss = (
            clean * (1 + rise * rng.gamma(2.0, 0.5, size=(1, 2, total)))
            + rng.normal(size=(1, 2, total)) * 0.6
        )
        loss[0, 1] = clean[1] * (1 + rise)
        for size in range(32, total + 1, 16):
            result = interim_result(clean[:, :size], loss[..., :size], NAMES[:1], rule)
            if result.decided.all():
                break
        sizes.append(size)
        covered += bool(result.low[0] <= 100 * rise <= result.high[0])
    assert covered >= 0.9 * runs
    assert len(set(sizes)) > 2  # it does stop by what it sees


def test_the_fixed_design_is_the_smallest_with_which_ordinary_intervals_of_all_pass():
    rng, rises = np.random.default_rng(6), np.array([0.0, 0.02, 0.5])[:, None, None]
    clean = rng.gamma(2.0, size=(2, 64))
    loss = clean * (1 + rises) + 0.6 * rng.normal(size=(3, 2, 64))
    result = interim_result(clean, loss, NAMES[:3], StoppingRule(4.0, 0.9, joint=False))
    estimate, influence = effect_and_influence(clean, loss)
    half = scipy_stats.norm.ppf(0.95) * influence.std(-1, ddof=1)  # of one image
    passes = lambda n: (half / np.sqrt(n) <= np.maximum(2.0, np.abs(estimate))).all()
    images, rest = divmod(result.fixed, 3)
    assert rest == 0 and images > 32 and passes(images) and not passes(images - 1)
    assert result.spent == 3 * 64


@pytest.fixture(scope="module")
def certify(denoiser):
    images = np.random.default_rng(1).uniform(-1, 1, (64, 8, 8, 3)).astype(np.float32)
    chosen = [component_at(components(denoiser.unet), name) for name in NAMES]

    def run(folder, **rule):
        eval_set = EvalSet(images, [5, 30], KEY)
        return sequential.sequential_sweep(
            denoiser, eval_set, StoppingRule(**rule), folder, chosen=chosen, block=8
        )

    return images, chosen, run


def test_estimates_are_those_of_a_plain_sweep_on_the_same_images(denoiser, certify, tmp_path):
    images, chosen, run = certify
    result = run(tmp_path / "a", width=2.0)
    config = SweepConfig(ablations=("zero",), image_block=8)
    swept = ablation_sweep(
        denoiser, EvalSet(images, [5, 30], KEY), tmp_path / "b", config=config, chosen=chosen
    )
    for i, size in enumerate(result.images):
        part = swept.isel(image=slice(0, size), ablation=0, component=i)
        ratio = part.loss.mean("image") / part.clean_loss.mean("image")
        assert result.estimate[i] == pytest.approx(float(100 * (ratio.mean() - 1)), rel=1e-4, abs=1e-3)
    narrow, apart = result.high - result.low <= 2.0, (result.low > 0) | (result.high < 0)
    np.testing.assert_array_equal(result.decided, narrow | apart)
    assert result.spent == result.images.sum() and (result.images >= 32).all()
    assert (result.low < result.estimate).all() and (result.estimate < result.high).all()


def test_images_nested_in_timesteps_are_each_timesteps_own(denoiser, certify, tmp_path):
    images, chosen, _ = certify
    nested = np.stack([images[:32], images[32:]])
    eval_set = EvalSet(nested, [5, 30], KEY)
    result = sequential.sequential_sweep(
        denoiser, eval_set, StoppingRule(1e6), tmp_path / "a", chosen=chosen, block=8
    )
    config = SweepConfig(ablations=("zero",), image_block=8)
    swept = ablation_sweep(denoiser, eval_set, tmp_path / "b", config=config, chosen=chosen).isel(ablation=0)
    part = swept.isel(image=slice(0, 32))
    ratio = part.loss.mean("image") / part.clean_loss.mean("image")
    np.testing.assert_allclose(result.estimate, 100 * (ratio.mean("t") - 1), rtol=1e-4, atol=1e-3)
    assert (result.images == 32).all()


def test_it_stops_when_all_is_certain_and_else_when_images_run_out(certify, tmp_path):
    _, _, run = certify
    assert (run(tmp_path, width=1e6).images == 32).all()
    open_ended = run(tmp_path, width=1e-9, confidence=1 - 1e-13)
    assert open_ended.images.max() == 64


def test_a_killed_run_resumes_to_the_same_numbers_and_repeats_nothing(certify, tmp_path, monkeypatch):
    _, _, run = certify
    whole = run(tmp_path / "whole", width=0.5)
    put, written = labelled.put, []

    def dying(*args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(args[1]["loss"])
        put(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(labelled, "put", dying)
        run(tmp_path / "broken", width=0.5)
    monkeypatch.setattr(labelled, "put", lambda *args: (written.append(args[1]["loss"]), put(*args)))
    resumed = run(tmp_path / "broken", width=0.5)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(resumed, field.name), getattr(whole, field.name))
    assert len({str(where) for where in written}) == len(written)


def test_bad_requests_are_refused(certify, tmp_path):
    _, _, run = certify
    with pytest.raises(ConfigError, match="width=0"):
        run(tmp_path, width=0)
    with pytest.raises(ConfigError, match="confidence=-1 must lie between 0 and 1"):
        StoppingRule(2.0, confidence=-1)  # shared among 3 components, that is 0.33 of each
