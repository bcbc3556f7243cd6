"""When an effect deserves a name: it must beat components that have no role.

Effects (`effects`) are averaged over images and levels. Selectivity among the targets of one family (of a
picture alone, `part:`, `factor:`) is SI = (E_f - mean of the others) / (E_f + mean of the others), within
[-1, 1]. Two nulls:
  matched   random sets of as many channels of other branches and skips of that resolution (`nulls`)
  untrained the same components of fresh networks of the same configuration
The candidate of a component is the target whose SI stands highest above the matched null, in that null's
standard deviations. Its p is the share of random sets whose own candidate stands as high, which allows for
the choice among targets; p are adjusted over components (Benjamini & Hochberg 1995). A candidate is a role if
the adjusted p <= .05 and SI is above the 95th percentile, for that target, of both nulls. All others are
`unassigned`. Definitions are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis.roles.nulls import matched_class, matched_sets
from mechdiff.analysis.roles.role_effects import Effects, mean_effects, role_effects
from mechdiff.core.types import Images, PRNGKey
from mechdiff.interventions.record import Component, leave_one_out
from mechdiff.models.unet import components
from mechdiff.sweeps.denoising import Subject

UNASSIGNED = "unassigned"
ROUNDING = 1e-8  # effect, in variances of a target, that float32 rounding can make
FAMILIES = ("part:", "factor:")  # by prefix; the rest are targets of a picture alone


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
    run = lambda who, stacked, names: role_effects(who, stacked, names, images, timesteps, key, **given)
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
    index = lambda data: selectivity(mean_effects(data.sel(target=names)), family)
    found, null = index(effects), index(matched)
    fresh, fresh_kinds = np.concatenate([index(each) for each in untrained]), _kinds(*untrained)
    own = np.array([str(name) for name in matched["component"].values])
    standing, p = np.full(found.shape, -np.inf), np.ones(len(found))
    beyond = np.zeros(found.shape, bool)
    for place, (name, kind) in enumerate(zip(classes, _kinds(effects))):
        against = null[own == name]
        middle, spread = _middle(against)
        height = lambda rows: np.where(np.isnan(rows), -np.inf, (rows - middle) / spread)  # noqa: B023
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
