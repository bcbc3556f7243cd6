"""Builders of interventions: ablate, keep, set gates and temperatures, windows, stacks.

Their first argument, `identity`, may be any intervention: the result does what that does, and the new change
besides. So builders can be chained.
"""

import dataclasses
from collections.abc import Container, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float

from mechdiff.core import ranges
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey
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


def set_gate(identity: Intervention, what: ComponentSelection, value: float) -> Intervention:
    """`identity` with the gates of the selected components set to `value` (0: ablated, 1: unchanged).

    Args:
      what: as in `ablate`.
      value: any finite number.

    Raises:
      ConfigError: an unknown component, or a value that is not a finite number.
    """
    value = ranges.finite("gate", value)
    gate = {site: np.array(leaf) for site, leaf in identity.gate.items()}
    for site, (start, stop) in select(identity, what).values():
        gate[site][..., start:stop] = value
    return dataclasses.replace(identity, gate=gate)


def ablate(
    identity: Intervention,
    what: ComponentSelection,
    ablation: str = "zero",
    replacements: Mapping | None = None,
) -> Intervention:
    """`identity` with the selected components ablated: gate 0, so that a' = replacement.

    Args:
      what: names, components, or a regular expression that whole names match.
      ablation: `zero`, or any other name with `replacements` (only these decide what it does).
      replacements: site -> array broadcastable to one row of the site's activation, see `sweeps.activations`;
        for all sites, not only the selected ones.

    Raises:
      ConfigError: an unknown component, or missing replacements.
    """
    return set_gate(_with_replacements(identity, ablation, replacements), what, 0.0)


def keep_only(
    identity: Intervention,
    what: ComponentSelection,
    ablation: str = "zero",
    replacements: Mapping | None = None,
) -> Intervention:
    """All components ablated but the selected ones; arguments as for `ablate`, `what=""` keeps none."""
    kept = {} if what == "" else select(identity, what)
    others = [name for name in select(identity, ".*") if name not in kept]
    return ablate(identity, others, ablation, replacements)


def set_temperature(identity: Intervention, what: ComponentSelection, value: float) -> Intervention:
    """`identity` with the attention temperature of the selected heads: patterns are softmax(logits / value).

    A value above 1 flattens the pattern, one below 1 sharpens it. In a traced function, heads are selected by
    their outputs (`block0.head1`) or by their patterns (`block0.pattern1`).

    Raises:
      ConfigError: a temperature not above 0, or a component that is not an attention head.
    """
    if not value > 0:
        raise ConfigError(f"temperature={value} must be above 0")
    new = temperatures(identity)
    for name, (site, (start, stop)) in select(identity, what).items():
        stored_at = tempered_site(site, new)
        if stored_at not in new:
            raise ConfigError(_not_tempered(name, site))
        new[stored_at][..., start:stop] = value
    return dataclasses.replace(identity, temperature=new)


def temperatures(identity: Intervention) -> dict[str, Float[np.ndarray, "..."]]:
    """All temperatures that can be set, site -> `(heads,)`: those of `identity`, and 1 for patterns of a
    traced function that have none yet."""
    patterns = [site for site in identity.gate if site_type(site) == PATTERN]
    ones = {site: np.ones(np.shape(identity.gate[site])[-1:], np.float32) for site in patterns}
    return ones | {site: np.array(leaf) for site, leaf in identity.temperature.items()}


def tempered_site(site: str, known: Container[str]) -> str:
    """The site under which a head's temperature is stored: its own in the UNet, its pattern's elsewhere."""
    return site if site in known else pattern_site(site)


def _not_tempered(name: str, site: str) -> str:
    if site_type(site) != HEAD:
        return f"component {name!r} is not an attention head; temperature acts on heads"
    return (
        f"the pattern of {name!r} has no name, as linear attention has no pattern; if it has one, name it "
        f'where it is computed, `checkpoint_name(pattern, "{pattern_site(site)}@1")`'
    )


