"""Parameterizations against closed forms: all exact denoisers of a Gaussian find the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechdiff.core.errors import ConfigError
from mechdiff.diffusion import process
from mechdiff.diffusion.parameterization import (
    KINDS,
    Parameterization,
    edm_schedule,
    flow_schedule,
    schedule_from_sigmas,
)
from mechdiff.diffusion.schedules import linear_schedule, timesteps_by_log_snr

MEAN, SPREAD = 0.3, 0.7  # of the Gaussian data
EVERY = [
    *(Parameterization(output=kind) for kind in KINDS),
    Parameterization(output="edm", sigma_data=1.3),
    Parameterization(output="flow", noise_at=0),
    Parameterization(output="flow", time_scale=1000.0),
]
T = np.array([0, 1, 40, 500, 990, 999], np.int32)
SCHEDULES = {"linear": linear_schedule(), "edm": edm_schedule(), "flow": flow_schedule()}
# Compiled as a whole: operation by operation, each would be a program of its own.
inputs = jax.jit(lambda schedule, x_t, t, kind: kind.inputs(schedule, x_t, t), static_argnames="kind")
to_eps = jax.jit(
    lambda schedule, x_t, t, output, kind: kind.to_eps(schedule, x_t, t, output), static_argnames="kind"
)
target = jax.jit(
    lambda schedule, x0, t, noise, kind: kind.target(schedule, x0, t, noise), static_argnames="kind"
)
each = pytest.mark.parametrize("parameterization", EVERY, ids=str)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def exact(parameterization, x, time):
    """What the exact network returns for data N(MEAN, SPREAD^2), in its own terms (float64).

    x = a x_0 + b noise has E[x_0 | x] = MEAN + a SPREAD^2 / (a^2 SPREAD^2 + b^2) (x - a MEAN).
    """
    x, time = np.asarray(x, np.float64), np.asarray(time, np.float64) / parameterization.time_scale
    if parameterization.output == "flow":
        s = time if parameterization.noise_at == 1 else 1 - time
        signal, noise = 1 - s, s
    else:
        sigma = np.exp(4 * time) if parameterization.output in ("edm", "consistency") else time
        signal, noise = np.ones_like(sigma), sigma
    signal, noise = signal[:, None], noise[:, None]
    if parameterization.output in ("edm", "consistency"):
        x = x * np.sqrt(noise**2 + parameterization.sigma_data**2)
    clean = MEAN + signal * SPREAD**2 / (signal**2 * SPREAD**2 + noise**2) * (x - signal * MEAN)
    match parameterization.output:
        case "edm_denoised":
            return clean
        case "edm":
            total = noise**2 + parameterization.sigma_data**2
            skip, out = (
                parameterization.sigma_data**2 / total,
                noise * parameterization.sigma_data / total**0.5,
            )
            return (clean - skip * x) / out
        case "consistency":
            data, above = parameterization.sigma_data, noise - parameterization.sigma_min
            skip = data**2 / (above**2 + data**2)
            return (clean - skip * x) / (data * above / np.sqrt(noise**2 + data**2))
        case _:
            velocity = (x - signal * clean) / noise - clean
            return velocity if parameterization.noise_at == 1 else -velocity


@each_schedule
@pytest.mark.parametrize("parameterization", EVERY[3:], ids=str)
def test_exact_network_gives_the_exact_noise(parameterization, schedule):
    rng = np.random.default_rng(0)
    x_t = rng.normal(size=(len(T), 5)).astype(np.float32)
    abar = np.asarray(schedule.alphas_bar, np.float64)[T][:, None]
    scale = np.asarray(schedule.sqrt_one_minus_alphas_bar, np.float64)[T][:, None]
    noise = scale * (x_t - np.sqrt(abar) * MEAN) / (abar * SPREAD**2 + scale**2)  # -scale times the score
    x, time = inputs(schedule, x_t, T, kind=parameterization)
    output = exact(parameterization, x, time).astype(np.float32)
    eps = to_eps(schedule, x_t, T, output, kind=parameterization)
    # the noise is what is left of x_t when the signal is taken off: digits go where there is little noise
    tolerance = 3e-5 / scale
    assert np.all(np.abs(eps - noise) < np.maximum(tolerance, 3e-5))


@pytest.mark.parametrize("output", ["epsilon", "v_prediction", "sample"])
def test_discrete_ones_are_those_of_the_process(output):
    x0, noise, answer = np.random.default_rng(0).normal(size=(3, len(T), 2, 2, 3)).astype(np.float32)
    schedule, parameterization = linear_schedule(), Parameterization(output=output)
    np.testing.assert_allclose(
        target(schedule, x0, T, noise, kind=parameterization),
        jax.jit(process.prediction_target, static_argnums=0)(output, schedule, x0, T, noise),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        to_eps(schedule, x0, T, answer, kind=parameterization),
        jax.jit(process.to_eps, static_argnums=0)(output, schedule, x0, T, answer),
        rtol=1e-4,
        atol=1e-4,
    )
    x, time = parameterization.inputs(schedule, x0, T)
    assert x is x0 and time is T


def test_targets_of_edm_and_flow_are_their_definitions():
    schedule = edm_schedule()
    x0, noise = np.full((len(T), 1), 0.4, np.float32), np.full((len(T), 1), -1.1, np.float32)
    sigma = np.exp(-np.asarray(schedule.log_snr, np.float64)[T] / 2)[:, None]
    flow = target(schedule, x0, T, noise, kind=Parameterization(output="flow"))
    np.testing.assert_allclose(flow, noise - x0, rtol=1e-6)
    skip = 0.25 / (sigma**2 + 0.25)
    edm = (x0 - skip * (x0 + sigma * noise)) / (sigma * 0.5 / np.sqrt(sigma**2 + 0.25))
    target_of_edm = target(schedule, x0, T, noise, kind=Parameterization(output="edm"))
    np.testing.assert_allclose(target_of_edm, edm, rtol=1e-5)


@each
def test_denoising_loss_is_the_training_loss_in_units_of_noise(parameterization):
    schedule, t = edm_schedule(), np.array([300, 500, 700], np.int32)
    x0, noise = np.random.default_rng(1).normal(size=(2, 3, 2, 2, 3)).astype(np.float32)
    network = lambda x, time: jnp.tanh(x) + 1e-3 * time[:, None, None, None]

    def denoise(x_t, t):
        return parameterization.to_eps(schedule, x_t, t, network(*parameterization.inputs(schedule, x_t, t)))

    @jax.jit
    def losses(x0, t, noise):
        weight = parameterization.coefficients(schedule, t).from_output ** 2
        training = parameterization.training_loss(network, schedule, x0, t, noise)
        return weight * training, process.denoising_loss(denoise, schedule, x0, t, noise)

    np.testing.assert_allclose(*losses(x0, t, noise), rtol=1e-3)


def test_schedules_are_spread_evenly_in_log_sigma():
    schedule = edm_schedule(1000)
    sigma = np.exp(-np.asarray(schedule.log_snr, np.float64) / 2)
    np.testing.assert_allclose(sigma[[0, -1]], [0.002, 80], rtol=1e-5)
    steps = np.diff(np.asarray(schedule.log_snr)[timesteps_by_log_snr(schedule, 20)])
    assert np.all(np.abs(steps / steps.mean() - 1) < 0.05)


def test_sigma_schedule_agrees_with_a_schedule_of_betas():
    ours = linear_schedule(100)
    other = schedule_from_sigmas(np.exp(-np.asarray(ours.log_snr, np.float64) / 2))
    for name, table in ours._asdict().items():
        np.testing.assert_allclose(getattr(other, name), table, rtol=1e-4, atol=1e-7, err_msg=name)


def test_flow_times_are_the_middles_of_equal_parts():
    schedule = flow_schedule(10)
    _, time = inputs(
        schedule, np.ones((10, 1), np.float32), np.arange(10), kind=Parameterization(output="flow")
    )
    np.testing.assert_allclose(time, (np.arange(10) + 0.5) / 10, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parameterization(output="velocity"), "unknown parameterization 'velocity'"),
        (lambda: Parameterization(sigma_data=0.0), "sigma_data=0.0 must be above 0"),
        (lambda: Parameterization(noise_at=2), "noise_at=2 must be 1 .* or 0"),
        (lambda: Parameterization(time_scale=-1.0), "time_scale=-1.0 must be above 0"),
        (lambda: schedule_from_sigmas([2.0, 1.0]), "go from 2.0 to 1.0, reverse them"),
        (lambda: schedule_from_sigmas([0.0, 1.0]), "above 0, smallest first"),
    ],
)
def test_bad_input_gets_one_line(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
