"""mechdiff: which parts of a diffusion denoiser do what, at which noise level, and how sure are we?

    config = mechdiff.preset("cpu32")
    params, identity = mechdiff.init_unet(jax.random.key(0), config.unet)
    without = mechdiff.ablate(identity, "mid.attn0.head.*")
    eps = mechdiff.apply_unet(config.unet, params, without, x_t, t)

Floors (a file imports only from lower ones; `tests/test_floors.py` holds it):
  0  errors
  1  types, config
  2  presets, keys, files, schedules, convolution
  3  runlog, sums, compare, images, diffusion, interventions, gates, data, results, metrics
  4  layers, sampler, stats, evaluation
  5  unet, checkpoint, interop
  6  capture, train
  7  sweep
  8  pipeline, effects
  9  report
 10  experiments (launchers, outside the package)
"""

from mechdiff.capture import activation_means, attention_stats
from mechdiff.config import ExperimentConfig, UNetConfig, override
from mechdiff.diffusion import denoising_loss, predict_x0, q_sample, training_loss
from mechdiff.errors import MechdiffError
from mechdiff.interventions import (
    STACKED,
    Component,
    Intervention,
    ablate,
    keep_only,
    leave_one_out,
    random_subsets,
    scale,
    temperature,
    windowed,
)
from mechdiff.presets import preset
from mechdiff.sampler import ddim_step, ddpm_step, sample
from mechdiff.schedules import NoiseSchedule, cosine_schedule, linear_schedule, timesteps_by_log_snr
from mechdiff.sweep import Subject, teacher_forced
from mechdiff.train import load_trained
from mechdiff.unet import apply_unet, components, count_parameters, denoise, init_unet

__version__ = "0.1.0"

__all__ = [
    "STACKED",
    "Component",
    "ExperimentConfig",
    "Intervention",
    "MechdiffError",
    "NoiseSchedule",
    "Subject",
    "UNetConfig",
    "ablate",
    "activation_means",
    "apply_unet",
    "attention_stats",
    "components",
    "cosine_schedule",
    "count_parameters",
    "ddim_step",
    "ddpm_step",
    "denoise",
    "denoising_loss",
    "init_unet",
    "keep_only",
    "leave_one_out",
    "linear_schedule",
    "load_trained",
    "override",
    "predict_x0",
    "preset",
    "q_sample",
    "random_subsets",
    "sample",
    "scale",
    "teacher_forced",
    "temperature",
    "timesteps_by_log_snr",
    "training_loss",
    "windowed",
]
