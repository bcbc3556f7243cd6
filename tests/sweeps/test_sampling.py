"""Sampling sweeps against plain sampling under an intervention, and their count of network calls."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mechdiff.core import devices
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.samplers import (
    Sampler,
    ddim_step,
    ddpm_step,
    initial_noise,
    keys_of_steps,
    one_step,
    sample,
)
from mechdiff.diffusion.schedules import ddim_timesteps, linear_schedule
from mechdiff.interventions.build import ablate, windowed
from mechdiff.interventions.record import stack_size
from mechdiff.models.unet import components, denoise
from mechdiff.sweeps import activations, sampling, sampling_plan
from mechdiff.sweeps.execution import drawing, rollout

KEY = jax.random.key(8)
SAMPLES = 3
LEVELS = ddim_timesteps(50, 6)
WINDOWS = rollout.even_windows(LEVELS, 3)


def test_samples_are_drawn_in_50_steps_unless_there_are_fewer_but_never_in_fewer_than_asked_for(
    denoiser,
):
    few, many = (dataclasses.replace(denoiser, schedule=linear_schedule(steps)) for steps in (8, 1000))
    assert [len(drawing.sampled_timesteps(network)) for network in (few, many)] == [8, 50]
    assert len(drawing.sampled_timesteps(many, 100)) == 100
    with pytest.raises(ConfigError, match="9 timesteps wanted of a schedule with 8; choose 1 to 8"):
        drawing.sampled_timesteps(few, 9)


@pytest.fixture(scope="module")
def chosen(denoiser):
    names = {"down0.block0.res", "mid.attn0.head1", "up0.block1.skip", "up0.block0.time"}
    return [component for component in components(denoiser.unet) if component.name in names]


@pytest.fixture(scope="module")
def means(denoiser):
    images = np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    return {
        "mean": activations.activation_means(denoiser, EvalSet(images, LEVELS, jax.random.key(9)), block=4)
    }


@pytest.fixture(scope="module")
def plain(denoiser):
    """Ordinary sampling under an intervention."""

    @functools.partial(jax.jit, static_argnames="step_fn")
    def draw(intervention, step_fn):
        predict = functools.partial(denoise, denoiser.unet, denoiser.schedule, denoiser.params, intervention)
        shape = (SAMPLES, 8, 8, 3)
        return sample(predict, Sampler(denoiser.schedule, step_fn, LEVELS), KEY, shape)

    return lambda intervention, step_fn=ddim_step: np.asarray(draw(intervention, step_fn))


@pytest.fixture(scope="module")
def swept(denoiser, chosen, means, tmp_path_factory):
    return sweep(denoiser, chosen, means, tmp_path_factory.mktemp("swept"), chunk=6)


def sweep(denoiser, chosen, means, folder, chunk):
    return sampling.sampling_sweep(
        denoiser,
        sampling.SampleSet(LEVELS, SAMPLES, KEY),
        WINDOWS,
        folder,
        config=SweepConfig(ablations=("zero", "mean"), image_block=2, chunk=chunk),
        replacements=means,
        chosen=chosen,
    )


def rms(a, b):
    return np.sqrt(((a - b) ** 2).mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("window", range(3))
def test_distance_is_that_of_plain_sampling_with_a_window(denoiser, chosen, plain, swept, window):
    clean = plain(denoiser.identity)
    for component in chosen:
        changed = plain(windowed(ablate(denoiser.identity, [component]), *WINDOWS[window]))
        result = swept.sel(ablation="zero", component=component.name).isel(window=window)
        np.testing.assert_allclose(result.distance, rms(changed, clean), rtol=2e-3, atol=2e-5)
        np.testing.assert_allclose(
            result.set_distance, sampling_plan.energy_distance(clean, changed), rtol=5e-3, atol=2e-5
        )
    assert (swept.distance.sel(ablation="zero") > 1e-4).all()


def test_fills_follow_the_step(denoiser, chosen, means, swept):
    """Step by step in a Python loop, with the fill of each level."""
    component, (low, high) = chosen[1], WINDOWS[1]
    down, indices = LEVELS[::-1], np.arange(SAMPLES)
    start, step_keys = jax.jit(
        lambda key: (initial_noise(key, indices, (8, 8, 3)), keys_of_steps(key, down))
    )(KEY)

    @jax.jit
    def step(params, intervention, key, x, t, t_prev):
        predict = functools.partial(denoise, denoiser.unet, denoiser.schedule, params, intervention)
        return one_step(predict, Sampler(denoiser.schedule), key, x, t, t_prev, indices)

    x = {"clean": start, "changed": start}
    for i, (t, t_prev, step_key) in enumerate(zip(down, np.append(down, -1)[1:], step_keys, strict=True)):
        replacements = activations.replacements_at(means["mean"], len(down) - 1 - i)
        acting = ablate(denoiser.identity, [component], "mean", replacements)
        acts = {"clean": denoiser.identity, "changed": acting if low <= t < high else denoiser.identity}
        for arm, intervention in acts.items():
            x[arm] = step(denoiser.params, intervention, step_key, x[arm], t, np.int32(t_prev))
    x = jax.tree.map(np.asarray, x)
    result = swept.sel(ablation="mean", component=component.name).isel(window=1)
    np.testing.assert_allclose(result.distance, rms(x["changed"], x["clean"]), rtol=2e-3, atol=2e-5)


def test_ddpm_shares_the_noise_of_every_step(denoiser, chosen, plain, tmp_path):
    result = sampling.sampling_sweep(
        denoiser,
        sampling.SampleSet(LEVELS, SAMPLES, KEY, step_fn=ddpm_step),
        WINDOWS[2:],
        tmp_path,
        chosen=chosen[:1],
    )
    late = windowed(ablate(denoiser.identity, chosen[:1]), *WINDOWS[2])
    expected = rms(plain(late, ddpm_step), plain(denoiser.identity, ddpm_step))
    np.testing.assert_allclose(result.distance.values.ravel(), expected, rtol=2e-3, atol=2e-5)


def test_network_calls_are_those_of_the_closed_formula_and_one_program_serves_all_windows(
    denoiser, chosen, tmp_path, monkeypatch
):
    inner, calls, traces = rollout.roll.__wrapped__, [], []

    @functools.partial(jax.jit, static_argnames=("step_fn", "clip", "mesh"))
    def traced(denoiser, stacked, *args, **options):
        traces.append(stack_size(stacked))
        return inner(denoiser, stacked, *args, **options)

    def counting(denoiser, stacked, steps, samples, **options):
        calls.append(stack_size(stacked) * len(samples.x_t) * (steps.stop - steps.start))
        return traced(denoiser, stacked, steps, samples, **options)

    monkeypatch.setattr(rollout, "roll", counting)
    config = SweepConfig(ablations=("zero",), image_block=2, chunk=2)
    samples = sampling.SampleSet(LEVELS, 4, KEY)
    sampling.sampling_sweep(denoiser, samples, WINDOWS, tmp_path, config=config, chosen=chosen)
    shared, naive = rollout.network_calls(LEVELS, WINDOWS, len(chosen))
    assert sum(calls) == 4 * shared
    steps, count, windows = len(LEVELS), len(chosen), len(WINDOWS)
    assert (shared, naive) == (steps + count * steps * (windows + 1) // 2, count * windows * steps)
    assert traces == [1, 2]  # the clean walk, the changed walk


def test_devices_share_a_walk_and_change_no_number(denoiser, chosen, means, swept, tmp_path, monkeypatch):
    sizes, over = [], devices.over
    monkeypatch.setattr(devices, "over", lambda images: (sizes.append(images), over(1))[1])
    alone = sweep(denoiser, chosen, means, tmp_path, chunk=12)
    assert over(2).size == 2 and sizes == [2]  # `swept` ran on both devices
    for name in ("distance", "set_distance"):
        np.testing.assert_allclose(swept[name], alone[name], rtol=1e-3, atol=2e-5)


def test_ten_windows_save_nearly_half():
    levels = ddim_timesteps(1000, 50)
    shared, naive = rollout.network_calls(levels, rollout.even_windows(levels, 10), 80)
    assert naive / shared == pytest.approx(1.80, abs=0.02)


@pytest.mark.parametrize("steps, count", [(50, 10), (7, 3), (5, 5), (6, 1)])
def test_even_windows_cover_every_visited_level_once(steps, count):
    levels = ddim_timesteps(1000, steps)
    windows = rollout.even_windows(levels, count)
    inside = np.array([[low <= level < high for level in levels] for low, high in windows])
    assert (inside.sum(0) == 1).all() and np.ptp(inside.sum(1)) <= 1
    assert list(windows) == sorted(windows, reverse=True)


def test_energy_distance_of_shifted_normals_is_the_closed_form():
    """In one dimension |X - Y| of N(0, 1) and N(m, 1) is a folded normal of variance 2."""
    from scipy.stats import foldnorm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000, 1, 1, 1))
    folded = lambda mean: foldnorm.mean(mean / np.sqrt(2), scale=np.sqrt(2))
    expected = 2 * folded(1.0) - 2 * folded(0.0)
    assert sampling_plan.energy_distance(a, b + 1) == pytest.approx(expected, abs=0.08)


def test_energy_distance_is_unbiased_where_sets_share_their_noise():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(2, 400, 6, 2, 2, 1))
    results = [sampling_plan.energy_distance(a, b) for a, b in zip(*draws, strict=True)]
    assert abs(np.mean(results)) < 4 * np.std(results) / 20


def test_bad_windows_kinds_and_counts_are_refused(denoiser, chosen, tmp_path):
    samples = sampling.SampleSet(LEVELS, 2, KEY)
    run = functools.partial(
        sampling.sampling_sweep, denoiser, sample_set=samples, chosen=chosen, folder=tmp_path
    )
    with pytest.raises(ConfigError, match=r"\[9, 10\) holds none"):
        run(windows=[(9, 10)])
    with pytest.raises(ConfigError, match="windows: none is given"):
        run(windows=[])
    with pytest.raises(ConfigError, match=r"windows: \(0, 60\) is given twice"):
        run(windows=[(0, 60), (0, 60)])
    with pytest.raises(ConfigError, match=r"timesteps=\[1, 5000\]: need increasing timesteps in"):
        run(windows=WINDOWS, sample_set=sampling.SampleSet([1, 5000], 2, KEY))
    with pytest.raises(ConfigError, match="mean ablation needs replacements"):
        run(windows=WINDOWS, config=SweepConfig(ablations=("mean",)))
    with pytest.raises(ConfigError, match="samples=1 is too small; at least 2"):
        sampling.SampleSet(LEVELS, 1, KEY)
    with pytest.raises(ConfigError, match=r"clip=-1\.0: expected True, False or a number that"):
        sampling.SampleSet(LEVELS, 2, KEY, clip=-1.0)  # all images would be the same, and no ablation costly
    with pytest.raises(ConfigError, match="clip=nan: expected True, False or a number"):
        Sampler(denoiser.schedule, clip=np.nan)
    with pytest.raises(ConfigError, match="choose 1 to 6"):
        rollout.even_windows(LEVELS, 7)
