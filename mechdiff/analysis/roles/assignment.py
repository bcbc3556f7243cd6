"""Assigns roles to components whose selectivity exceeds that of components without a role.

Effects (`role_effects`) are averaged over images and timesteps. Selectivity among the targets of one group
(of an image alone, `part:`, `factor:`) is SI = (E_f - mean of the others) / (E_f + mean of the others),
within [-1, 1]. Two nulls:
  matched   random sets of as many channels of other branches and skips of that resolution (`nulls`)
  untrained the same components of fresh networks of the same configuration
Random sets of channels are not a fair null for heads: on an untrained network 9 of 28 heads beat them at p <=
.05. So p comes from the untrained null. The candidate of a component is the target of largest z-score
(`z_score`): SI less the mean of untrained components of its type, in their standard deviations. Its p is the
share of these whose largest z-score is as high, which allows for the choice among targets; p are adjusted
over components (Benjamini & Hochberg 1995). A candidate is a role if the adjusted p <= .05 and SI is also
above the 95th percentile, for that target, of the matched null. All others are `unassigned`. Definitions are
ours.
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
from mechdiff.interventions.components import Component, component_type_of
from mechdiff.models.denoiser import Examinable

UNASSIGNED = "unassigned"
ROUNDING = 1e-8  # effect, in variances of a target, that float32 rounding can make
GROUPS = ("part:", "factor:")  # by prefix; the rest are targets of an image alone


@dataclass(frozen=True)
class Roles:
    """Roles of the components of one network, with their p values.

    Attributes:
      components, targets: names.
      selectivity: SI, `[component, target]`.
      z_score: z-score of SI among untrained components of the same type.
      candidate: index of the target of largest z-score, `[component]`.
      p, adjusted: of each candidate, alone and over all components (BH).
      role: of each component: a target or `unassigned`.
    """

    components: tuple[str, ...]
    targets: tuple[str, ...]
    selectivity: Effects
    z_score: Effects
    candidate: np.ndarray
    p: Float[np.ndarray, " component"]
    adjusted: Float[np.ndarray, " component"]
    role: tuple[str, ...]


def examine(
    denoiser: Examinable,
    eval_set: EvalSet,
    fresh: Sequence[Examinable],
    chosen: Sequence[Component],
    *,
    count: int = 1000,
    seed: int = 0,
    fdr: float = 0.05,
    **inputs,
) -> tuple[Roles, xr.Dataset]:
    """Roles of components of one network, with everything measured that `assign` needs; ablation by zeros.

    Args:
      fresh: untrained networks of the same configuration. With n untrained components of a type no p falls
        below 1 / (1 + n): of m components a lone role is found only if n > m / fdr, 560 for 28 heads;
        `untrained_needed` gives the number of networks for that.
      chosen: components to examine. The fewer, the smaller the p that a role needs.
      count: number of random sets for each class of the matched null.
      fdr: false-discovery rate, see `assign`.
      inputs: masks, parts, probes, and the folder that distances are kept in, as for `role_effects`.

    Returns:
      The roles, and the effects of the components on all targets.
    """
    names, alone = leave_one_out(denoiser.identity, chosen)

    def run(network, stacked, names):
        return role_effects(network, eval_set, stacked, names, **inputs)

    sets, random = matched_sets(chosen, denoiser.components(), denoiser.identity, count, seed)  # may refuse
    trained, untrained = run(denoiser, alone, names), [run(network, alone, names) for network in fresh]
    classes = [matched_class(component, denoiser.identity) for component in chosen]
    return assign(trained, run(denoiser, random, sets), untrained, classes, fdr), trained


def target_groups(names: Sequence[str]) -> np.ndarray:
    """Index of the group of each target, see `GROUPS`."""
    return np.array(
        [next((i for i, start in enumerate(GROUPS, 1) if name.startswith(start)), 0) for name in names]
    )


def selectivity(
    effects: Float[np.ndarray, "*cells target"], group: np.ndarray
) -> Float[np.ndarray, "*cells target"]:
    """SI of every target among those of its group; NaN where nothing changes, and in a group of one."""
    effects = np.where(effects > ROUNDING, effects, 0)
    index = np.full(effects.shape, np.nan)
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        values = effects[..., members]
        if len(members) > 1:
            others = (values.sum(axis=-1, keepdims=True) - values) / (len(members) - 1)
            total = values + others
            index[..., members] = np.where(
                total > 0, (values - others) / np.where(total > 0, total, 1), np.nan
            )
    return index


def assign(
    effects: xr.Dataset,
    matched: xr.Dataset,
    untrained: Sequence[xr.Dataset],
    classes: Sequence[str],
    fdr: float = 0.05,
) -> Roles:
    """Roles of components, by the rule of the module.

    Args:
      effects, untrained: of `role_effects` with `leave_one_out` on the network and on fresh ones.
      matched: of the same network with `matched_sets`; its `component` is the class of each set.
      classes: `matched_class` of each component of `effects`.
      fdr: false-discovery rate, and 1 minus the quantile of the matched null that SI must exceed.
    """
    names = [str(name) for name in effects["target"].values]
    group = target_groups(names)

    def index(data: xr.Dataset) -> np.ndarray:
        return selectivity(mean_effects(data.sel(target=names)), group)

    trained, null = index(effects), index(matched)
    fresh, fresh_types = np.concatenate([index(data) for data in untrained]), _component_types(untrained)
    null_classes = np.array([str(name) for name in matched["component"].values])
    types = _component_types([effects])
    z_score, p = np.full(trained.shape, -np.inf), np.ones(len(trained))
    for component_type in np.unique(types):
        rows = types == component_type
        z_score[rows], p[rows] = against_untrained(trained[rows], fresh[fresh_types == component_type])
    limits = [_quantile(null[null_classes == name], 1 - fdr) for name in classes]
    beyond = trained > np.reshape(limits, trained.shape)
    candidate = z_score.argmax(axis=1)
    adjusted = stats.benjamini_hochberg(p)
    significant = (adjusted <= fdr) & beyond[np.arange(len(trained)), candidate]
    return Roles(
        components=tuple(str(name) for name in effects["component"].values),
        targets=tuple(names),
        selectivity=trained,
        z_score=z_score,
        candidate=candidate,
        p=p,
        adjusted=adjusted,
        role=tuple(
            names[best] if is_role else UNASSIGNED
            for best, is_role in zip(candidate, significant, strict=True)
        ),
    )


def against_untrained(
    trained: Float[np.ndarray, "component target"], untrained: Float[np.ndarray, "other target"]
) -> tuple[Float[np.ndarray, "component target"], Float[np.ndarray, " component"]]:
    """Z-scores of SI among untrained components, and p of each component's largest one.

    p is the share of untrained components, the component itself among them, whose largest z-score is as high.
    """
    middle, spread = _middle(untrained)

    def height(rows: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(rows), -np.inf, (rows - middle) / spread)

    z_score, highest = height(trained), np.sort(height(untrained).max(axis=-1))
    best = z_score.max(axis=-1)
    as_high = len(highest) - np.searchsorted(highest, best)
    return z_score, np.where(np.isfinite(best), (1 + as_high) / (1 + len(highest)), 1.0)


def untrained_needed(fdr: float = 0.05) -> int:
    """Number n of untrained networks with which a lone role among m components can be found.

    The least p of n m untrained components, 1 / (1 + n m), must not exceed fdr / m, `fdr` being
    the false-discovery rate.
    """
    return int(np.ceil(1 / fdr))


def _component_types(measured: Sequence[xr.Dataset]) -> np.ndarray:
    """Component type of every component, datasets concatenated."""
    names = [str(name) for data in measured for name in data["component"].values]
    return np.array([component_type_of(name) for name in names])


def _middle(rows: Float[np.ndarray, "set target"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the sets that change a target; NaN where none does."""
    finite = np.isfinite(rows)
    count = finite.sum(axis=0)
    share = np.where(count > 0, count, np.nan)
    middle = np.where(finite, rows, 0).sum(axis=0) / share
    square = np.where(finite, (rows - middle) ** 2, 0).sum(axis=0) / share
    return middle, np.maximum(np.sqrt(square), 1e-6)


def _quantile(rows: Float[np.ndarray, "n target"], confidence: float) -> Float[np.ndarray, " target"]:
    """Quantile over the rows that change a target; -1, the least SI, where none does."""
    finite = [column[np.isfinite(column)] for column in rows.T]
    return np.array([np.quantile(c, confidence, method="higher") if len(c) else -1.0 for c in finite])
