"""Interventions on attention patterns: does it matter where a head looks, and how sharply?

A head's pattern A becomes g A + (1 - g) P, while its values stay its own (`gates.Pattern`), with P
  uniform   1 / tokens everywhere: the head looks everywhere alike
  identity  each position looks at itself alone
  frozen    the pattern of the same head on another image of the set, at the same timestep and with that
            image's own noise: donors are those of `replacements.resample_replacements`
If replacing a pattern does nothing, then nothing about it, such as its entropy, can be a mechanism.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component, select, site_type
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.models.layers import PATTERNS
from mechdiff.models.stages import stages
from mechdiff.models.unet import components
from mechdiff.sweeps.ablation import component_coords, sweep_in_memory
from mechdiff.sweeps.replacements import resample_replacements

PATTERN_SOURCES = ("uniform", "identity", "frozen")


def constant_patterns(unet: UNetConfig, kind: str) -> dict[str, np.ndarray]:
    """Patterns of kind `uniform` or `identity` for every attention site, one for all heads."""
    make = {
        "uniform": lambda tokens: np.full((1, 1, tokens), 1 / tokens, np.float32),
        "identity": lambda tokens: np.eye(tokens, dtype=np.float32)[None],
    }
    if kind not in make:
        raise ConfigError(unknown("kind of constant pattern", kind, make))
    attends = [stage for stage in stages(unet) if stage.op == "attention"]
    return {f"{stage.name}.head": make[kind](stage.resolution**2) for stage in attends}


def replace_pattern(identity: Intervention, what, patterns: Mapping, dose: float = 0.0) -> Intervention:
    """The patterns of the selected heads mixed with others.

    Args:
      what: heads, as for `ablate`.
      patterns: attention site -> `(heads, queries, keys)` or 1 for what is shared, with or without a leading
        row axis: `constant_patterns`, or `activations.activations(..., collection="patterns")`.
      dose: the share that their own pattern keeps; 1 leaves them alone.
    Raises:
      ConfigError: a component that is not a head, or a site without a pattern.
    """
    gate = {site: np.ones(np.shape(identity.gate[site]), np.float32) for site in patterns}
    for name, (site, (start, stop)) in select(identity, what).items():
        if site_type(site) != "head" or site not in gate:
            raise ConfigError(f"component {name!r} is not an attention head with a pattern given for it")
        gate[site][..., start:stop] = dose
    return dataclasses.replace(identity, pattern=gate, pattern_replacement=dict(patterns))


def one_pattern_each(identity: Intervention, heads: Sequence[Component], patterns: Mapping) -> Intervention:
    """One intervention per head, stacked, that replaces its pattern: for `Engine.measure`."""
    each = [replace_pattern(identity, [head], patterns).pattern for head in heads]
    stacked = {site: np.stack([one[site] for one in each]) for site in patterns}
    gate = {site: np.tile(np.asarray(leaf), (len(heads), 1)) for site, leaf in identity.gate.items()}
    return dataclasses.replace(identity, gate=gate, pattern=stacked, pattern_replacement=dict(patterns))


def pattern_effects(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    kinds: Sequence[str] = PATTERN_SOURCES,
    heads: Sequence[Component] | None = None,
    draws: int = 1,
    block: int = 16,
) -> xr.Dataset:
    """Denoising loss with one head's pattern replaced, image by image.

    Args:
      images: in [-1, 1]; image i has the noise of `image_noise(key, i)`, as in `sweeps.ablation_sweep`.
      heads: all of the network if None.
      draws: donors per image of kind `frozen`, over which losses are averaged.
    Returns:
      Dataset with `loss` and `change`, dims `kind, component, t, image`, and `clean_loss`, dims `t, image`.
    Raises:
      ConfigError: an unknown kind, a network without heads, or too many donors.
    """
    images, timesteps = eval_set.images, eval_set.timesteps
    heads = heads_of(unet_of(denoiser), heads)
    losses, changes = [], []
    for kind in kinds:
        if kind not in PATTERN_SOURCES:
            raise ConfigError(unknown("kind of pattern", kind, PATTERN_SOURCES))
        patterns = constant_patterns(denoiser.unet, "uniform" if kind == "frozen" else kind)
        stacked, source = one_pattern_each(denoiser.identity, heads, patterns), None
        if kind == "frozen":
            source = resample_replacements(denoiser, eval_set, draws=draws)
            source = dataclasses.replace(source, collection=PATTERNS)
        found = sweep_in_memory(
            denoiser, eval_set, stacked, replacements=source, block=block, field="pattern_replacement"
        )
        losses.append(found.loss)
        changes.append(found.change)
    dims = ("kind", "component", "t", "image")
    return xr.Dataset(
        {
            "loss": (dims, np.stack(losses)),
            "change": (dims, np.stack(changes)),
            "clean_loss": (dims[2:], found.clean_loss),
        },
        coords={"kind": list(kinds), **component_coords(denoiser, heads, timesteps, len(images))},
        attrs={"denoiser": denoiser.name, "draws": draws},
    )


def unet_of(denoiser: Examinable) -> UNetConfig:
    """The configuration of the UNet that a denoiser is; an error if it is another network.

    Raises:
      ConfigError: temperatures and patterns act on this package's attention only.
    """
    if isinstance(denoiser.network, UNetConfig):
        return denoiser.network
    raise ConfigError(
        f"{denoiser.name}: temperatures and patterns of attention act on this package's UNet only; name a "
        'pattern as a site, `checkpoint_name(pattern, "block0.pattern@1")`, and ablate its heads'
    )


def heads_of(unet: UNetConfig, heads: Sequence[Component] | None = None) -> tuple[Component, ...]:
    """`heads`, or all of the network; an error if there are none."""
    found = tuple(
        heads or (component for component in components(unet) if component.component_type == "head")
    )
    if not found:
        raise ConfigError("this network has no attention heads; there is no pattern to replace")
    return found
