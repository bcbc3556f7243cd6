"""This package's own UNet, examined through named values instead of its stages: the same numbers come out.

Gates are modules of the UNet; here each becomes a name, so that an evaluator that knows nothing of UNets
finds the sites of the original by name. `python -m experiments.examples.own_unet --model=FOLDER` compares all
ablations of a trained network, and the time they take, on one core if started under `taskset -c 0`.
"""

import dataclasses
import functools
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags
from jax.ad_checkpoint import checkpoint_name

from mechdiff.core.config import UNetConfig
from mechdiff.diffusion.schedules import NoiseSchedule, make_schedule
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.gates import Gate, Pattern
from mechdiff.interventions.record import STACKED, Intervention, rows
from mechdiff.models.attention import attention_pattern
from mechdiff.models.blocks import Attention
from mechdiff.models.load import load_trained
from mechdiff.models.stage_modules import enter, run_stage
from mechdiff.models.stages import stages
from mechdiff.models.traced import TracedDenoiser, wrap
from mechdiff.models.unet import denoise


def named(stage: str, call, args, kwargs, context):
    """A method interceptor of Flax: names what a gate is given, instead of gating it."""
    if isinstance(context.module, Gate) and context.method_name == "__call__":
        return checkpoint_name(args[0], f"{stage}.{context.module.name}@{context.module.unit_axis}")
    return call(*args, **kwargs)


def with_patterns(stage: str, heads: list, call, args, kwargs, context):
    """As `named`, and attention is written out, its pattern named; `heads` keeps queries, keys and values."""
    result = named(stage, call, args, kwargs, context)
    if isinstance(context.module, Attention) and context.method_name == "_heads":
        heads.append(result)
    if not isinstance(context.module, Pattern):
        return result
    query, key, value = heads
    pattern = attention_pattern(query * query.shape[-1] ** -0.5, key)
    return checkpoint_name(pattern, f"{stage}.pattern@1").astype(value.dtype) @ value


def by_names(config: UNetConfig, identity: Intervention, patterns: bool, params, x, t):
    """The UNet's output, with a name wherever it has a gate, and for its patterns if they are asked for."""
    stream = enter(config, params, x, t)
    for stage in stages(config):
        naming = functools.partial(with_patterns, stage.name, []) if patterns else None
        with nn.intercept_methods(naming or functools.partial(named, stage.name)):
            stream, _ = run_stage(config, stage, params, identity, stream)
    return stream.h


def wrapped(
    config: UNetConfig, schedule: NoiseSchedule, params, identity: Intervention, *, patterns: bool = False
) -> TracedDenoiser:
    """The UNet as a function of which nothing but names is known."""
    shape = (1, config.image_size, config.image_size, config.in_channels)
    return wrap(
        functools.partial(by_names, config, identity, patterns),
        params,
        schedule=schedule,
        example=(jnp.zeros(shape), jnp.zeros(1, jnp.int32)),
        parameterization=config.prediction,
        name="unet",
    )


def untempered(intervention: Intervention) -> Intervention:
    """Without temperatures, which are no business of named values."""
    return dataclasses.replace(intervention, temperature={})


def seconds(runs: dict, repeats: int = 20) -> dict[str, float]:
    """Least time of each of several calls, which take turns, after a first one that compiles."""
    times = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in times.items()}


def main(_):
    """Compares every ablation of a trained network, by stages and by names."""
    config, params, identity, _ = load_trained(Path(flags.FLAGS.model))
    images = flags.FLAGS.images
    schedule = make_schedule(config.diffusion)
    denoiser = wrapped(config.unet, schedule, params, identity)
    side = config.unet.image_size
    x = jax.random.normal(jax.random.key(0), (images, side, side, config.unet.in_channels))
    t = jnp.full(images, 300)
    plain = jax.jit(denoiser.network.fn)
    by_stages = jax.jit(functools.partial(denoise, config.unet, schedule))
    by_name = jax.jit(lambda denoiser, intervention, x, t: denoiser.predict(intervention, x, t))
    runs = {
        "no gates at all": lambda: plain(params, x, t),
        "gates, by stages": lambda: by_stages(params, identity, x, t),
        "gates, by names": lambda: by_name(denoiser, untempered(identity), x, t),
    }
    for name, value in seconds(runs).items():
        print(f"{name:17s} {1e3 * value:8.2f} ms")
    names, stacked = leave_one_out(identity, ".*")
    worst = 0.0
    each_stage = jax.jit(jax.vmap(by_stages, in_axes=(None, STACKED, None, None)))
    each_name = jax.jit(jax.vmap(by_name, in_axes=(None, STACKED, None, None)))
    for start in range(0, len(names), 16):
        chunk = rows(stacked, start, start + 16)
        difference = each_stage(params, chunk, x, t) - each_name(denoiser, untempered(chunk), x, t)
        worst = max(worst, float(jnp.abs(difference).max()))
    print(f"{len(names)} ablations: largest difference of a predicted noise {worst:.2e}")


if __name__ == "__main__":
    flags.DEFINE_string("model", "checkpoints/cpu16-celeba-seed0", "Folder of a trained model.")
    flags.DEFINE_integer("images", 8, "Images in a batch.")
    app.run(main)
