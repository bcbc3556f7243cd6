"""Interventions on attention patterns: does it matter where a head attends, and how sharply?

A head's pattern A becomes g A + (1 - g) P, while its values are unchanged (`gates.Pattern`), with P
  uniform   1 / keys everywhere: all positions get equal weight
  identity  each position attends to itself only
  frozen    the pattern of the same head on another image of the set, at the same timestep and with that
            image's noise: donors are those of `replacements.resample_replacements`
If replacing a pattern has no effect, then no property of it, such as its entropy, can be a mechanism.

In the UNet, patterns have a gate besides those of sites. In a traced function, patterns are named values
(`block0.pattern@1`) and so sites, and replacing one is an ablation of its site.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from mechdiff.core import ranges
from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import (
    HEAD,
    PATTERN,
    Component,
    ComponentSelection,
    pattern_site,
    select,
    site_type,
)
from mechdiff.interventions.record import Intervention
from mechdiff.models.blocks import PATTERNS
from mechdiff.models.denoiser import Examinable
from mechdiff.models.stages import stages
from mechdiff.models.traced.denoiser import TracedNetwork
from mechdiff.models.traced.sites import Site
from mechdiff.sweeps import activations
from mechdiff.sweeps.coords import component_coords
from mechdiff.sweeps.execution.passes import SweepLosses
from mechdiff.sweeps.execution.provenance import provenance
from mechdiff.sweeps.in_memory import sweep_in_memory
from mechdiff.sweeps.replacements import resample_replacements

PATTERN_SOURCES = ("uniform", "identity", "frozen")
TOLERANCE = 1e-2  # of the sum of a pattern over keys, which is 1; enough for half precision


def constant_patterns(network: UNetConfig | TracedNetwork, pattern: str) -> dict[str, np.ndarray]:
    """`uniform` or `identity` patterns for every attention site, one for all heads.

    Returns:
      site -> `(1, queries, keys)`, with 1 for queries if they share one; for a traced function, with the axes
      in the order of the named pattern.
    Raises:
      ConfigError: another name, or `identity` for a pattern whose queries are not its keys.
    """
    if pattern not in ("uniform", "identity"):
        raise ConfigError(unknown("constant pattern", pattern, ("uniform", "identity")))
    if isinstance(network, UNetConfig):
        attends = [stage for stage in stages(network) if stage.op == "attention"]
        return {f"{stage.name}.head": _constant(pattern, stage.resolution**2) for stage in attends}
    named = {name: site for site in network.sites for name in site.names if site_type(name) == PATTERN}
    return {name: _constant_at(name, site, pattern) for name, site in named.items()}


def _constant(pattern: str, tokens: int) -> np.ndarray:
    if pattern == "identity":
        return np.eye(tokens, dtype=np.float32)[None]
    return np.full((1, 1, tokens), 1 / tokens, np.float32)


def _constant_at(name: str, site: Site, pattern: str) -> np.ndarray:
    """`_constant` with the axes of a named pattern, whose heads may be any axis before the keys."""
    row, keys = list(site.shape[1:]), site.shape[-1]
    if pattern == "uniform":
        return np.full([1] * (len(row) - 1) + [keys], 1 / keys, np.float32)
    others = [size for axis, size in enumerate(row) if axis != len(row) + site.unit_axis]
    if others != [keys, keys]:
        raise ConfigError(
            f"pattern {name!r} has axes {others} beside its heads; in an identity pattern queries are keys, "
            "so leave that source out (--sources=uniform,frozen; ablations= in Python)"
        )
    return np.expand_dims(np.eye(keys, dtype=np.float32), len(row) + site.unit_axis)


def replace_pattern(
    identity: Intervention, what: ComponentSelection, patterns: Mapping, kept: float = 0.0
) -> Intervention:
    """`identity` with the patterns of the selected heads mixed with others: A' = kept A + (1 - kept) P.

    Args:
      what: heads, as for `ablate`.
      patterns: attention site -> P, `(heads, queries, keys)`, 1 for what is shared, with or without a leading
        row axis: from `constant_patterns`, or `activations.of_batch(..., collection="patterns")`. For a
        traced function the keys are the sites of its named patterns, with their axes.
      kept: weight of the heads' own patterns; 1 changes nothing.
    Raises:
      ConfigError: a component that is not a head, a site without a pattern, or a weight that is not finite.
    """
    kept = ranges.finite("kept", kept)
    named = any(site_type(site) == PATTERN for site in patterns)
    gate = {site: np.ones(np.shape(identity.gate[site]), np.float32) for site in patterns}
    for name, (site, (start, stop)) in select(identity, what).items():
        stored_at = pattern_site(site) if named else site
        if site_type(site) not in (HEAD, PATTERN) or stored_at not in gate:
            raise ConfigError(f"component {name!r} is not an attention head with a pattern given for it")
        gate[stored_at][..., start:stop] = kept
    if named:
        replacement = {**identity.replacement, **patterns}
        return dataclasses.replace(identity, gate={**identity.gate, **gate}, replacement=replacement)
    return dataclasses.replace(identity, pattern=gate, pattern_replacement=dict(patterns))


def one_pattern_each(identity: Intervention, heads: Sequence[Component], patterns: Mapping) -> Intervention:
    """One intervention per head, which replaces its pattern; stacked, for `Engine.measure`."""
    replaced = [replace_pattern(identity, [head], patterns) for head in heads]

    def stacked(leaves: Sequence[Mapping]) -> dict[str, np.ndarray]:
        return {site: np.stack([leaf[site] for leaf in leaves]) for site in leaves[0]}

    return dataclasses.replace(
        replaced[0],
        gate=stacked([intervention.gate for intervention in replaced]),
        pattern=stacked([intervention.pattern for intervention in replaced]),
    )


def pattern_effects(
    denoiser: Examinable,
    eval_set: EvalSet,
    *,
    ablations: Sequence[str] = PATTERN_SOURCES,
    heads: Sequence[Component] | None = None,
    draws: int = 1,
    block: int = 16,
    folder: Path | None = None,
) -> xr.Dataset:
    """Denoising loss with one head's pattern replaced, image by image.

    Args:
      eval_set: images in [-1, 1], timesteps and noise, as in `ablation.ablation_sweep`.
      ablations: sources of the replacement patterns, of `PATTERN_SOURCES`.
      heads: components; all heads of the network if None.
      draws: donors per image of `frozen`, over which losses are averaged.
      block: images at once.
      folder: losses are kept here too, so that an interrupted run can go on; None: nothing is kept on disk.
    Returns:
      Dataset as of `ablation.ablation_sweep`: `loss` and `change`, dims `ablation, component, t, image`, and
      `clean_loss`, dims `t, image`.
    Raises:
      ConfigError: an unknown source or one twice, a network without heads or named patterns, values named as
        patterns that are not, or more donors than images.
    """
    heads = check_network(denoiser, ablations, heads)
    check_patterns(denoiser, eval_set)
    swept = [_replaced(denoiser, eval_set, heads, name, draws, block, folder) for name in ablations]
    dims = ("ablation", "component", "t", "image")
    return xr.Dataset(
        {
            "loss": (dims, np.stack([losses.loss for losses in swept])),
            "change": (dims, np.stack([losses.change for losses in swept])),
            "clean_loss": (dims[2:], swept[-1].clean_loss),
        },
        coords={
            "ablation": list(ablations),
            **component_coords(denoiser, heads, eval_set.timesteps, eval_set.count),
        },
        attrs={**provenance(denoiser), "draws": draws},
    )


def check_sources(sources: Sequence[str]) -> None:
    """Checks sources of patterns; ConfigError for none, an unknown one, or one twice."""
    ranges.distinct("sources of patterns", sources)
    for source in sources:
        if source not in PATTERN_SOURCES:
            raise ConfigError(unknown("source of patterns", source, PATTERN_SOURCES))


def check_network(
    denoiser: Examinable, sources: Sequence[str], heads: Sequence[Component] | None = None
) -> tuple[Component, ...]:
    """`heads_of`, of a network whose patterns can come from these sources; before anything is computed.

    Raises:
      ConfigError: as `check_sources`, `heads_of` and `constant_patterns`.
    """
    check_sources(sources)
    heads = heads_of(denoiser, heads)
    for source in sources:
        if source != "frozen":
            constant_patterns(denoiser.network, source)
    return heads


def _replaced(
    denoiser: Examinable,
    eval_set: EvalSet,
    heads: Sequence[Component],
    ablation: str,
    draws: int,
    block: int,
    folder: Path | None,
) -> SweepLosses:
    """Losses with the pattern of one head at a time replaced, from one source."""
    named = isinstance(denoiser.network, TracedNetwork)
    patterns = constant_patterns(denoiser.network, "uniform" if ablation == "frozen" else ablation)
    source = None
    if ablation == "frozen":
        source = resample_replacements(denoiser, eval_set, draws=draws)
        source = source if named else dataclasses.replace(source, collection=PATTERNS)
    return sweep_in_memory(
        denoiser,
        eval_set,
        one_pattern_each(denoiser.identity, heads, patterns),
        replacements=source,
        block=block,
        field="replacement" if named else "pattern_replacement",
        folder=folder,
    )


def heads_of(denoiser: Examinable, heads: Sequence[Component] | None = None) -> tuple[Component, ...]:
    """`heads`, or all heads of the network whose patterns can be replaced.

    Raises:
      ConfigError: the network has none.
    """
    if heads:
        return tuple(heads)
    listed = [component for component in denoiser.components() if component.component_type in (HEAD, PATTERN)]
    if isinstance(denoiser.network, UNetConfig):
        if not listed:
            raise ConfigError("this network has no attention heads; there is no pattern to replace")
        return tuple(listed)
    reached = tuple(
        component for component in listed if pattern_site(component.site) in denoiser.identity.gate
    )
    if not reached and denoiser.network.imported:
        raise ConfigError(
            f"{denoiser.name}: this network has no attention with a pattern (of a softmax over positions)"
        )
    if not reached:
        raise ConfigError(
            f"{denoiser.name}: no value is named as a pattern of attention; name what the softmax returns, "
            '`checkpoint_name(pattern, "block0.pattern@1")`, axis 1 being the heads'
        )
    return reached


def check_patterns(denoiser: Examinable, eval_set: EvalSet) -> None:
    """Checks on the first image that values named as patterns are: at least 0, with sum 1 over keys.

    Only traced functions are checked; the UNet's patterns are right by construction.

    Raises:
      ConfigError: a value named as a pattern is not one.
    """
    if isinstance(denoiser.network, UNetConfig):
        return
    patterns = activations.of_batch(denoiser, eval_set.batch(0, np.arange(1)), collection=PATTERNS)
    for site, pattern in patterns.items():
        least, sums = np.min(pattern), np.asarray(pattern, np.float64).sum(-1)
        if least < 0 or np.abs(sums - 1).max() > TOLERANCE:
            raise ConfigError(
                f"{site!r} is not an attention pattern: its least weight is {least:.3g} and its sums over "
                f"keys are {sums.min():.3g} to {sums.max():.3g}; name what the softmax returns, keys last"
            )
