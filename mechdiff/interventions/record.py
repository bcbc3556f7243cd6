"""Interventions as pytrees: building, selecting, stacking and windowing them.

An intervention never touches the network: it is an argument of it. Arrays are made in NumPy, so
building thousands costs no compilation.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.types import AnyArray, PRNGKey, PyTree, Timesteps

ALWAYS = np.array([0, np.iinfo(np.int32).max], np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Intervention:
    """What is done to every site; the identity has gates 1, temperatures 1 and fills 0.

    Attributes:
      gate: site -> `(units,)`; 1 leaves a unit alone, 0 replaces it, between is a dose.
      fill: site -> what replaces it, broadcastable to one row of the site's activation.
      temperature: attention site -> `(heads,)`, > 0.
      window: `(2,)` int32, half-open interval of t in which the intervention acts.
      pattern: attention site -> `(heads,)`; 1 leaves a head's pattern alone, 0 replaces it. Only the sites
        named here are looked at: by the structure of the pytree, whatever the values.
      pattern_fill: the sites of `pattern` -> what replaces patterns, `(heads, queries, keys)` or 1 for
        heads or queries that share it.
    Any leaf may have a leading row axis as long as the batch. Leaves are arrays of NumPy or JAX, or
    whatever a transformation puts in their place, such as the axes of `STACKED`.
    """

    gate: PyTree
    fill: PyTree
    temperature: PyTree
    window: PyTree
    pattern: PyTree = dataclasses.field(default_factory=dict)
    pattern_fill: PyTree = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Component:
    """An addressable part of a site.

    Attributes:
      name: such as `down1.attn0.head2` or `up0.block1.skip`.
      kind: `res`, `head`, `skip` or `time`.
      site: key into the dicts of an `Intervention`.
      index: units of the site's gate that belong to it, `(start, stop)`.
      depth: position of its stage in the forward pass.
      resolution: side of the feature map, pixels.
    """

    name: str
    kind: str
    site: str
    index: tuple[int, int]
    depth: int
    resolution: int


def kind_of(site: str) -> str:
    """The kind of a site: the last word of its name."""
    return site.rsplit(".", 1)[1]


def units(site: str, count: int) -> dict[str, tuple[int, int]]:
    """Component names of a site with `count` gates and the gates each owns: heads singly, else all."""
    if kind_of(site) == "head":
        return {f"{site}{i}": (i, i + 1) for i in range(count)}
    return {site: (0, count)}


def select(identity: Intervention, what: str | Iterable) -> dict[str, tuple[str, tuple[int, int]]]:
    """Resolve component names, `Component`s or one regular expression (full match) to gates.

    Returns:
      name -> (site, (start, stop)).
    Raises:
      ConfigError: a name or pattern that matches nothing (closest names listed).
    """
    known = {
        name: (site, index)
        for site, gate in identity.gate.items()
        for name, index in units(site, gate.shape[-1]).items()
    }
    if isinstance(what, str):
        try:
            chosen = {name: value for name, value in known.items() if re.fullmatch(what, name)}
        except re.error as error:
            raise ConfigError(f"pattern {what!r} is not a regular expression: {error}") from None
        if not chosen:
            raise ConfigError(unknown("component", what, known))
        return chosen
    chosen = {}
    for item in what:
        if isinstance(item, Component):
            chosen[item.name] = (item.site, item.index)
        elif item in known:
            chosen[item] = known[item]
        else:
            raise ConfigError(unknown("component", item, known))
    return chosen


def scale(identity: Intervention, what, dose: float) -> Intervention:
    """Gates of the selected components set to `dose`; the rest as in `identity`."""
    gate = {site: np.array(value) for site, value in identity.gate.items()}
    for site, (start, stop) in select(identity, what).values():
        gate[site][..., start:stop] = dose
    return dataclasses.replace(identity, gate=gate)


def ablate(identity: Intervention, what, kind: str = "zero", fills: Mapping | None = None) -> Intervention:
    """The selected components replaced.

    Args:
      kind: `zero`, or any other name with `fills` given (the fills are what makes the kind).
      fills: site -> array broadcastable to a row of the site's activation, see `capture`.
    """
    return scale(_filled(identity, kind, fills), what, 0.0)


def keep_only(identity: Intervention, what, kind: str = "zero", fills: Mapping | None = None) -> Intervention:
    """Every component but the selected ones replaced."""
    keep = select(identity, what) if not isinstance(what, str) or what else {}
    others = [name for name in select(identity, ".*") if name not in keep]
    return ablate(identity, others, kind, fills)


def temperature(identity: Intervention, what, value: float) -> Intervention:
    """Attention temperature of the selected heads; above 1 flattens the pattern, below 1 sharpens it."""
    if not value > 0:
        raise ConfigError(f"temperature={value} must be above 0")
    new = {site: np.array(array) for site, array in identity.temperature.items()}
    for name, (site, (start, stop)) in select(identity, what).items():
        if site not in new:
            raise ConfigError(f"component {name!r} is not an attention head; temperature acts on heads")
        new[site][..., start:stop] = value
    return dataclasses.replace(identity, temperature=new)


def windowed(intervention: Intervention, low: int, high: int) -> Intervention:
    """The intervention acting only where `low <= t < high`."""
    if not 0 <= low < high:
        raise ConfigError(f"window [{low}, {high}) is empty or negative; need 0 <= low < high")
    return dataclasses.replace(intervention, window=np.array([low, high], np.int32))


def leave_one_out(
    identity: Intervention, what, kind: str = "zero", fills: Mapping | None = None
) -> tuple[tuple[str, ...], Intervention]:
    """One intervention per selected component, stacked: gates get a leading axis, fills are shared."""
    chosen = select(identity, what)
    gate = _tiled(identity, len(chosen))
    for row, (site, (start, stop)) in enumerate(chosen.values()):
        gate[site][row, start:stop] = 0
    return tuple(chosen), dataclasses.replace(_filled(identity, kind, fills), gate=gate)


def random_subsets(
    key: PRNGKey,
    identity: Intervention,
    what,
    count: int,
    size: int,
    kind="zero",
    fills: Mapping | None = None,
) -> tuple[Bool[np.ndarray, "count component"], Intervention]:
    """`count` random sets of `size` components, each ablated together; the sets and the stacked pytree."""
    chosen = list(select(identity, what).values())
    if not 1 <= size <= len(chosen):
        raise ConfigError(f"subset size {size} is out of range; 1 to {len(chosen)} components are selected")
    ranks = np.argsort(np.asarray(jax.random.uniform(key, (count, len(chosen)))), axis=1)
    members = np.zeros((count, len(chosen)), bool)
    np.put_along_axis(members, ranks[:, :size], True, axis=1)
    gate = _tiled(identity, count)
    for column, (site, (start, stop)) in enumerate(chosen):
        gate[site][members[:, column], start:stop] = 0
    return members, dataclasses.replace(_filled(identity, kind, fills), gate=gate)


def keep_sets(
    identity: Intervention,
    chosen: Sequence[Component],
    members: Bool[np.ndarray, "count component"],
    kind: str = "zero",
    fills: Mapping | None = None,
) -> Intervention:
    """One intervention per set, stacked: those of the `chosen` components replaced that are not in it."""
    gate = _tiled(identity, len(members))
    for column, component in enumerate(chosen):
        gate[component.site][~members[:, column], slice(*component.index)] = 0
    return dataclasses.replace(_filled(identity, kind, fills), gate=gate)


# vmap axes of what `leave_one_out` and `random_subsets` return: only gates are stacked
STACKED = Intervention(gate=0, fill=None, temperature=None, window=None, pattern=None, pattern_fill=None)


def rows(intervention: Intervention, start: int, stop: int) -> Intervention:
    """Interventions `start` to `stop` of a stack, by `STACKED`."""
    return dataclasses.replace(intervention, gate={k: v[start:stop] for k, v in intervention.gate.items()})


def in_window(intervention: Intervention, t: Timesteps) -> Intervention:
    """The intervention as it acts at `t`: gates, temperatures and patterns per row, 1 outside the window."""
    window = jnp.asarray(intervention.window)
    inside = (t >= window[..., 0]) & (t < window[..., 1])
    act = lambda leaf: jnp.where(inside[:, None], leaf, 1.0)
    return dataclasses.replace(
        intervention,
        gate=jax.tree.map(act, intervention.gate),
        temperature=jax.tree.map(act, intervention.temperature),
        pattern=jax.tree.map(act, intervention.pattern),
    )


def has_rows(site: str, fill: AnyArray) -> bool:
    """Whether a fill of a site has a leading axis of rows or images."""
    return np.ndim(fill) > (1 if kind_of(site) == "time" else 3)


def _filled(identity: Intervention, kind: str, fills: Mapping | None) -> Intervention:
    if kind == "zero":
        return identity
    if fills is None:
        raise ConfigError(
            f"ablation kind {kind!r} needs fills; capture.activation_means makes those of 'mean'"
        )
    missing = sorted(set(identity.fill) - set(fills))
    if missing:
        raise ConfigError(f"fills lack {len(missing)} sites of this network, first {missing[0]!r}")
    return dataclasses.replace(identity, fill={site: fills[site] for site in identity.fill})


def _tiled(identity: Intervention, count: int) -> dict[str, Float[np.ndarray, "count units"]]:
    return {site: np.tile(np.asarray(gate), (count, 1)) for site, gate in identity.gate.items()}


def component_at(components: Sequence[Component], name: str) -> Component:
    """The component called `name`, or an error with the closest names."""
    for component in components:
        if component.name == name:
            return component
    raise ConfigError(unknown("component", name, [component.name for component in components]))
