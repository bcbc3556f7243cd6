"""Interventions in words: what differs from the identity."""

import html
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from mechdiff.interventions.components import component_ranges, site_type
from mechdiff.interventions.record import ALWAYS, Intervention, stack_size

SHOWN = 4  # names in a list; the rest is counted


def describe(intervention: Intervention, replaced: Mapping[str, str] | None = None) -> str:
    """What an intervention does, in one line.

    Args:
      replaced: component -> name of its replacement, where the replacement itself is not in the intervention.

    Example:
      >>> from mechdiff.interventions.build import ablate, windowed
      >>> identity = Intervention({"mid.head": np.ones(4)}, {"mid.head": np.zeros((1, 1, 1))}, {}, ALWAYS)
      >>> describe(identity)
      'identity'
      >>> describe(windowed(ablate(identity, ["mid.head3"]), 0, 300))
      'zero: mid.head3; t in [0, 300)'
    """
    leaves = jax.tree.leaves(intervention)
    if not isinstance(intervention.gate, Mapping):  # the axes of `STACKED`, say
        return "of no sites, within a transformation"
    if not all(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves) or _is_traced(leaves):
        return f"of {len(intervention.gate)} sites, within a transformation"
    rows = max((np.ndim(gate) for gate in intervention.gate.values()), default=1)
    if rows > 1:
        return f"{stack_size(intervention)} of them stacked, {len(intervention.gate)} sites"
    phrases = [f"{label}: {listed(names)}" for label, names in _groups(intervention, replaced or {}).items()]
    low, high = (int(edge) for edge in np.asarray(intervention.window).reshape(-1)[-2:])
    if phrases and (low, high) != tuple(int(edge) for edge in ALWAYS):
        phrases.append(f"t in [{low}, {high})")
    return "; ".join(phrases) or "identity"


def listed(names: Iterable[str]) -> str:
    """Names joined by commas; if they are many, the first few and the number of the others.

    Example:
      >>> listed(f"head{i}" for i in range(9))
      'head0, head1, head2, head3 and 5 more'
    """
    names = list(names)
    rest = len(names) - SHOWN
    return ", ".join(names) if rest <= 1 else f"{', '.join(names[:SHOWN])} and {rest} more"


def table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A heading and a table of two columns as escaped HTML: how notebooks show a record."""
    cells = "".join(
        f'<tr><td style="text-align:left">{html.escape(name)}</td>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f"<div><b>{html.escape(title)}</b><table>{cells}</table></div>"


def _is_traced(leaves: list) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _added(site: str, direction: np.ndarray, intervention: Intervention) -> Iterable[tuple[str, float]]:
    """The components of a site to which a direction is added, and its length in each."""
    if site_type(site) != "head":
        return [(site, float(np.linalg.norm(direction)))]
    ranges = component_ranges(site, np.shape(intervention.gate[site])[-1]).items()
    lengths = [(name, float(np.linalg.norm(direction[..., a:b, :]))) for name, (a, b) in ranges]
    return [(name, length) for name, length in lengths if length]


def _groups(intervention: Intervention, replaced: Mapping[str, str]) -> dict[str, list[str]]:
    """Action -> names of the components to which it is applied."""
    groups: dict[str, list[str]] = {}
    for site, gate in intervention.gate.items():
        zero = not np.any(np.asarray(intervention.replacement.get(site, 0.0)))
        for name, (start, stop) in component_ranges(site, np.shape(gate)[-1]).items():
            for value in np.unique(np.asarray(gate)[start:stop]):
                if value == 1:
                    continue
                source = replaced.get(name, "zero" if zero else "replaced")
                label = source if value == 0 else f"scale {value:.3g}"
                if value != 0 and source != "zero":
                    label = f"{value:.3g} of itself, the rest {source}"
                groups.setdefault(label, []).append(name)
    for field, word in (("temperature", "temperature"), ("pattern", "pattern gate")):
        for site, values in getattr(intervention, field).items():
            for head, value in enumerate(np.asarray(values)):
                if value != 1:
                    groups.setdefault(f"{word} {value:.3g}", []).append(f"{site}{head}")
    for site, direction in intervention.add.items():
        for name, length in _added(site, np.asarray(direction), intervention):
            groups.setdefault("add", []).append(f"{name} (length {length:.3g})")
    return groups
