"""Is some component a bottleneck under every ablation?

It is selected on one half of the networks and tested on the other (`analysis.bottlenecks`): its pooled
relative loss increase must exceed a threshold stated beforehand under every ablation that changes it. Where
the study holds these controls, it must also exceed that of the same component in the untrained network of the
same seed, and the 95th percentile of random sets of as many channels of the same network.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechdiff.analysis import bottlenecks, margins
from mechdiff.analysis.bottlenecks import THRESHOLD
from mechdiff.core.errors import NotTestable
from mechdiff.stats.small_samples import MIN_SEEDS, over_seeds
from mechdiff.study.claims import across_seeds, apart
from mechdiff.study.claims.verdicts import ALPHA, Finding
from mechdiff.study.network_results import NetworkResults


def examine(networks: Sequence[NetworkResults]) -> Finding:
    """The claim on networks of one configuration.

    Raises:
      NotTestable: no networks, sweeps with a single ablation, or no prediction that one changed.
    """
    swept = [[str(ablation) for ablation in network.sweep["ablation"].values] for network in networks]
    ablations = [name for name in swept[0] if all(name in others for others in swept)] if networks else []
    if len(ablations) < 2:
        of_all = ", ".join(ablations) or "none"
        raise NotTestable(f"needs sweeps with at least two ablations; swept in all networks: {of_all}")
    names = [str(name) for name in networks[0].sweep["component"].values]
    sweeps = [network.sweep.sel(ablation=ablations) for network in networks]
    visible = np.logical_or.reduce([across_seeds.changes_predictions(sweep) for sweep in sweeps])
    if not visible.any():
        raise NotTestable(f"ablation ({', '.join(ablations)}) changed no prediction of any network")
    least = bottlenecks.weakest(np.array([_increases(sweep, ablations) for sweep in sweeps]), visible)
    first = bottlenecks.split([f"{n.data}{n.complexity}" for n in networks], [n.seed for n in networks])
    units = min(network.units.effective for network in networks)
    result = bottlenecks.crossed(least, first, units)
    chosen = list(dict.fromkeys(names[i] for i in result.chosen if i >= 0))
    because = (
        f"each half of the networks selects a component, the other tests it: {_tested(chosen, result.share)}"
    )
    p, compared = result.p, []
    if min(result.chosen) >= 0:
        # What the other half of the networks chose.
        tested = np.where(first, result.chosen[1], result.chosen[0])
        increases = least[np.arange(len(networks)), tested, 0]
        seen_by = [np.array(ablations)[visible[:, component]].tolist() for component in tested]
        p, compared = _beyond_controls(networks, result.p, tested, increases, seen_by)
        because += _apart(networks, increases)
    because = "; ".join([because, _counts(ablations, visible), *compared])
    if np.isnan(result.p) and len(networks) >= MIN_SEEDS:
        because += f"; each half needs {MIN_SEEDS} networks, there are {len(networks)} in all"
    negligible = bool(result.p_none < ALPHA)  # False for NaN
    return Finding(
        result.estimate, result.interval, p, len(networks), because,
        null=THRESHOLD, negligible=negligible, p_alone=True,
    )  # fmt: skip


def _increases(sweep: xr.Dataset, ablations: Sequence[str]) -> Float[np.ndarray, "ablation component draws"]:
    weights = across_seeds.weightings(sweep)
    return np.array([across_seeds.increase_draws(sweep, ablation, weights) for ablation in ablations])


def _beyond_controls(
    networks: Sequence[NetworkResults],
    p_threshold: float,
    tested: Int[np.ndarray, " network"],
    increases: Float[np.ndarray, " network"],
    seen_by: Sequence[Sequence[str]],
) -> tuple[float, list[str]]:
    """The largest p of the threshold and of each control, in the networks that hold it; a phrase on each."""
    p, clauses = [p_threshold], []
    for name, values in (
        ("untrained networks", _untrained(networks, tested, seen_by)),
        ("the 95th percentile of random channel sets of the same size", _random(networks, tested, seen_by)),
    ):
        held = np.isfinite(values)
        if not held.any():
            clauses.append(f"against {name}: not testable here, the study holds none")
            continue
        mean, _, p_control = over_seeds((increases - values)[held])
        p.append(p_control)
        p_text = f" (p {p_control:.2g})" if np.isfinite(p_control) else ""
        of_some = "" if held.all() else f" in the {held.sum()} of {len(held)} networks that hold them"
        clauses.append(f"{mean:.1f} points above {name}{of_some}{p_text}")
    return float(np.max(p)) if np.isfinite(p).all() else np.nan, clauses


def _untrained(
    networks: Sequence[NetworkResults], tested: np.ndarray, seen_by: Sequence[Sequence[str]]
) -> Float[np.ndarray, " network"]:
    """Pooled ΔL/L (%) of the same component in the untrained network of the same seed: the largest over
    ablations, which is conservative; NaN where a network has none beside it."""
    largest = np.full(len(networks), np.nan)
    for i, (network, component) in enumerate(zip(networks, tested, strict=True)):
        if network.control is not None:
            swept = [name for name in seen_by[i] if name in network.control["ablation"].values]
            increases = [across_seeds.relative_increases(network.control, name)[component] for name in swept]
            largest[i] = max(increases, default=np.nan)
    return largest


def _random(
    networks: Sequence[NetworkResults], tested: np.ndarray, seen_by: Sequence[Sequence[str]]
) -> Float[np.ndarray, " network"]:
    """95th percentile of pooled ΔL/L (%) over random sets of as many channels, largest over ablations; NaN
    where a network has none."""
    largest = np.full(len(networks), np.nan)
    for i, (network, component) in enumerate(zip(networks, tested, strict=True)):
        if network.random_sets is not None:
            name = str(network.sweep["component"].values[component])
            sets = network.random_sets["relative_increase"].sel(component=name)
            swept = [ablation for ablation in seen_by[i] if ablation in sets["ablation"].values]
            quantiles = [
                np.quantile(sets.sel(ablation=ablation).values, margins.OF_RANDOM_SETS) for ablation in swept
            ]
            largest[i] = max(quantiles, default=np.nan)
    return largest


def _counts(ablations: Sequence[str], visible: Bool[np.ndarray, "ablation component"]) -> str:
    """How many components each ablation changes; it does not test the others."""
    total = visible.shape[1]
    clauses = [
        f"{ablation} changes {int(changed.sum())} of {total}"
        for ablation, changed in zip(ablations, visible, strict=True)
        if not changed.all()
    ]
    if not clauses:
        return f"every ablation changes all {total} components"
    return "components that an ablation doesn't change don't count: " + ", ".join(clauses)


def _tested(chosen: Sequence[str], share: float) -> str:
    if np.isnan(share):
        return "too few networks for two halves"
    above = f"above {THRESHOLD:g} % in {share:.0%} of networks under every ablation that changes it"
    return f"{' and '.join(chosen) or 'none'}, {above}"


def _apart(networks: Sequence[NetworkResults], increases: Float[np.ndarray, " network"]) -> str:
    summaries = (summary(networks, increases, unit=" %") for summary in (apart.by_data, apart.by_start))
    text = "; ".join(filter(None, summaries))
    return f" ({text})" if text else ""
