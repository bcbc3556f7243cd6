"""The arm of mechdiff: one process, one task, one JSON line. Started by `_rounds`."""

import functools
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _rounds
from mechdiff.config import SweepConfig, from_dict
from mechdiff.schedules import make_schedule, timesteps_by_log_snr
from mechdiff.sweep import Subject, teacher_forced
from mechdiff.train import init_state, train_step
from mechdiff.unet import apply_unet, components, count_parameters


def pictures(config, images):
    shape = (images, config.unet.image_size, config.unet.image_size, config.unet.in_channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def training_step(config, images):
    """The step that `experiments.train` runs: noise, loss, gradients, clipping, AdamW, EMA."""
    schedule, batch = make_schedule(config.diffusion), pictures(config, images)
    state, identity = jax.jit(functools.partial(init_state, config))()
    step = jax.jit(functools.partial(train_step, config), donate_argnums=2)

    def once():
        nonlocal state
        state, metrics = step(schedule, identity, state, batch)
        jax.block_until_ready((state, metrics))

    return once, images


def forward_sweep(config, images):
    """`teacher_forced` over every component as a user calls it: digests, and writing the result, included."""
    schedule = make_schedule(config.diffusion)
    state, identity = jax.jit(functools.partial(init_state, config))()
    subject = Subject("benchmark", config.unet, schedule, state.params, identity)
    levels = timesteps_by_log_snr(schedule, _rounds.LEVELS)
    x0 = (pictures(config, images) / 127.5 - 1).astype(np.float32)
    settings = SweepConfig(kinds=("zero",), image_block=min(images, config.sweep.image_block))

    def once():
        with tempfile.TemporaryDirectory() as folder:
            teacher_forced(subject, x0, levels, jax.random.key(0), Path(folder), config=settings)

    return once, len(components(config.unet)) * len(levels) * images


def product():
    """GF/s of a plain matrix product."""
    a = jnp.ones((_rounds.PRODUCT, _rounds.PRODUCT), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    return 2 * _rounds.PRODUCT**3 / _rounds.seconds(lambda: multiply(a).block_until_ready()) / 1e9


def forward_flops(config):
    """Operations of one image's forward pass, as XLA counts them."""
    x, t = jnp.zeros((1, *pictures(config, 1).shape[1:])), jnp.zeros(1, jnp.int32)
    state, identity = jax.eval_shape(functools.partial(init_state, config))
    lowered = jax.jit(functools.partial(apply_unet, config.unet)).lower(state.params, identity, x, t)
    return lowered.cost_analysis()["flops"]


def main(task, variant, images, config):
    config = from_dict(json.loads(config))
    once, items = {"training_step": training_step, "forward_sweep": forward_sweep}[task](config, int(images))
    result = {"seconds": _rounds.seconds(once), "items": items, "product": product()}
    facts = {"parameters": count_parameters(config.unet), "flops": forward_flops(config)}
    print(json.dumps(result | facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
