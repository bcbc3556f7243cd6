"""What does a component do? Its effect on what the predicted picture holds, and when that deserves a name.

Definitions are ours (how arXiv 2506.17237 assigned its eight mechanisms is not known). With x0hat the clean
picture that the network's output implies (`diffusion.predict_x0`, cut to [-1, 1]), the effect of component n
on target f (`metrics.targets`), per level and image, common random numbers in both arms, is
  E_f(n) = |f(x0hat) - f(x0hat under do n)|^2 / Var f,
  Var f  = E |f(x0) - E f(x0)|^2 over the pictures themselves.
Effects are averaged over images and levels. Selectivity among the targets of one family (of a picture alone,
`part:`, `factor:`) is SI = (E_f - mean of the others) / (E_f + mean of the others), in [-1, 1].

A role is a claim about a component, so it must beat components that have none. Two nulls:
  matched   random sets of as many channels of other branches and skips of that resolution (`matched_sets`)
  untrained the same components of fresh networks of the same configuration
The candidate of a component is the target whose SI stands highest above the matched null, in that null's
standard deviations. Its p is the share of random sets whose own candidate stands as high, which allows for
the choice among targets; p are adjusted over components (Benjamini & Hochberg 1995). A candidate is a role if
the adjusted p <= .05 and SI is above the 95th percentile, for that target, of both nulls. All others are
`unassigned`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from mechdiff import stats
from mechdiff.diffusion import predict_x0
from mechdiff.engine import Engine, Seen
from mechdiff.errors import ConfigError
from mechdiff.interventions import Component, Intervention, leave_one_out
from mechdiff.metrics import targets
from mechdiff.sweep import Subject
from mechdiff.types import Images, PRNGKey, PyTree
from mechdiff.unet import components

Effects = Float[np.ndarray, "component target"]
UNASSIGNED = "unassigned"
ROUNDING = 1e-8  # effect, in variances of a target, that float32 rounding can make
FAMILIES = ("part:", "factor:")  # by prefix; the rest are targets of a picture alone


@dataclass(frozen=True)
class Shift:
    """A reduction of the engine: squared distance of every target from that of the unchanged prediction, and
    of that from the picture's own. `own` are masks or None, `shared` probes as arrays or None."""

    parts: tuple[str, ...] = ()

    def __call__(self, seen: Seen) -> tuple[Float[Array, "n batch target"], Float[Array, "batch target"]]:
        read = lambda x: targets.features(x, seen.own, self.parts, seen.shared)  # noqa: E731
        clean = read(pictures(seen, seen.clean))
        return _distance(read(pictures(seen, seen.eps)), clean), _distance(clean, read(seen.x0))


@dataclass(frozen=True)
class Roles:
    """What components of one network do, and how sure that is.

    Attributes:
      components, targets: names.
      selectivity: SI, `[component, target]`.
      standing: SI in standard deviations above the mean of the matched null.
      candidate: index of the target of highest standing, `[component]`.
      p, adjusted: of each candidate, alone and over all components (BH).
      role: of each component: a target or `unassigned`.
    """

    components: tuple[str, ...]
    targets: tuple[str, ...]
    selectivity: Effects
    standing: Effects
    candidate: np.ndarray
    p: Float[np.ndarray, " component"]
    adjusted: Float[np.ndarray, " component"]
    role: tuple[str, ...]


def role_effects(
    subject: Subject,
    stacked: Intervention,
    names: Sequence[str],
    images: Images,
    timesteps: Sequence[int],
    key: PRNGKey,
    *,
    masks: Float[np.ndarray, "image parts side side"] | None = None,
    parts: Sequence[str] = (),
    probes: Mapping[str, PyTree] | None = None,
    engine: Engine | None = None,
) -> xr.Dataset:
    """E_f of every intervention of a stack.

    Args:
      stacked, names: as `leave_one_out` or `matched_sets` gives them.
      images: in [-1, 1]; at least 2.
      masks, parts: of the same images, `data.synthetic.PARTS`; without them there are no targets `part:`.
      probes: of `probes.as_arrays`; without them there are no targets `factor:`.
      engine: of the subject, to keep its programs.
    Returns:
      Dataset with `effect`, dims `component, target, t, image`, and `error`, dims `target, t, image`: how far
      the unchanged prediction is from the picture, in the same units. Targets that don't vary are left out.
    Raises:
      ConfigError: pictures that 4x4 cells do not divide, or fewer than 2.
    """
    stats.intervals.check_units(len(images))
    targets.image_targets(subject.unet.image_size)  # may refuse
    images, index = np.asarray(images, np.float32), np.arange(len(images))
    own = None if masks is None else np.asarray(masks, np.float32)
    shared = None if probes is None else dict(probes)
    found = target_variances(images, own, tuple(parts), shared)
    variance = np.array([value for value, _ in found.values()])
    varies = np.flatnonzero(variance > 1e-9)
    engine = engine or Engine(subject.unet, subject.schedule, subject.params)
    reduce = Shift(tuple(parts))
    levels = [
        engine.reduce(stacked, images, index, int(t), key, reduce, own, shared) for t in np.asarray(timesteps)
    ]
    scaled = lambda a: a[..., varies] / variance[varies]  # noqa: E731
    effect = np.stack([scaled(changed) for changed, _ in levels])  # t, component, image, target
    error = np.stack([scaled(clean) for _, clean in levels])
    return xr.Dataset(
        {
            "effect": (
                ("component", "target", "t", "image"),
                effect.transpose(1, 3, 0, 2).astype(np.float32),
            ),
            "error": (("target", "t", "image"), error.transpose(2, 0, 1).astype(np.float32)),
        },
        coords={
            "component": list(names),
            "target": [list(found)[i] for i in varies],
            "t": np.asarray(timesteps, np.int32),
            "image": index,
            "log_snr": ("t", np.asarray(subject.schedule.log_snr)[np.asarray(timesteps)]),
            "variance": ("target", variance[varies]),
        },
        attrs={"subject": subject.name},
    )


