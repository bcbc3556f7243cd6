"""When an effect deserves a name: it must beat components that have no role.

Effects (`effects`) are averaged over images and levels. Selectivity among the targets of one family (of a
picture alone, `part:`, `factor:`) is SI = (E_f - mean of the others) / (E_f + mean of the others), within
[-1, 1]. Two nulls:
  matched   random sets of as many channels of other branches and skips of that resolution (`nulls`)
  untrained the same components of fresh networks of the same configuration
Random sets of channels are no null of heads: on an untrained network 9 of 28 heads beat them at p <= .05. So
the untrained null gives the p. The candidate of a component is the target whose SI stands highest above the
untrained components of its type, in their standard deviations. Its p is the share of these whose own
candidate stands as high, which allows for the choice among targets; p are adjusted over components (Benjamini
& Hochberg 1995). A candidate is a role if the adjusted p <= .05 and SI is also above the 95th percentile, for
that target, of the matched null. All others are `unassigned`. Definitions are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis.roles.nulls import matched_class, matched_sets
from mechdiff.analysis.roles.role_effects import Effects, mean_effects, role_effects
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import leave_one_out
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components

UNASSIGNED = "unassigned"
ROUNDING = 1e-8  # effect, in variances of a target, that float32 rounding can make
FAMILIES = ("part:", "factor:")  # by prefix; the rest are targets of a picture alone


@dataclass(frozen=True)
class Roles:
    """What components of one network do, and how sure that is.

    Attributes:
      components, targets: names.
      selectivity: SI, `[component, target]`.
      standing: SI in standard deviations above the mean of untrained components of the same type.
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
    denoiser: Denoiser,
    eval_set: EvalSet,
    fresh: Sequence[Denoiser],
    chosen: Sequence[Component],
    *,
    count: int = 1000,
    seed: int = 0,
    fdr: float = 0.05,
    **given,
) -> tuple[Roles, xr.Dataset]:
    """Roles of components of one network, with everything measured that `assign` needs; ablation by zeros.

    Args:
      fresh: untrained networks of the same configuration. With n untrained components of a type no p falls
        below 1 / (1 + n): of m components a lone role is found only if n > m / level, 560 for 28 heads;
        `untrained_needed` says how many networks that takes.
      chosen: components; others are left unexamined. The fewer, the smaller the p that a role needs.
      count: random sets for each class of the matched null.
      given: masks, parts, probes, as for `role_effects`.
    Returns:
      The roles, and the effects of the components on all targets.
    """
    names, alone = leave_one_out(denoiser.identity, chosen)
    run = lambda who, stacked, names: role_effects(who, eval_set, stacked, names, **given)
    found, others = run(denoiser, alone, names), [run(one, alone, names) for one in fresh]
    sets, random = matched_sets(chosen, components(denoiser.unet), denoiser.identity, count, seed)
    classes = [matched_class(component, denoiser.identity) for component in chosen]
    return assign(found, run(denoiser, random, sets), others, classes, fdr), found


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
    fdr: float = 0.05,
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
    beyond, kinds = np.zeros(found.shape, bool), _kinds(effects)
    for kind in np.unique(kinds):
        rows = kinds == kind
        standing[rows], p[rows] = against_untrained(found[rows], fresh[fresh_kinds == kind])
    for place, name in enumerate(classes):
        beyond[place] = found[place] > _quantile(null[own == name], 1 - fdr)
    candidate, adjusted = standing.argmax(axis=1), stats.benjamini_hochberg(p)
    given = (adjusted <= fdr) & beyond[np.arange(len(found)), candidate]
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


def against_untrained(
    trained: Float[np.ndarray, "component target"], untrained: Float[np.ndarray, "other target"]
) -> tuple[Float[np.ndarray, "component target"], Float[np.ndarray, " component"]]:
    """How far SI of components stands above that of untrained ones, in their standard deviations, and the
    share of these, the component itself among them, whose own best target stands as high."""
    middle, spread = _middle(untrained)

    def height(rows: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(rows), -np.inf, (rows - middle) / spread)

    standing, highest = height(trained), np.sort(height(untrained).max(axis=-1))
    best = standing.max(axis=-1)
    as_high = len(highest) - np.searchsorted(highest, best)
    return standing, np.where(np.isfinite(best), (1 + as_high) / (1 + len(highest)), 1.0)


def untrained_needed(level: float = 0.05) -> int:
    """Untrained networks whose components let a lone role of a network of as many components be found: the
    least p of n m untrained ones, 1 / (1 + n m), must not be above level / m."""
    return int(np.ceil(1 / level))


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


def _quantile(rows: Float[np.ndarray, "n target"], confidence: float) -> Float[np.ndarray, " target"]:
    """Over the rows that change anything; -1, the least SI there is, where none does."""
    known = [column[np.isfinite(column)] for column in rows.T]
    return np.array([np.quantile(c, confidence, method="higher") if len(c) else -1.0 for c in known])
