"""Attention entropy of a network's heads, and what the heads do: linked by correlation and by temperature."""

from pathlib import Path
from typing import NamedTuple

import xarray as xr

from mechdiff.analysis import effects, entropy_causality, entropy_correlation, roles
from mechdiff.analysis.roles.image_features import image_feature_names
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable
from mechdiff.study.eval_images import EvalImages
from mechdiff.sweeps import activations, temperature
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.attention_patterns import heads_of

MIN_HEADS = 3  # heads that entropy is compared over


class EntropyLinks(NamedTuple):
    """How entropy goes with what a head does.

    Attributes:
      effect, selectivity: rank correlation over heads of entropy with the size of a head's effect, and with
        its largest selectivity.
      caused: slopes of selectivity on entropy within heads, over temperatures; None: these move the entropy
        of too few heads.
    """

    effect: entropy_correlation.EntropyCorrelation
    selectivity: entropy_correlation.EntropyCorrelation
    caused: entropy_causality.EntropySlopes | None


def entropy_links(
    denoiser: Examinable,
    images: EvalImages,
    eval_set: EvalSet,
    config: SweepConfig,
    folder: Path,
    *,
    matched: bool = True,
) -> EntropyLinks:
    """Links of entropy with effects and selectivities, of the heads over more than one position.

    Args:
      images, eval_set: the scored images, and these at their timesteps.
      config: of the sweep whose effects are taken; zero ablation is among its ablations.
      folder: of sweeps and other measurements; finished pieces are reused.
      matched: temperatures act at matched norm of a head's output.

    Raises:
      ConfigError: fewer than 3 such heads, or images too small for their features.
    """
    check_network(denoiser)
    attention = activations.attention_stats(denoiser, eval_set)
    heads = heads_over_many_keys(denoiser, attention)
    swept = ablation_sweep(denoiser, eval_set, folder, config=config, chosen=heads)
    attention = images.with_people(attention.sel(head=[head.name for head in heads]))
    names, stacked = leave_one_out(denoiser.identity, heads)
    effect = roles.role_effects(denoiser, eval_set, stacked, names, folder=folder)
    tempered = temperature.temperature_effects(
        denoiser, eval_set, heads=heads, matched=matched, folder=folder
    )
    moved = entropy_causality.temperature_effects_on_roles(
        denoiser,
        tempered,
        images.scored,
        eval_set.key,
        condition=images.scored_condition,
        folder=folder,
    )
    size = entropy_correlation.effect_size(*effects.losses(swept, "zero"))
    selectivity = entropy_correlation.max_selectivity(effect)
    return EntropyLinks(
        effect=entropy_correlation.correlation(attention, size),
        selectivity=entropy_correlation.correlation(attention, selectivity),
        caused=entropy_causality.within_head_slope(moved, entropy_causality.normalized(tempered, attention)),
    )


def check_network(denoiser: Examinable) -> None:
    """Refuses a network whose entropy can't be linked to anything, before anything is computed.

    Raises:
      ConfigError: images without colors, or too small for their features; no heads with patterns.
    """
    image_feature_names(*denoiser.image_shape[1:])
    heads_of(denoiser)


def heads_over_many_keys(denoiser: Examinable, attention: xr.Dataset) -> list[Component]:
    """The heads whose patterns have an entropy to speak of: those over more than one position.

    Args:
      attention: of `activations.attention_stats`.

    Raises:
      ConfigError: no patterns, or fewer than 3 heads, too few to say anything.
    """
    heads, measured = heads_of(denoiser), set(attention["head"].values.tolist())
    many = [component for component in heads if component.name in measured]
    if len(many) < MIN_HEADS:
        raise ConfigError(
            f"{len(many)} heads attend over more than one position ({len(heads)} heads in all); entropy is "
            f"compared over at least {MIN_HEADS}"
        )
    return many
