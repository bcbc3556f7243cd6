"""Memory is predicted before a run, and the run is cut to what there is."""

import dataclasses

import jax
import numpy as np
import pytest
from reference.networks import identity_of, random_params

from mechdiff.core import devices
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.presets import preset
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import linear_schedule
from mechdiff.interventions.build import leave_one_out
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.stages import stages
from mechdiff.models.unet import components, identity_intervention
from mechdiff.sweeps.activations import activation_means
from mechdiff.sweeps.execution import engine, footprint, forecast, memory, shared_prefix

UNET = preset("tiny").unet
IDENTITY, PARAMS = identity_of(UNET), random_params(UNET)
EVERYTHING = leave_one_out(IDENTITY, components(UNET))[1]
KEY = jax.random.key(0)
SUBJECT = Denoiser("small", UNET, linear_schedule(), PARAMS, IDENTITY)


def runner(rows=0, together=False):
    return engine.Engine(SUBJECT, rows, tuple(jax.devices()[:1]), together)


def test_a_pass_takes_the_rows_that_flow_and_the_skips_of_those_that_there_were():
    """By hand, for a network of which the widest point is the last block."""
    last = len(stages(UNET)) - 1
    flat = UNET.image_size**2 * UNET.widths[0] * 4
    alone = footprint.pass_bytes(UNET, (0,) * (last + 1))
    late = footprint.pass_bytes(UNET, (*(0,) * last, 5))
    early = footprint.pass_bytes(UNET, (5, *(0,) * last))
    assert alone <= late < early
    assert early - alone >= 5 * 2 * flat  # at the least what goes in and what comes out
    assert footprint.pass_bytes(UNET, (5, *(0,) * last), batch=3) > 2 * early


def test_a_network_too_large_for_the_working_set_takes_more_rows_if_memory_is_free(monkeypatch):
    monkeypatch.setattr(engine, "CPU_WORKING_SET", 1)
    most = min(engine.CPU_WIDTHS[0], len(components(UNET)))
    assert runner()._size(EVERYTHING, 4) == runner(together=True)._size(EVERYTHING, 4) == (most, 1)
    assert runner(rows=3)._size(EVERYTHING, 4) == (3, 1)


def test_a_pass_on_a_cpu_has_as_many_images_as_keep_it_at_its_best_number_of_rows():
    rows, block = runner()._size(EVERYTHING, 400)
    assert (rows + 1) * block <= engine.CPU_MAX_ROWS < (rows + 1) * (block + 2)


@pytest.mark.parametrize("fits", [2, 8])
def test_fewer_rows_are_taken_where_memory_is_short_and_never_none(monkeypatch, fits):
    monkeypatch.setattr(engine, "CPU_WORKING_SET", 1)
    need = footprint.pass_bytes(UNET, shared_prefix.plan_passes(UNET, EVERYTHING, fits).joins)
    copies = 2 * memory.tree_bytes(PARAMS)
    monkeypatch.setattr(memory, "available_bytes", lambda: copies + int(1.01 * need / memory.FREE_SHARE))
    assert runner()._size(EVERYTHING, 4) == (fits, 1)
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    assert runner()._size(EVERYTHING, 4) == (1, 1)


def test_the_size_of_a_pass_does_not_move_when_memory_does(monkeypatch):
    monkeypatch.setattr(engine, "CPU_WORKING_SET", 1)
    single = runner()
    before = single._size(EVERYTHING, 4)
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    assert single._size(EVERYTHING, 4) == before


def test_images_under_way_are_halved_until_they_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert [memory.images_at_once(16, each) for each in (1, 37, 38, 150, 10**9)] == [16, 16, 8, 4, 1]
    with pytest.raises(ConfigError, match="block=0 is too small; at least 1"):
        memory.images_at_once(0, 1)


def test_the_user_is_told_before_the_run(capsys):
    config = SweepConfig(images=4, timesteps=2)
    forecast.print_memory_forecast(SUBJECT, config)
    line = capsys.readouterr().out
    assert line.startswith("predicted memory: 1.0 GiB of ") and line.count("\n") == 1
    predicted = runner().forecast(EVERYTHING, 4, replacements=7)
    parts = memory.HOST_OVERHEAD, 7, 2 * memory.tree_bytes(PARAMS), predicted.one_pass
    assert predicted.total == sum(parts) and predicted.rows >= len(components(UNET))