def target_variances(
    images: Images, masks=None, parts: tuple[str, ...] = (), probes: Mapping[str, PyTree] | None = None
) -> dict[str, tuple[float, int]]:
    """Var f over pictures, all numbers of a target together, and how many numbers it has; sorted by name."""
    read = jax.jit(targets.features, static_argnames="parts")(images, masks, parts=parts, probes=probes)
    spread = lambda f: float(np.var(np.asarray(f, np.float64), axis=0).sum())  # noqa: E731
    return {name: (spread(f), f.shape[-1]) for name, f in sorted(read.items())}


def matched_sets(
    components: Sequence[Component],
    pool: Sequence[Component],
    identity: Intervention,
    count: int,
    seed: int = 0,
    kind: str = "zero",
    fills: Mapping | None = None,
) -> tuple[list[str], Intervention]:
    """`count` random sets of channels for each class of components (`matched_class`): the matched null.

    Channels are drawn without replacement from the residual branches and skips of `pool` (all components of
    the network) that have the component's resolution, its own site left out: else sets that hold a part of it
    would share its role. Where there are fewer channels than a component has, all are taken.

    Returns:
      The class of each set, and the stacked interventions.
    """
    rng = np.random.default_rng(seed)
    classes = {matched_class(component, identity): component for component in components}
    stacked = leave_one_out(identity, [], kind, fills)[1]
    gate = {
        site: np.ones((count * len(classes), leaf.shape[-1]), np.float32)
        for site, leaf in identity.gate.items()
    }
    for place, component in enumerate(classes.values()):
        sites = {
            one.site: identity.gate[one.site].shape[-1]
            for one in pool
            if one.kind in ("res", "skip") and one.resolution == component.resolution
        }
        sites.pop(component.site, None)
        channels = [(site, i) for site, width in sites.items() for i in range(width)]
        if not channels:
            raise ConfigError(f"{component.name}: no other branch or skip of its resolution")
        for row in range(place * count, (place + 1) * count):
            for i in rng.permutation(len(channels))[: _channels(component, identity)]:
                gate[channels[i][0]][row, channels[i][1]] = 0
    return [name for name in classes for _ in range(count)], replace(stacked, gate=gate)


def matched_class(component: Component, identity: Intervention) -> str:
    """Components of one class share a null: `RESOLUTION x CHANNELS`, and the site of branches and skips."""
    own = f" not {component.site}" if component.kind in ("res", "skip") else ""
    return f"{component.resolution} x {_channels(component, identity)}{own}"


def _channels(component: Component, identity: Intervention) -> int:
    """Channels of a component; of a head its share of its layer's, which are those of the branch before."""
    start, stop = component.index
    if component.kind != "head":
        return stop - start
    branch = component.site.replace("attn", "block").removesuffix("head") + "res"
    return identity.gate[branch].shape[-1] * (stop - start) // identity.gate[component.site].shape[-1]


def examine(
    subject: Subject,
    fresh: Sequence[Subject],
    chosen: Sequence[Component],
    images: Images,
    timesteps: Sequence[int],
    key: PRNGKey,
    *,
    count: int = 200,
    seed: int = 0,
    level: float = 0.05,
    **given,
) -> tuple[Roles, xr.Dataset]:
    """Roles of components of one network, with everything measured that `assign` needs; ablation by zeros.

    Args:
      fresh: untrained networks of the same configuration (`pipeline.untrained` of a few seeds).
      chosen: components; others are left unexamined. The fewer, the smaller the p that a role needs.
      count: random sets for each class. No p falls below 1 / (1 + count): with m components a lone role is
        found only if count > m / level.
      given: masks, parts, probes, as for `role_effects`.
    Returns:
      The roles, and the effects of the components on all targets.
    """
    names, alone = leave_one_out(subject.identity, chosen)
    run = lambda who, stacked, names: role_effects(who, stacked, names, images, timesteps, key, **given)  # noqa: E731
    found, others = run(subject, alone, names), [run(one, alone, names) for one in fresh]
    sets, random = matched_sets(chosen, components(subject.unet), subject.identity, count, seed)
    classes = [matched_class(component, subject.identity) for component in chosen]
    return assign(found, run(subject, random, sets), others, classes, level), found


