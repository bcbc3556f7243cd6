"""The arm of mechdiff: one process, one task, one JSON line. Started by `_harness`."""

import dataclasses
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _flops, _harness
from mechdiff.core import devices
from mechdiff.core.config import SweepConfig, from_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import make_schedule, timesteps_by_log_snr
from mechdiff.interventions.build import leave_one_out
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import (
    components,
    count_parameters,
    identity_intervention,
    init_shapes,
    init_unet,
)
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.execution import engine, memory
from mechdiff.training.programs import programs

CACHE_HIT = "/jax/compilation_cache/cache_hits"  # an event that JAX records


def random_images(config, images):
    shape = (images, config.unet.image_size, config.unet.image_size, config.unet.in_channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def training_step(config, images):
    """The step that `experiments.train` runs: noise, loss, gradients, clipping, AdamW, EMA."""
    use_all_cores(share=images)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch=images))
    made, seed = programs(config), np.uint32(config.seed)
    state = made.init(seed)
    batch = jax.device_put(random_images(config, images), made.placement.batch)

    def once():
        nonlocal state
        state, metrics = made.update(seed, state, batch)
        jax.block_until_ready((state, metrics))

    return once, images


def forward_sweep(config, images):
    """`ablation.ablation_sweep` over every component as a user calls it: digests, and writing the result,
    included.
    """
    use_all_cores()
    schedule = make_schedule(config.diffusion)
    params, identity = jax.jit(functools.partial(init_unet, config=config.unet))(jax.random.key(0))
    denoiser = Denoiser("benchmark", config.unet, schedule, params, identity)
    timesteps = timesteps_by_log_snr(schedule, config.sweep.timesteps)
    x0 = (random_images(config, images) / 127.5 - 1).astype(np.float32)
    block = min(images, config.sweep.image_block)
    settings = SweepConfig(ablations=("zero",), image_block=block, precision=config.sweep.precision)
    for name in ("ROW_COUNTS", "INDEXED"):
        setattr(engine, name, int(os.environ.get(f"MECHDIFF_BENCHMARK_{name}", getattr(engine, name))))

    def once():
        with tempfile.TemporaryDirectory() as folder:
            ablation_sweep(denoiser, EvalSet(x0, timesteps, jax.random.key(0)), Path(folder), config=settings)

    return once, len(components(config.unet)) * len(timesteps) * images


def product():
    """GF/s of a plain matrix product."""
    a = jnp.ones((_harness.PRODUCT, _harness.PRODUCT), jnp.float32)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=devices.precision()))
    return 2 * _harness.PRODUCT**3 / _harness.seconds(lambda: multiply(a).block_until_ready()) / 1e9


def flops(task, images, config):
    """FLOPs of one image's forward pass, and for a sweep the least that all of it needs."""
    params, identity = jax.eval_shape(functools.partial(init_unet, config=config.unet), jax.random.key(0))
    stage_flops = _flops.of_stages(config.unet, params, identity)
    facts = {"flops": sum(stage_flops)}
    if task == "forward_sweep":
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), identity)
        stacked = leave_one_out(ones, components(config.unet))[1]
        facts["needed"] = (
            _flops.needed(config.unet, params, identity, stage_flops, stacked)
            * config.sweep.timesteps
            * images
        )
    return facts


def predicted(config, images):
    """Bytes that a sweep is predicted to take of the devices: all but the host's own."""
    shapes, identity = init_shapes(config.unet)[0], identity_intervention(config.unet)
    params = jax.tree.map(lambda leaf: np.broadcast_to(leaf.dtype.type(0), leaf.shape), shapes)
    denoiser = Denoiser("zeros", config.unet, make_schedule(config.diffusion), params, identity)
    stacked = leave_one_out(denoiser.identity, denoiser.components())[1]
    forecast = engine.Engine(denoiser).forecast(stacked, min(images, config.sweep.image_block))
    return forecast.total - memory.HOST_OVERHEAD


def memory_peak():
    """Most bytes that were taken on the first device, where it counts them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def loaded_programs():
    """A list that grows by one for each program that JAX finds in its compilation cache."""
    loaded = []

    def note(event, **_):
        if event == CACHE_HIT:
            loaded.append(event)

    jax.monitoring.register_event_listener(note)
    return loaded


def main(task, variant, images, config):
    config, images = from_dict(json.loads(config)), int(images)
    loaded = loaded_programs()
    once, items = {"training_step": training_step, "forward_sweep": forward_sweep}[task](config, images)
    first = time.perf_counter()
    once()
    first = time.perf_counter() - first
    taken = _harness.seconds(once, warm_up=lambda: None)
    result = {"seconds": taken, "compiling": first - taken, "items": items, "product": product()}
    facts = {"parameters": count_parameters(config.unet), **flops(task, images, config)}
    facts |= {"loaded": len(loaded)}
    if peak := memory_peak():
        facts |= {"peak_bytes": peak}
    if task == "forward_sweep":
        facts |= {"predicted_bytes": predicted(config, images)}
    print(json.dumps(result | facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
