"""mechdiff: which components of a diffusion denoiser do what, at which noise level, and how sure are we?

    import mechdiff as md
    model = md.load("cpu32-celeba-seed0")
    gone = model.ablate("up1.attn1.head3").during(0, 300)
    md.show(model.sample(8, seed=0), gone.sample(8, seed=0))
    model.sweep("my_images/", n=16).top(10)

`__all__` has the names of daily use; others are reached through rooms, such as `mechdiff.circuits.stability`.
Rooms, from the ground up; a file imports only from lower layers, and rooms of one layer never import each
other (the contracts are in `pyproject.toml`, import-linter holds them):

    1  core
    2  storage, stats, data, diffusion, interventions
    3  models
    4  training, sweeps
    5  circuits, analysis
    6  study, validation
    7  report
    8  api
    9  cli

`mechdiff/README.md` says what is in each, and has the glossary. Launchers are outside, in `experiments/`.
"""

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

from mechdiff.core.old_names import OldModules

if TYPE_CHECKING:  # at run time names are imported when they are first used, so that this module is quick
    from mechdiff.api.compare import compare as compare
    from mechdiff.api.course import compare_steps as compare_steps
    from mechdiff.api.loading import load as load
    from mechdiff.api.model import Model as Model
    from mechdiff.api.result import Result as Result
    from mechdiff.api.show import show as show
    from mechdiff.circuits.discovery import Circuit as Circuit
    from mechdiff.circuits.discovery import discover as discover
    from mechdiff.circuits.screening import screen_and_verify as screen_and_verify
    from mechdiff.core.devices import use_all_cores as use_all_cores
    from mechdiff.core.errors import MechdiffError as MechdiffError
    from mechdiff.core.presets import preset as preset
    from mechdiff.diffusion.eval_set import EvalSet as EvalSet
    from mechdiff.diffusion.schedules import make_schedule as make_schedule
    from mechdiff.interventions.components import Component as Component
    from mechdiff.interventions.record import Intervention as Intervention
    from mechdiff.models.denoiser import Denoiser as Denoiser
    from mechdiff.models.traced.wrapping import wrap as wrap
    from mechdiff.sweeps.ablation import ablation_sweep as ablation_sweep
    from mechdiff.sweeps.activation_datasets import activations as activations
    from mechdiff.sweeps.sampling import sampling_sweep as sampling_sweep

__version__ = "0.1.0"

__all__ = [
    "Circuit",
    "Component",
    "Denoiser",
    "EvalSet",
    "Intervention",
    "MechdiffError",
    "Model",
    "Result",
    "ablation_sweep",
    "activations",
    "compare",
    "compare_steps",
    "discover",
    "load",
    "make_schedule",
    "preset",
    "sampling_sweep",
    "screen_and_verify",
    "show",
    "use_all_cores",
    "wrap",
]

_NAMES = {  # module -> names that can be had from here; those beyond `__all__` are of older versions
    "analysis.roles.assignment": "role_effects",
    "api.compare": "compare",
    "api.course": "compare_steps",
    "api.loading": "load",
    "api.model": "Model",
    "api.result": "Result",
    "api.show": "show",
    "circuits.attribution": "Expansion gate_scores",
    "circuits.discovery": "Circuit backup_components discover",
    "circuits.faithfulness": "CircuitEvaluator",
    "circuits.integrated_gradients": "integrated_gradients",
    "circuits.interactions": "pair_effects pair_scores",
    "circuits.redundancy": "PairConfig verified_pairs",
    "circuits.robustness": "stability transfer",
    "circuits.scorecards": "Scorecard scorecard",
    "circuits.screening": "ScreenConfig screen_and_verify",
    "core.config": "ExperimentConfig UNetConfig override",
    "core.devices": "use_all_cores",
    "core.errors": "MechdiffError",
    "core.presets": "preset",
    "diffusion.eval_set": "EvalSet",
    "diffusion.process": "denoising_loss predict_x0 q_sample training_loss",
    "diffusion.samplers": "Sampler ddim_step ddpm_step sample",
    "diffusion.schedules": "NoiseSchedule cosine_schedule linear_schedule make_schedule "
    "scaled_linear_schedule timesteps_by_log_snr",
    "interventions.build": "ablate keep_only leave_one_out random_subsets set_gate set_temperature windowed",
    "interventions.components": "Component",
    "interventions.record": "Intervention STACKED",
    "models.denoiser": "Denoiser",
    "models.load": "load_denoiser load_trained",
    "models.traced.wrapping": "wrap",
    "models.unet": "apply_unet components count_parameters denoise init_unet",
    "sweeps.ablation": "ablation_sweep",
    "sweeps.activation_datasets": "activations",
    "sweeps.activations": "activation_means attention_stats",
    "sweeps.attention_patterns": "pattern_effects replace_pattern",
    "sweeps.execution.engine": "Engine",
    "sweeps.execution.rollout": "even_windows",
    "sweeps.interchange": "PairSet interchange_effects",
    "sweeps.optimal_ablation": "optimal_replacements",
    "sweeps.replacements": "noise_replacements resample_replacements",
    "sweeps.sampling": "SampleSet sampling_sweep",
    "sweeps.scaling": "scaling_curves",
    "sweeps.sequential": "sequential_sweep",
    "sweeps.stopping": "StoppingRule",
    "sweeps.temperature": "temperature_effects",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
sys.meta_path.append(OldModules())
_ROOMS = {module.name for module in pkgutil.iter_modules(__path__)}


def __getattr__(name: str):
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, "__version__"})
