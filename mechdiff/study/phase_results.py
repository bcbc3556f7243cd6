"""Phases of denoising of a network: its effects at many timesteps, segmented."""

from pathlib import Path

import jax

from mechdiff.analysis import phases
from mechdiff.core.config import ExperimentConfig
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.replacement_values import replacement_values
from mechdiff.sweeps.ablation import ablation_sweep


def measured_phases(
    denoiser: Examinable, images: EvalImages, eval_set: EvalSet, config: ExperimentConfig, folder: Path
) -> dict[str, phases.Phases]:
    """Phases under every ablation of `config.sweep`, by ablation.

    Args:
      images, eval_set: the scored images with their references, and the scored ones at their timesteps.
      folder: of sweeps; finished pieces are reused.

    Raises:
      ConfigError: fewer than 4 images, or too few timesteps, see `phases.check_sizes`.
    """
    key = jax.random.key(config.seed)
    replacements = replacement_values(denoiser, images, eval_set, key, config.sweep)
    swept = ablation_sweep(denoiser, eval_set, folder, config=config.sweep, replacements=replacements)
    swept = swept.assign_coords(images.labels)  # no person is in both halves
    return {ablation: phases.measure(swept, ablation) for ablation in config.sweep.ablations}
