"""Replacement values of ablations, computed from the images that a model is examined on."""

from collections.abc import Sequence

import jax

from mechdiff.core import keys
from mechdiff.core.config import SweepConfig
from mechdiff.core.types import AnyArray, Shown
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.sweeps import activations
from mechdiff.sweeps.optimal_ablation import optimal_replacements
from mechdiff.sweeps.replacements import noise_replacements, resample_replacements


def replacement_values(
    denoiser: Examinable,
    images: EvalImages,
    timesteps: Sequence[int] | AnyArray,
    root: jax.Array,
    config: SweepConfig,
    shown: Shown | None = None,
) -> dict:
    """Replacement values of each ablation but `zero`: ablation -> replacements, or a source of them.

    Args:
      shown: images of the sweep, if not the scored ones of `images`.
    """
    shown = images.scored if shown is None else shown
    reference = images.reference_set(timesteps, keys.stream(root, "mean noise"))
    key = keys.stream(root, "scored noise")
    condition = images.condition if shown is images.swept else images.scored_condition
    scored = EvalSet(shown, timesteps, key, condition)
    make = {
        "mean": lambda: activations.activation_means(denoiser, reference),
        "resample": lambda: resample_replacements(denoiser, scored, draws=config.draws),
        "noise": lambda: noise_replacements(denoiser, reference, draws=config.draws),
        "optimal": lambda: optimal_replacements(denoiser, reference, steps=config.optimal_steps),
    }
    return {ablation: make[ablation]() for ablation in config.ablations if ablation != "zero"}
