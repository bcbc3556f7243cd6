"""The compiled programs of a training. They take its seed as an argument: trainings of one process that
differ in seed and images alone, as those of a study, compile once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mechdiff.core import keys
from mechdiff.core.config import DiffusionConfig, ExperimentConfig, TrainConfig, UNetConfig
from mechdiff.core.types import PyTree
from mechdiff.data import to_bytes, to_float
from mechdiff.diffusion.samplers import Sampler, sample
from mechdiff.diffusion.schedules import SAMPLE_STEPS, NoiseSchedule, ddim_timesteps, timesteps_by_log_snr
from mechdiff.models.unet import denoise
from mechdiff.training import evaluation
from mechdiff.training.placement import Placement, data_parallel
from mechdiff.training.step import Fixed, Seed, fixed_parts, init_state, train_step

EVAL_TIMESTEPS = 8  # at most, evenly spread in log-SNR, that losses are reported at
SAMPLES = 64  # images on a sample sheet


class Programs(NamedTuple):
    """Functions compiled at their first call, and where their arrays lie.

    Attributes:
      placement: of arrays over devices.
      shapes: of a state.
      of_state: the sharding of each array of a state.
      init: (seed) -> state.
      update: (seed, state, images, labels or none) -> state, metrics; the state given is used up.
      losses: (seed, EMA parameters, images, labels or None) -> `(timesteps, images)`, see `eval_timesteps`.
      sample: (seed, EMA parameters) -> images of a sheet, uint8.
    """

    placement: Placement
    shapes: PyTree
    of_state: PyTree
    init: Callable
    update: Callable
    losses: Callable
    sample: Callable


def programs(config: ExperimentConfig) -> Programs:
    """The programs of a training, those of an earlier one where they are the same.

    Raises:
      ConfigError: devices that don't divide the batch, or, with `train.fsdp`, hardly any parameters.
    """
    return _programs(config.unet, config.diffusion, dataclasses.replace(config.train, keep=()))


@functools.lru_cache(maxsize=8)
def _programs(unet: UNetConfig, diffusion: DiffusionConfig, train: TrainConfig) -> Programs:
    config = ExperimentConfig(name="", unet=unet, diffusion=diffusion, train=train)
    placement, initial = data_parallel(train), functools.partial(init_state, config)
    shapes = jax.eval_shape(initial, np.uint32(0))
    of_state, everywhere = placement.of_state(shapes), placement.everywhere
    fixed = fixed_parts(config)
    step = functools.partial(train_step, config, placement.mesh, fixed)
    return Programs(
        placement,
        shapes,
        of_state,
        jax.jit(initial, out_shardings=of_state),
        jax.jit(step, donate_argnums=1, out_shardings=(of_state, everywhere)),
        jax.jit(functools.partial(_losses, config, placement, fixed), out_shardings=everywhere),
        jax.jit(functools.partial(_sample, config, placement, fixed), out_shardings=everywhere),
    )


def eval_timesteps(schedule: NoiseSchedule) -> Int[np.ndarray, " timesteps"]:
    """The timesteps that losses are reported at."""
    with jax.ensure_compile_time_eval():
        return timesteps_by_log_snr(schedule, min(EVAL_TIMESTEPS, schedule.steps))


def _losses(
    config: ExperimentConfig,
    placement: Placement,
    fixed: Fixed,
    seed: Seed,
    ema: PyTree,
    images: UInt8[Array, "images height width channels"],
    labels: Int[Array, " images"] | None,
) -> Float[Array, "timesteps images"]:
    predict = _predictor(config, placement, fixed, ema, labels)
    key = keys.stream(jax.random.key(seed), "evaluation")
    timesteps = jnp.asarray(eval_timesteps(fixed.schedule))
    return evaluation.losses(predict, fixed.schedule, key, to_float(images), timesteps)


def _sample(
    config: ExperimentConfig,
    placement: Placement,
    fixed: Fixed,
    seed: Seed,
    ema: PyTree,
) -> UInt8[Array, "images height width channels"]:
    unet, schedule = config.unet, fixed.schedule
    labels = np.arange(SAMPLES) % unet.classes if unet.classes else None
    predict = _predictor(config, placement, fixed, ema, labels)
    steps = ddim_timesteps(schedule.steps, min(SAMPLE_STEPS, schedule.steps))
    key = keys.stream(jax.random.key(seed), "samples")
    shape = (SAMPLES, unet.image_size, unet.image_size, unet.in_channels)
    return to_bytes(sample(predict, Sampler(schedule, timesteps=steps), key, shape))


def _predictor(
    config: ExperimentConfig, placement: Placement, fixed: Fixed, ema: PyTree, labels: Any
) -> Callable:
    """The network with parameters on every device, also if each trains with a shard of them."""
    ema = jax.lax.with_sharding_constraint(ema, placement.everywhere)
    return functools.partial(denoise, config.unet, fixed.schedule, ema, fixed.identity, condition=labels)