def test_what_cannot_fit_is_refused_with_the_way_out(monkeypatch, capsys):
    monkeypatch.setattr(memory, "usable_bytes", lambda: memory.HOST_OVERHEAD)
    expected = r"even one row in a pass takes .*JAX_NUM_CPU_DEVICES=1.*sweep\.ablations=zero"
    with pytest.raises(ConfigError, match=expected) as error:
        forecast.print_memory_forecast(SUBJECT, SweepConfig(images=4, timesteps=2))
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out.startswith("predicted memory")
    alone = dataclasses.replace(runner().forecast(EVERYTHING, 4, replacements=0), devices=1)
    with pytest.raises(ConfigError, match="the way out: a machine with more memory"):
        alone.require()


def test_fills_count_where_kinds_have_them(capsys, monkeypatch):
    images = np.zeros((1, UNET.image_size, UNET.image_size, UNET.in_channels), np.float32)
    result = activation_means(SUBJECT, EvalSet(images, [5], KEY))
    replacement = sum(value.nbytes for value in result.values())
    assert footprint.replacement_bytes(UNET) == replacement
    monkeypatch.setattr(memory, "GIB", 4 * replacement)
    told = []
    for ablations in (("zero",), ("zero", "mean")):
        forecast.print_memory_forecast(SUBJECT, SweepConfig(ablations=ablations, images=4, timesteps=2))
        told.append(float(capsys.readouterr().out.rsplit("replacements ")[-1].split()[0]))
    assert told == [0, (2 + len(jax.devices()) + forecast.MOMENTS) / 4]


class Accelerator:
    """A device that says what it has, as CUDA's do."""

    platform = "gpu"

    def __init__(self, limit, used=0):
        self.stats = {"bytes_limit": limit, "bytes_in_use": used} if limit else None

    def memory_stats(self):
        return self.stats


def test_on_accelerators_their_own_memory_counts(monkeypatch):
    results = [Accelerator(5 * 2**20, 2**20), Accelerator(2**20, 2 * 2**20)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: results)
    assert memory.available_bytes() == 4 * 2**20 and memory.usable_bytes() == 6 * 2**20
    assert memory.free_bytes(Accelerator(None)) == memory.DEFAULT_DEVICE_BYTES
    row = footprint.row_bytes(UNET)
    assert engine.memory_limit(Accelerator(10 * row)) == int(10 * row * memory.FREE_SHARE)


@pytest.mark.parametrize(
    ("name", "images", "setting", "joins", "counted"),
    [
        ("cpu16", 16, "float32", {1: 8, 5: 8, 9: 15, 15: 11, 19: 7, 21: 7}, 1.82),
        ("cpu32", 64, "bfloat16", {1: 4, 4: 6, 7: 15, 12: 14, 17: 11, 21: 6}, 6.81),
        ("study64", 32, "float32", {1: 6, 6: 12, 11: 20, 18: 14, 23: 6, 26: 6}, 10.98),
        ("study64", 32, "bfloat16", {1: 6, 6: 12, 11: 20, 18: 14, 23: 6, 26: 6}, 6.10),
        ("paper", 8, "float32", {1: 6, 6: 10, 9: 26, 16: 6, 19: 6, 22: 6}, 11.24),
        ("paper", 8, "3xtf32", {1: 6, 6: 10, 9: 26, 16: 6, 19: 6, 22: 6}, 18.32),
        ("paper", 8, "bfloat16", {1: 6, 6: 10, 9: 26, 16: 6, 19: 6, 22: 6}, 6.65),
    ],
)
def test_a_pass_on_a_card_takes_what_its_compiler_counts(monkeypatch, name, images, setting, joins, counted):
    """GiB of the program that XLA compiled for an H200: see experiments/benchmarks/README.md."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    unet = preset(name).unet
    of_stage = tuple(joins.get(stage, 0) for stage in range(len(stages(unet))))
    with devices.multiplying(setting):
        forecast = footprint.pass_bytes(unet, of_stage, images) / memory.GIB
    assert counted * 0.99 < forecast < counted * 1.2


def test_no_array_on_a_card_is_beyond_32_bits_and_blocks_are_equally_full(monkeypatch):
    unet = preset("paper").unet
    widest = 64 * 64 * (512 + 256)
    assert footprint.largest_map_size(unet) == widest
    denoiser = dataclasses.replace(SUBJECT, unet=unet)
    stacked = leave_one_out(identity_intervention(unet), components(unet))[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows, block = engine.Engine(denoiser, devices=(Accelerator(100 * 2**30),))._size(stacked, 16)
    assert (rows, block) == (60, 8)
    assert (rows + 1) * block * widest < engine.INDEXED < (rows + 1) * 16 * widest


def test_whole_patterns_count_where_attention_does_not_work_in_blocks(monkeypatch):
    unet = preset("cpu32").unet
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    blocked = footprint.row_bytes(unet)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert footprint.row_bytes(unet) > blocked


def test_there_is_memory_on_this_machine():
    assert 2**20 < memory.available_bytes() <= memory.usable_bytes() < 2**62
