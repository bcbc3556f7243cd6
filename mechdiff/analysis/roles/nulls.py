"""Matched null of roles: random sets of channels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mechdiff.core.errors import ConfigError
from mechdiff.interventions.components import Component, site_stage
from mechdiff.interventions.record import Intervention
from mechdiff.models.stages import branch_before

WAY_OUT = "take other components (roles: --part=res), or none (study.random_sets=0, study.role_sets=0)"


def matched_sets(
    components: Sequence[Component],
    pool: Sequence[Component],
    identity: Intervention,
    count: int,
    seed: int = 0,
) -> tuple[list[str], Intervention]:
    """`count` random sets of channels for each class of components (`matched_class`): the matched null.

    Channels are drawn without replacement from the residual branches and skips of `pool` (all components of
    the network) that have the component's resolution, without its own site: sets that hold a part of it would
    share its role. Where there are fewer channels than a component has, all are taken.

    Returns:
      The class of each set, and the stacked interventions.

    Raises:
      ConfigError: a component without another branch or skip of its resolution; or a head of another network
        than a UNet of this package, whose channels are not known.
    """
    rng = np.random.default_rng(seed)
    classes = {matched_class(component, identity): component for component in components}
    gate = {
        site: np.ones((count * len(classes), leaf.shape[-1]), np.float32)
        for site, leaf in identity.gate.items()
    }
    for i, component in enumerate(classes.values()):
        sites = {
            other.site: identity.gate[other.site].shape[-1]
            for other in pool
            if other.component_type in ("res", "skip") and other.resolution == component.resolution
        }
        sites.pop(component.site, None)
        channels = [(site, i) for site, width in sites.items() for i in range(width)]
        if not channels:
            raise ConfigError(f"{component.name}: no other branch or skip of its resolution; {WAY_OUT}")
        for row in range(i * count, (i + 1) * count):
            for i in rng.permutation(len(channels))[: _channels(component, identity)]:
                gate[channels[i][0]][row, channels[i][1]] = 0
    return [name for name in classes for _ in range(count)], replace(identity, gate=gate)


def matched_class(component: Component, identity: Intervention) -> str:
    """The class of a component, within which all share a null: `RESOLUTION x CHANNELS`, and the site for
    branches and skips."""
    excluded = f" not {component.site}" if component.component_type in ("res", "skip") else ""
    return f"{component.resolution} x {_channels(component, identity)}{excluded}"


def _channels(component: Component, identity: Intervention) -> int:
    """Channels of a component; of a head its share of its layer's, which are those of the branch before."""
    start, stop = component.index
    if component.component_type != "head":
        return stop - start
    try:
        branch = branch_before(site_stage(component.site))
    except ConfigError:  # of a network whose stages are called otherwise
        branch = ""
    if branch not in identity.gate:
        raise ConfigError(
            f"{component.name}: a head is compared with random channels, as many as its share of the branch "
            f"that it follows, and which that is, is not known of this network; {WAY_OUT}"
        )
    return identity.gate[branch].shape[-1] * (stop - start) // identity.gate[component.site].shape[-1]
