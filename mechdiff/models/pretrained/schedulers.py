"""Scheduler configs of diffusers: the noise levels, and what the network predicts."""

from collections.abc import Mapping
from typing import Any

from mechdiff.core.config import DiffusionConfig
from mechdiff.models.pretrained.options import checked

WHAT = "scheduler"
OURS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
DEFAULTS = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "variance_type": "fixed_small",
}
ONLY = {
    "_class_name": ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"),
    "beta_schedule": tuple(OURS),
    "trained_betas": (None,),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "rescale_betas_zero_snr": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
# How pictures are drawn, not what the network is: `sampler` has its own ways.
SAMPLING = (
    *("algorithm_type", "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "euler_at_final"),
    *("final_sigmas_type", "lambda_min_clipped", "lower_order_final", "sample_max_value", "set_alpha_to_one"),
    *("skip_prk_steps", "solver_order", "solver_type", "steps_offset", "tensor_format", "thresholding"),
    *("timestep_spacing", "timestep_values", "use_karras_sigmas"),
)


def read(given: Mapping[str, Any]) -> tuple[str, DiffusionConfig, tuple[str, ...]]:
    """What the network predicts, its noise levels, and notes for a reader.

    Raises:
      ConfigError: unknown options, or values that are not supported.
    """
    get = checked(given, DEFAULTS, ONLY, SAMPLING, WHAT)
    diffusion = DiffusionConfig(
        schedule=OURS[get["beta_schedule"]],
        steps=get["num_train_timesteps"],
        beta_start=get["beta_start"],
        beta_end=get["beta_end"],
    )
    notes = [] if given else ["no scheduler_config.json: diffusers' defaults (linear, 1000 steps, epsilon)"]
    drawn = sorted(name for name in SAMPLING if given.get(name))
    if drawn:
        notes.append(f"options of sampling without bearing here: {', '.join(drawn)}")
    return get["prediction_type"], diffusion, tuple(notes)


def write(diffusion: DiffusionConfig, prediction: str) -> dict[str, Any]:
    """The `DDPMScheduler` of these noise levels."""
    theirs = {ours: name for name, ours in OURS.items()}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": theirs[diffusion.schedule],
        "prediction_type": prediction,
        "variance_type": "fixed_small",
        "clip_sample": True,
    }
