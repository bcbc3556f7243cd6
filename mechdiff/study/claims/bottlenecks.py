"""Is some component a bottleneck, whatever replaces it?

Named by half of the networks and tested by the other (`analysis.bottlenecks`): its pooled relative loss
increase must exceed a threshold stated beforehand under every kind of ablation that can see it. Where the
study holds them, it must also exceed what the same component costs in the untrained network of the same seed,
and the 95th percentile of random sets of as many channels of the same network.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff.analysis import bottlenecks
from mechdiff.analysis.bottlenecks import THRESHOLD, Bottleneck
from mechdiff.core.errors import NotTestable
from mechdiff.stats.small_samples import FEWEST, over_seeds
from mechdiff.study.claims import across_seeds
from mechdiff.study.claims.verdicts import ALPHA, Finding
from mechdiff.study.records import Network

QUANTILE = 0.95  # of random sets, that a bottleneck must exceed


def examine(networks: Sequence[Network]) -> Finding:
    """The claim on networks of one configuration.

    Raises:
      NotTestable: no networks, or sweeps of a single kind of ablation.
    """
    ablations = [str(ablation) for ablation in networks[0].sweep["ablation"].values] if networks else []
    if len(ablations) < 2:
        raise NotTestable(f"needs sweeps of at least two kinds of ablation; there are {ablations}")
    names = [str(name) for name in networks[0].sweep["component"].values]
    seen = np.logical_or.reduce([across_seeds.visible(network.sweep) for network in networks])
    least = bottlenecks.weakest(np.array([_damage(network.sweep, ablations) for network in networks]), seen)
    first = bottlenecks.split([f"{n.data}{n.complexity}" for n in networks], [n.seed for n in networks])
    units = min(network.units.count for network in networks)
    found = bottlenecks.crossed(least, first, units)
    chosen = list(dict.fromkeys(names[i] for i in found.chosen if i >= 0))
    p, compared = _beyond_controls(networks, found, first, least[..., 0], seen)
    because = (
        f"each half of the networks names a component, the other tests it: {' and '.join(chosen) or 'none'}, "
        f"above {THRESHOLD:g} % in {_percent(found.share)} of networks under every ablation that sees it; "
        f"{_counts(ablations, seen)}; {'; '.join(compared)}"
    )
    if np.isnan(found.p) and len(networks) >= FEWEST:
        because += f"; each half needs {FEWEST} networks, there are {len(networks)} in all"
    negligible = bool(found.p_none < ALPHA)  # False for NaN
    return Finding(
        found.estimate, found.interval, p, len(networks), because,
        null=THRESHOLD, negligible=negligible, p_alone=True,
    )  # fmt: skip


def _damage(sweep: xr.Dataset, ablations: Sequence[str]) -> Float[np.ndarray, "ablation component draws"]:
    weights = across_seeds.weightings(sweep)
    return np.array([across_seeds.damages(sweep, ablation, weights) for ablation in ablations])


def _beyond_controls(
    networks: Sequence[Network],
    found: Bottleneck,
    first: Bool[np.ndarray, " network"],
    least: Float[np.ndarray, "network component"],
    seen: Bool[np.ndarray, "ablation component"],
) -> tuple[float, list[str]]:
    """p of everything that could be tested, the largest; and what was found of each control, in words."""
    # Every network is asked about what the other half named.
    tested = np.where(first, found.chosen[1], found.chosen[0])
    own = least[np.arange(len(networks)), tested]
    p, words = [found.p], []
    for name, values in (
        ("untrained networks", _untrained(networks, tested, seen)),
        ("random channel sets of the same size", _random(networks, tested, seen)),
    ):
        if values is None:
            words.append(f"against {name}: not testable here, the study holds none")
            continue
        mean, _, each = over_seeds(own - values)
        p.append(each)
        words.append(f"{mean:.1f} points above {name} (p {each:.2g})")
    return float(np.max(p)) if np.isfinite(p).all() else np.nan, words


def _untrained(
    networks: Sequence[Network], tested: np.ndarray, seen: Bool[np.ndarray, "ablation component"]
) -> Float[np.ndarray, " network"] | None:
    """What the same component costs in the untrained network of the same seed, least of the ablations."""
    if any(network.control is None for network in networks):
        return None
    found = []
    for network, component in zip(networks, tested):
        ablations = [str(ablation) for ablation in network.sweep["ablation"].values]
        both = [i for i, ablation in enumerate(ablations) if ablation in network.control["ablation"].values]
        damage = [
            across_seeds.damage(network.control, ablations[i])[component] for i in both if seen[i, component]
        ]
        if not damage:
            return None
        found.append(max(damage))  # the most that any ablation makes of it: against the finding
    return np.array(found)


def _random(
    networks: Sequence[Network], tested: np.ndarray, seen: Bool[np.ndarray, "ablation component"]
) -> Float[np.ndarray, " network"] | None:
    """95th percentile over random sets of as many channels, most of the ablations."""
    if any(network.random_sets is None for network in networks):
        return None
    found = []
    for network, component in zip(networks, tested):
        name = str(network.sweep["component"].values[component])
        sets = network.random_sets["damage"].sel(component=name)
        ablations = [str(ablation) for ablation in network.sweep["ablation"].values]
        values = [
            np.quantile(sets.sel(ablation=ablation).values, QUANTILE)
            for i, ablation in enumerate(ablations)
            if seen[i, component] and ablation in sets["ablation"].values
        ]
        if not values:
            return None
        found.append(max(values))
    return np.array(found)


def _counts(ablations: Sequence[str], seen: Bool[np.ndarray, "ablation component"]) -> str:
    """How many components each kind of ablation can see: the others were not tested by it."""
    every = seen.shape[1]
    words = [
        f"{ablation} sees {int(own.sum())} of {every}"
        for ablation, own in zip(ablations, seen)
        if not own.all()
    ]
    return (
        "components that an ablation can't see don't count: " + ", ".join(words)
        if words
        else (f"all {every} components are seen by every kind")
    )


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{share:.0%}"
