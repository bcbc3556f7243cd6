"""Networks of several training seeds and data sets side by side, as claims and the report need them.

CelebA is the natural data set, synthetic faces the simple one. Numbers of networks are compared per pair of
training seeds, the first of one with the first of the other, since the training seed is the unit of
replication. Sweeps may hold several kinds of ablation; `lead` is the one that a single number is taken from.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff import stats
from mechdiff.analysis import complexity, effects
from mechdiff.core.errors import NotTestable
from mechdiff.stats import Interval
from mechdiff.stats.small_samples import over_seeds
from mechdiff.study.records import Network

RESAMPLES = 400
TOP_LEVEL = 4  # of the ladder of synthetic faces: everything varies


def lead(sweep: xr.Dataset) -> str:
    """`mean` if it was swept, else the first kind."""
    ablations = [str(ablation) for ablation in sweep["ablation"].values]
    return "mean" if "mean" in ablations else ablations[0]


def alike(networks: Sequence[Network]) -> bool:
    """Whether all have the same components and were swept at the same levels."""
    shapes = {
        (*map(str, one.sweep["component"].values), *map(int, one.sweep["t"].values)) for one in networks
    }
    return len(shapes) <= 1


def sides(networks: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """Networks of CelebA and of the fullest synthetic faces, by training seed."""
    by_seed = sorted(networks, key=lambda network: network.seed)
    natural = [network for network in by_seed if network.data in ("celeba", "tfds")]
    simple = [
        network for network in by_seed if network.data == "synthetic" and network.complexity == TOP_LEVEL
    ]
    return natural, simple


def pairs(networks: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """The same, as many of either: seed by seed.

    Raises:
      NotTestable: one of the data sets has no network.
    """
    natural, simple = sides(networks)
    if not natural or not simple:
        raise NotTestable(few(natural, simple, 1))
    count = min(len(natural), len(simple))
    return natural[:count], simple[:count]


def few(natural: Sequence, simple: Sequence, least: int) -> str:
    """That there are too few networks, in words."""
    return (
        f"needs at least {least} networks of either data set; there are {len(natural)} of CelebA "
        f"and {len(simple)} of synthetic faces"
    )


def damage(sweep: xr.Dataset, ablation: str) -> Float[np.ndarray, " component"]:
    """Pooled Deg%, all images alike."""
    return damages(sweep, ablation, even(sweep))[:, 0]


def damages(sweep: xr.Dataset, ablation: str, weights: Float[np.ndarray, "m *levels image"]) -> effects.Draws:
    """Pooled Deg% under each weighting of the images."""
    return effects.pooled_relative_increase(*effects.losses(sweep, ablation), weights)


def effective(sweep: xr.Dataset, ablation: str) -> float:
    """`effects.effective_number` of components, all images alike."""
    return float(complexity.effective_components(sweep, ablation)(even(sweep))[0])


def weightings(found: xr.Dataset) -> Float[np.ndarray, "draws *levels image"]:
    """All images alike, then `RESAMPLES` resamples of their units: the same for all networks of as many."""
    units = stats.units_of(found)
    return np.concatenate([units.even(), units.resamples(RESAMPLES)])


def even(sweep: xr.Dataset) -> Float[np.ndarray, "1 *levels image"]:
    """The weighting in which all images count alike."""
    return stats.units_of(sweep).even()


def last(networks: Sequence[Network]) -> list[Network]:
    """Of several snapshots of one training, the last."""
    newest: dict[tuple, Network] = {}
    for network in networks:
        key = network.data, network.complexity, network.seed
        if key not in newest or network.steps > newest[key].steps:
            newest[key] = network
    return list(newest.values())


def visible(sweep: xr.Dataset) -> Bool[np.ndarray, "ablation component"]:
    """Whether each kind of ablation changed any prediction when it left a component out: what it can't see,
    such as time injections under mean ablation, was not tested by it."""
    change = sweep["change"].max(("t", "image")).transpose("ablation", "component").values
    return change > effects.ROUNDING


def measures(network: Network) -> dict[str, Float[np.ndarray, " draws"]]:
    """Every measure of complexity that was taken of a network, above 0: name -> value, and behind it those in
    resamples of the images where it can be taken on them.

    `effective` of every kind of ablation; `circuit` sizes of every kind and tau; of activations the geometric
    mean over sites and levels; `untrained`, of the control.
    """
    spread = lambda sweep, ablation: complexity.effective_components(sweep, ablation)(weightings(sweep))
    ablations = [str(ablation) for ablation in network.sweep["ablation"].values]
    found = {f"effective components, {ablation}": spread(network.sweep, ablation) for ablation in ablations}
    for ablation, runs in network.circuits.items():
        for tau, size in zip(complexity.TAUS, np.atleast_1d(runs.attrs["sizes"])):
            found[f"circuit to {tau:g}, {ablation}"] = np.array([size], np.float64)
    if network.activity is not None:
        logs = np.log(network.activity["value"]).mean(("site", "t"))
        for name in logs["measure"].values:
            found[f"activations: {name}"] = np.exp([float(logs.sel(measure=name))])
    if network.control is not None:
        found["untrained: effective components"] = spread(network.control, lead(network.control))
    return found


def ratios(networks: Sequence[Network]) -> dict[str, Interval]:
    """CelebA over synthetic faces for every measure that all networks have: geometric mean over pairs of
    seeds, with an interval over them, and over pictures where the measure can be taken anew on resamples."""
    sides = pairs(networks)
    natural, simple = (list(map(measures, side)) for side in sides)
    found = {}
    for name in natural[0]:
        if all(name in one for one in [*natural, *simple]):
            logs = np.array([np.log(one[name]) - np.log(other[name]) for one, other in zip(natural, simple)])
            draws = logs[:, 1:] if logs.shape[1] > 1 else None
            mean, ends, _ = over_seeds(logs[:, 0], draws, min(side[0].units.count for side in sides))
            at = dict(zip(("estimate", "low", "high"), map(np.asarray, np.exp([mean, *ends]))))
            found[name] = Interval(**at, confidence=0.95, n=len(logs))
    return found


def ladder(networks: Sequence[Network]) -> dict[int, list[float]]:
    """Effective components in networks of synthetic faces: level of complexity -> a value a training seed."""
    found: dict[int, list[float]] = {}
    for network in sorted(networks, key=lambda one: (one.complexity, one.seed)):
        if network.data == "synthetic":
            found.setdefault(network.complexity, []).append(effective(network.sweep, lead(network.sweep)))
    return found
