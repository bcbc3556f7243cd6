"""Replacement values of ablations, computed from the images that a model is examined on."""

from mechdiff.core import keys
from mechdiff.core.config import SweepConfig
from mechdiff.core.types import PRNGKey
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.sweeps import activations
from mechdiff.sweeps.optimal_ablation import optimal_replacements
from mechdiff.sweeps.replacements import noise_replacements, resample_replacements


def replacement_values(
    denoiser: Examinable, images: EvalImages, eval_set: EvalSet, root: PRNGKey, config: SweepConfig
) -> dict:
    """Replacement values of each ablation but `zero`: ablation -> replacements, or a source of them.

    Args:
      images: of which the reference images are taken.
      eval_set: what is swept; `resample` takes activations on its other images, under its noise.
      root: key of which that of the reference images' noise is made.
      config: which ablations, and the settings of their replacements.
    """
    reference = images.reference_set(eval_set.timesteps, keys.stream(root, "mean noise"))
    make = {
        "mean": lambda: activations.activation_means(denoiser, reference),
        "resample": lambda: resample_replacements(denoiser, eval_set, draws=config.draws),
        "noise": lambda: noise_replacements(denoiser, reference, draws=config.draws),
        "optimal": lambda: optimal_replacements(denoiser, reference, steps=config.optimal_steps),
    }
    return {ablation: make[ablation]() for ablation in config.ablations if ablation != "zero"}
