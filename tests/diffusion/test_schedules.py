"""Schedules against float64 definitions, published values and hand-made cases."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.core.config import DiffusionConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.schedules import (
    NoiseSchedule,
    cosine_schedule,
    ddim_timesteps,
    linear_schedule,
    make_schedule,
    timesteps_by_log_snr,
)

SCHEDULES = {"linear": linear_schedule(), "cosine": cosine_schedule()}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def test_tables_agree_with_float64_products_of_the_betas():
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    schedule = linear_schedule()
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-6)
    np.testing.assert_allclose(schedule.alphas_bar, bar, rtol=1e-6)
    np.testing.assert_allclose(schedule.log_alphas_bar, np.log(bar), rtol=1e-6)
    np.testing.assert_allclose(schedule.sqrt_alphas_bar, np.sqrt(bar), rtol=1e-6)
    np.testing.assert_allclose(schedule.sqrt_one_minus_alphas_bar, np.sqrt(1 - bar), rtol=1e-6)
    np.testing.assert_allclose(schedule.log_snr, np.log(bar / (1 - bar)), rtol=1e-5, atol=1e-6)


def test_linear_schedule_ends_at_the_published_signal_level():
    # Ho et al. 2020, section 4: a KL of 1e-5 bits a dimension to the prior, hence abar_T of about 4e-5.
    np.testing.assert_allclose(linear_schedule().sqrt_alphas_bar[-1], 0.006353, atol=2e-6)


def test_cosine_schedule_follows_its_closed_form_except_where_beta_is_cut():
    schedule = cosine_schedule(100)
    f = np.cos(np.pi / 2 * (np.arange(101) / 100 + 0.008) / 1.008) ** 2
    np.testing.assert_allclose(schedule.alphas_bar[:-1], (f / f[0])[1:-1], rtol=1e-5)
    np.testing.assert_allclose(schedule.betas[-1], 0.999, rtol=1e-6)  # 1 without the cut


def test_every_table_is_float32_finite_and_monotone(schedule):
    for name, table in schedule._asdict().items():
        assert table.dtype == np.float32 and np.all(np.isfinite(table)), name
        sign = 1 if name in ("betas", "sqrt_one_minus_alphas_bar") else -1
        change = sign * np.diff(np.asarray(table))
        assert np.all(change >= 0) and np.any(change > 0), name
    assert np.all(np.diff(np.asarray(schedule.log_snr)) < 0)


def test_schedule_is_a_pytree_that_keeps_its_step_count_under_jit(schedule):
    assert schedule.steps == 1000
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(schedule)
    assert isinstance(doubled, NoiseSchedule) and doubled.steps == 1000


def test_make_schedule_reads_the_config():
    config = DiffusionConfig(schedule="linear", steps=7, beta_start=0.01, beta_end=0.5)
    np.testing.assert_array_equal(make_schedule(config).betas, linear_schedule(7, 0.01, 0.5).betas)
    cosine = make_schedule(DiffusionConfig(schedule="cosine", steps=7))
    np.testing.assert_array_equal(cosine.betas, cosine_schedule(7).betas)


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.1, 1.0), (-0.1, 0.2)])
def test_betas_outside_the_unit_interval_are_refused(start, end):
    with pytest.raises(ConfigError, match="beta"):
        linear_schedule(5, start, end)


def test_timesteps_are_even_in_log_snr_when_levels_are_dense(schedule):
    t = timesteps_by_log_snr(schedule, 8)
    log_snr = np.asarray(schedule.log_snr, np.float64)
    gaps = -np.diff(log_snr[t])
    spacing = np.abs(np.diff(log_snr))[np.minimum(t, schedule.steps - 2)].max()  # rounding moves half of it
    np.testing.assert_allclose(gaps, gaps.mean(), atol=spacing)
    assert t[0] == 10 and t[-1] == 989  # the inner 98 % of t


@settings(max_examples=60)
@given(name=st.sampled_from(["linear", "cosine"]), steps=st.integers(2, 60), data=st.data())
def test_timesteps_by_log_snr_are_strictly_increasing_levels(name, steps, data):
    n = data.draw(st.integers(1, steps))
    schedule = make_schedule(DiffusionConfig(schedule=name, steps=steps))
    t = timesteps_by_log_snr(schedule, n)
    assert t.shape == (n,) and np.all(np.diff(t) > 0) and t[0] >= 0 and t[-1] < steps
    if n == steps:
        np.testing.assert_array_equal(t, np.arange(steps))


@given(steps=st.integers(1, 2000), data=st.data())
def test_ddim_timesteps_are_even_distinct_and_end_at_the_noisiest_level(steps, data):
    n = data.draw(st.integers(1, steps))
    t = ddim_timesteps(steps, n)
    gaps = np.diff(t, prepend=-1)
    assert t.shape == (n,) and t[-1] == steps - 1
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_ddim_timesteps_of_a_hand_case():
    np.testing.assert_array_equal(ddim_timesteps(1000, 4), [249, 499, 749, 999])


@pytest.mark.parametrize("n", [0, 11])
def test_more_timesteps_than_levels_or_none_are_refused(n):
    with pytest.raises(ConfigError, match=f"{n} timesteps"):
        ddim_timesteps(10, n)
    with pytest.raises(ConfigError, match=f"{n} timesteps"):
        timesteps_by_log_snr(linear_schedule(10), n)
