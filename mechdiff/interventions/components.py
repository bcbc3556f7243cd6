"""Components: the addressable parts of sites, and how they are selected by name."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from mechdiff.core import ranges
from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.core.types import AnyArray
from mechdiff.interventions.record import Intervention


@dataclasses.dataclass(frozen=True)
class Component:
    """An addressable part of a site.

    Attributes:
      name: such as `down1.attn0.head2` or `up0.block1.skip`.
      component_type: `res`, `head`, `skip`, `time`, `class` or `condition`; of a traced function the last
        word of its site's name, such as `mlp`.
      site: key into the dicts of an `Intervention`.
      index: units of the site's gate that belong to it, `(start, stop)`.
      depth: position of its stage in the forward pass.
      resolution: side of the feature map, pixels.

    Example:
      >>> from mechdiff.interventions.record import ALWAYS
      >>> head = Component("mid.attn0.head1", "head", "mid.attn0.head", (1, 2), depth=9, resolution=4)
      >>> identity = Intervention({head.site: np.ones(4)}, {head.site: np.zeros((1, 1, 1))}, {}, ALWAYS)
      >>> select(identity, [head])
      {'mid.attn0.head1': ('mid.attn0.head', (1, 2))}
    """

    name: str
    component_type: str
    site: str
    index: tuple[int, int]
    depth: int
    resolution: int


def site_type(site: str) -> str:
    """The component type of a site, the last word of its name: `head` of `down1.attn0.head`."""
    return site.rpartition(".")[2]


def site_stage(site: str) -> str:
    """The stage of a site, its name without the last word: `down1.attn0` of `down1.attn0.head`."""
    return site.rpartition(".")[0]


def component_type_of(name: str) -> str:
    """The component type by a component's name: the last word without its number.

    Example:
      >>> component_type_of("down1.attn0.head12"), component_type_of("up0.block1.skip")
      ('head', 'skip')
    """
    return site_type(name).rstrip("0123456789")


VECTORS = ("time", "class")  # types of sites whose activation is one vector per row, not a feature map
HEAD, PATTERN = "head", "pattern"  # types of sites: outputs of attention heads, and attention patterns
SINGLE = (HEAD, PATTERN, "feature")  # types of sites in which each unit is a component


def component_ranges(site: str, count: int) -> dict[str, tuple[int, int]]:
    """The components of a site with `count` gates: name -> `(start, stop)`, its range of gates.

    Example:
      >>> component_ranges("mid.attn0.head", 2), component_ranges("mid.block0.res", 8)
      ({'mid.attn0.head0': (0, 1), 'mid.attn0.head1': (1, 2)}, {'mid.block0.res': (0, 8)})
    """
    if site_type(site) in SINGLE:
        return {f"{site}{i}": (i, i + 1) for i in range(count)}
    return {site: (0, count)}


def channel_group_ranges(site: str, width: int, count: int) -> dict[str, tuple[int, int]]:
    """At most `count` groups of a site's `width` gates, as equal as can be: name -> `(start, stop)`.

    Raises:
      ConfigError: a count that is no whole number above 0.

    Example:
      >>> channel_group_ranges("mid.block0.res", 8, 3)
      {'mid.block0.res.0-2': (0, 2), 'mid.block0.res.2-5': (2, 5), 'mid.block0.res.5-8': (5, 8)}
    """
    count = min(ranges.whole("channel_groups", count, 1), width)
    edges = [width * i // count for i in range(count + 1)]
    return {f"{site}.{low}-{high}": (low, high) for low, high in itertools.pairwise(edges)}


def pattern_site(site: str) -> str:
    """The site of the attention pattern whose heads' outputs are at `site`; other sites are returned as is.

    Example:
      >>> pattern_site("block0.attn.head"), pattern_site("block0.attn.pattern")
      ('block0.attn.pattern', 'block0.attn.pattern')
    """
    return f"{site.removesuffix(HEAD)}{PATTERN}" if site_type(site) == HEAD else site


def head_site(site: str) -> str:
    """The site of the heads' outputs whose attention pattern is at `site`: the inverse of `pattern_site`."""
    return f"{site.removesuffix(PATTERN)}{HEAD}" if site_type(site) == PATTERN else site


# A selection of components: a regular expression that whole names match, or names and components.
ComponentSelection = str | Iterable[str | Component]


def select(identity: Intervention, what: ComponentSelection) -> dict[str, tuple[str, tuple[int, int]]]:
    """The gates of the selected components.

    Args:
      what: a component's name, a regular expression that whole names match, or several of these and
        `Component`s.

    Returns:
      name -> (site, (start, stop)).
    Raises:
      ConfigError: a name or expression that matches nothing (closest names listed), or one that is malformed.
    """
    known = {
        name: (site, index)
        for site, gate in identity.gate.items()
        for name, index in component_ranges(site, gate.shape[-1]).items()
    }
    chosen = {}
    for item in [what] if isinstance(what, str) else what:
        if isinstance(item, Component):
            chosen[item.name] = (item.site, item.index)
        elif names := [item] if item in known else full_matches(str(item), known):
            chosen |= {name: known[name] for name in names}
        else:
            raise ConfigError(_unknown(str(item), known))
    return chosen


def full_matches(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a regular expression matches as a whole; ConfigError if it is malformed."""
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(f"pattern {pattern!r} is not a regular expression: {error}") from None


def _unknown(what: str, known: Iterable[str]) -> str:
    """The line for what names no component; of a stage or a layer, with an expression for its components."""
    known = list(known)
    if any(re.match(rf"{re.escape(what)}[.\d]", name) for name in known):
        return f"{shorten(what)} is no component but has several; {what + '.*'!r} selects all of them"
    return unknown("component", what, known)


def row_rank(site: str) -> int:
    """Number of axes of one row of the activation at a UNet's site."""
    return 1 if site_type(site) in VECTORS else 3


def has_rows(site: str, replacement: AnyArray) -> bool:
    """Whether a site's replacement has a leading axis of rows or images, by its rank."""
    return np.ndim(replacement) > row_rank(site)


def component_at(components: Sequence[Component], name: str) -> Component:
    """The component called `name`; ConfigError with the closest names if there is none."""
    for component in components:
        if component.name == name:
            return component
    raise ConfigError(unknown("component", name, [component.name for component in components]))