def families(names: Sequence[str]) -> np.ndarray:
    """Number of the family of each target."""
    return np.array(
        [next((i for i, start in enumerate(FAMILIES, 1) if name.startswith(start)), 0) for name in names]
    )


def selectivity(
    effects: Float[np.ndarray, "*cells target"], family: np.ndarray
) -> Float[np.ndarray, "*cells target"]:
    """SI of every target among those of its family; NaN where nothing changes, and in a family of one."""
    effects = np.where(effects > ROUNDING, effects, 0)
    found = np.full(effects.shape, np.nan)
    for number in np.unique(family):
        members = np.flatnonzero(family == number)
        own = effects[..., members]
        if len(members) > 1:
            others = (own.sum(axis=-1, keepdims=True) - own) / (len(members) - 1)
            total = own + others
            found[..., members] = np.where(total > 0, (own - others) / np.where(total > 0, total, 1), np.nan)
    return found


def assign(
    effects: xr.Dataset,
    matched: xr.Dataset,
    untrained: Sequence[xr.Dataset],
    classes: Sequence[str],
    level: float = 0.05,
) -> Roles:
    """Roles of components, see the module.

    Args:
      effects, untrained: of `role_effects` with `leave_one_out` on the network and on fresh ones.
      matched: of the same network with `matched_sets`; its `component` is the class of each set.
      classes: `matched_class` of each component of `effects`.
      level: false-discovery rate, and 1 minus the percentile of the nulls.
    """
    names = [str(name) for name in effects["target"].values]
    family = families(names)
    index = lambda data: selectivity(mean_effects(data.sel(target=names)), family)  # noqa: E731
    found, null = index(effects), index(matched)
    fresh, fresh_kinds = np.concatenate([index(each) for each in untrained]), _kinds(*untrained)
    own = np.array([str(name) for name in matched["component"].values])
    standing, p = np.full(found.shape, -np.inf), np.ones(len(found))
    beyond = np.zeros(found.shape, bool)
    for place, (name, kind) in enumerate(zip(classes, _kinds(effects))):
        against = null[own == name]
        middle, spread = _middle(against)
        height = lambda rows: np.where(np.isnan(rows), -np.inf, (rows - middle) / spread)  # noqa: B023, E731
        standing[place], highest = height(found[place]), height(against).max(axis=-1)
        if np.isfinite(standing[place]).any():
            p[place] = (1 + (highest >= standing[place].max()).sum()) / (1 + len(highest))
        bars = [_quantile(rows, 1 - level) for rows in (against, fresh[fresh_kinds == kind])]
        beyond[place] = found[place] > np.maximum(*bars)
    candidate, adjusted = standing.argmax(axis=1), stats.benjamini_hochberg(p)
    given = (adjusted <= level) & beyond[np.arange(len(found)), candidate]
    return Roles(
        components=tuple(str(name) for name in effects["component"].values),
        targets=tuple(names),
        selectivity=found,
        standing=standing,
        candidate=candidate,
        p=p,
        adjusted=adjusted,
        role=tuple(names[best] if is_one else UNASSIGNED for best, is_one in zip(candidate, given)),
    )


def mean_effects(data: xr.Dataset) -> Effects:
    """E_f averaged over levels and images."""
    return data["effect"].mean(("t", "image")).transpose("component", "target").values.astype(np.float64)


def pictures(seen: Seen, eps: Array) -> Array:
    """The clean pictures that predicted noise implies, cut to their range, as samplers do."""
    flat = eps.reshape(-1, *eps.shape[-3:])
    x_t = jnp.broadcast_to(seen.x_t, eps.shape).reshape(flat.shape)
    x0 = predict_x0(seen.schedule, x_t, jnp.full(len(flat), seen.t), flat)
    return jnp.clip(x0, -1, 1).reshape(eps.shape)


def _kinds(*measured: xr.Dataset) -> np.ndarray:
    """Kind of every component, one dataset after the other."""
    names = [str(name) for data in measured for name in data["component"].values]
    return np.array([name.rsplit(".", 1)[1].rstrip("0123456789") for name in names])


def _middle(rows: Float[np.ndarray, "set target"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over the sets that change anything; NaN where none does."""
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    share = np.where(count > 0, count, np.nan)
    middle = np.where(known, rows, 0).sum(axis=0) / share
    square = np.where(known, (rows - middle) ** 2, 0).sum(axis=0) / share
    return middle, np.maximum(np.sqrt(square), 1e-6)


def _quantile(rows: Float[np.ndarray, "n target"], level: float) -> Float[np.ndarray, " target"]:
    """Over the rows that change anything; -1, the least SI there is, where none does."""
    known = [column[np.isfinite(column)] for column in rows.T]
    return np.array([np.quantile(c, level, method="higher") if len(c) else -1.0 for c in known])


def _distance(one: Mapping[str, Array], other: Mapping[str, Array]) -> Float[Array, "*rows target"]:
    # By name: dicts come back sorted from a compiled program.
    return jnp.stack([((one[name] - other[name]) ** 2).sum(-1) for name in sorted(other)], axis=-1)