def windowed(intervention: Intervention, low: int, high: int) -> Intervention:
    """The intervention, acting only at timesteps `low <= t < high`.

    Raises:
      ConfigError: an empty window, one that begins below 0, or bounds that are not integers.
    """
    low, high = ranges.whole("low", low), ranges.whole("high", high)
    if not 0 <= low < high:
        raise ConfigError(f"window [{low}, {high}) is empty or negative; need 0 <= low < high")
    return dataclasses.replace(intervention, window=np.array([low, high], np.int32))


def leave_one_out(
    identity: Intervention,
    what: ComponentSelection,
    ablation: str = "zero",
    replacements: Mapping | None = None,
) -> tuple[tuple[str, ...], Intervention]:
    """One intervention per selected component, each ablating that component alone; stacked.

    Returns:
      Names of the components, and the stack: gates `(components, units)`, the rest shared (`STACKED`).
    Raises:
      ConfigError: as `ablate`.
    """
    chosen = select(identity, what)
    gate = _tiled(identity, len(chosen))
    for row, (site, (start, stop)) in enumerate(chosen.values()):
        gate[site][row, start:stop] = 0
    return tuple(chosen), dataclasses.replace(_with_replacements(identity, ablation, replacements), gate=gate)


def random_subsets(
    key: PRNGKey,
    identity: Intervention,
    what: ComponentSelection,
    count: int,
    size: int,
    ablation: str = "zero",
    replacements: Mapping | None = None,
) -> tuple[Bool[np.ndarray, "count component"], Intervention]:
    """`count` random sets of `size` selected components each; one intervention per set, which ablates it.

    Returns:
      Members of the sets, `(count, components)`, and the stack of interventions: gates `(count, units)`, the
      rest shared (`STACKED`).
    Raises:
      ConfigError: `count` is no whole number above 0, or `size` none between 1 and the number of selected
        components.
    """
    count, size = ranges.whole("count", count, 1), ranges.whole("size", size)
    chosen = list(select(identity, what).values())
    if not 1 <= size <= len(chosen):
        raise ConfigError(f"subset size {size} is out of range; 1 to {len(chosen)} components are selected")
    shuffled = np.argsort(np.asarray(jax.random.uniform(key, (count, len(chosen)))), axis=1)
    members = np.zeros((count, len(chosen)), bool)
    np.put_along_axis(members, shuffled[:, :size], True, axis=1)
    gate = _tiled(identity, count)
    for column, (site, (start, stop)) in enumerate(chosen):
        gate[site][members[:, column], start:stop] = 0
    return members, dataclasses.replace(_with_replacements(identity, ablation, replacements), gate=gate)


def keep_sets(
    identity: Intervention,
    chosen: Sequence[Component],
    members: Bool[np.ndarray, "count component"],
) -> Intervention:
    """One intervention per set, stacked; gates of the `chosen` components that are not in its set are 0.

    Args:
      members: which of `chosen` are in each set.
    """
    gate = _tiled(identity, len(members))
    for column, component in enumerate(chosen):
        gate[component.site][~members[:, column], slice(*component.index)] = 0
    return dataclasses.replace(identity, gate=gate)


def needs_replacements(ablation: str) -> str:
    """Message: an ablation other than `zero` was given no replacements."""
    return (
        f"{ablation} ablation needs replacements; sweeps.activations.activation_means makes those of 'mean', "
        "sweeps.replacements those of 'resample' and 'noise'"
    )


def _with_replacements(identity: Intervention, ablation: str, replacements: Mapping | None) -> Intervention:
    if ablation == "zero":
        return identity
    if replacements is None:
        raise ConfigError(needs_replacements(ablation))
    missing = sorted(set(identity.replacement) - set(replacements))
    if missing:
        raise ConfigError(f"replacements lack {len(missing)} sites of this network, first {missing[0]!r}")
    return dataclasses.replace(
        identity, replacement={site: replacements[site] for site in identity.replacement}
    )


def _tiled(identity: Intervention, count: int) -> dict[str, Float[np.ndarray, "count units"]]:
    return {site: np.tile(np.asarray(gate), (count, 1)) for site, gate in identity.gate.items()}
