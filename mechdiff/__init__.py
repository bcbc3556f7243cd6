"""mechdiff: which components of a diffusion denoiser do what, at which noise level, and how sure are we?

    config = mechdiff.preset("cpu32")
    schedule = mechdiff.make_schedule(config.diffusion)
    params, identity = mechdiff.init_unet(jax.random.key(0), config.unet)
    without = mechdiff.ablate(identity, "mid.attn0.head.*")
    eps = mechdiff.denoise(config.unet, schedule, params, without, x_t, t)

Rooms, from the ground up; a file imports only from lower layers, and rooms of one layer never import each
other (the contracts are in `pyproject.toml`, import-linter holds them):
  1  core
  2  storage, stats, data, diffusion, interventions
  3  models
  4  training, sweeps
  5  circuits, analysis
  6  study, validation
  7  report
`mechdiff/README.md` says what is in each, and has the glossary. Launchers are outside, in `experiments/`.
"""

from mechdiff.analysis.roles.assignment import role_effects
from mechdiff.circuits.attribution import gate_scores
from mechdiff.circuits.discovery import Circuit, backup_components, discover
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.circuits.integrated_gradients import integrated_gradients
from mechdiff.circuits.interactions import pair_effects, pair_scores
from mechdiff.circuits.redundancy import verified_pairs
from mechdiff.circuits.robustness import stability, transfer
from mechdiff.circuits.scorecards import Scorecard, scorecard
from mechdiff.circuits.screening import screen_and_verify
from mechdiff.core.config import ExperimentConfig, UNetConfig, override
from mechdiff.core.errors import MechdiffError
from mechdiff.core.presets import preset
from mechdiff.diffusion.process import denoising_loss, predict_x0, q_sample, training_loss
from mechdiff.diffusion.samplers import ddim_step, ddpm_step, sample
from mechdiff.diffusion.schedules import (
    NoiseSchedule,
    cosine_schedule,
    linear_schedule,
    make_schedule,
    scaled_linear_schedule,
    timesteps_by_log_snr,
)
from mechdiff.interventions.build import (
    ablate,
    keep_only,
    leave_one_out,
    random_subsets,
    set_gate,
    set_temperature,
    windowed,
)
from mechdiff.interventions.components import Component
from mechdiff.interventions.record import STACKED, Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.load import load_trained
from mechdiff.models.unet import apply_unet, components, count_parameters, denoise, init_unet
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.activations import activation_means, attention_stats
from mechdiff.sweeps.attention_patterns import pattern_effects, replace_pattern
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.rollout import even_windows
from mechdiff.sweeps.interchange import interchange_effects
from mechdiff.sweeps.optimal_ablation import optimal_replacements
from mechdiff.sweeps.replacements import noise_replacements, resample_replacements
from mechdiff.sweeps.sampling import sampling_sweep
from mechdiff.sweeps.scaling import scaling_curves
from mechdiff.sweeps.sequential import sequential_sweep
from mechdiff.sweeps.temperature import matched_temperature, temperature_effects

__version__ = "0.1.0"

__all__ = [
    "STACKED",
    "Circuit",
    "CircuitEvaluator",
    "Component",
    "Denoiser",
    "Engine",
    "ExperimentConfig",
    "Intervention",
    "MechdiffError",
    "NoiseSchedule",
    "Scorecard",
    "UNetConfig",
    "ablate",
    "ablation_sweep",
    "activation_means",
    "apply_unet",
    "attention_stats",
    "backup_components",
    "components",
    "cosine_schedule",
    "count_parameters",
    "ddim_step",
    "ddpm_step",
    "denoise",
    "denoising_loss",
    "discover",
    "even_windows",
    "gate_scores",
    "init_unet",
    "integrated_gradients",
    "interchange_effects",
    "keep_only",
    "leave_one_out",
    "linear_schedule",
    "load_trained",
    "make_schedule",
    "matched_temperature",
    "noise_replacements",
    "optimal_replacements",
    "override",
    "pair_effects",
    "pair_scores",
    "pattern_effects",
    "predict_x0",
    "preset",
    "q_sample",
    "random_subsets",
    "replace_pattern",
    "resample_replacements",
    "role_effects",
    "sample",
    "sampling_sweep",
    "scaled_linear_schedule",
    "scaling_curves",
    "scorecard",
    "screen_and_verify",
    "sequential_sweep",
    "set_gate",
    "set_temperature",
    "stability",
    "temperature_effects",
    "timesteps_by_log_snr",
    "training_loss",
    "transfer",
    "verified_pairs",
    "windowed",
]
