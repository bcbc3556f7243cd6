"""Numbers of networks of several training seeds and data sets, for claims and the report.

CelebA is the natural data set, synthetic faces the simple one. The training seed is the unit of replication:
networks are compared in pairs of training seeds, sorted. Sweeps may hold several ablations; `lead` is the one
that single numbers are taken from.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff import stats
from mechdiff.analysis import complexity, effects
from mechdiff.core.errors import NotTestable
from mechdiff.core.numerics import ROUNDING
from mechdiff.stats import Interval
from mechdiff.stats.small_samples import over_seeds
from mechdiff.study.records import Network

RESAMPLES = 400
CONTROLS = (
    "gaussian",
    "celeba scrambled",
    "tfds scrambled",
)  # data beside the claims, see `without_controls`
TOP_COMPLEXITY = 4  # highest complexity of synthetic faces: all factors vary


def lead(sweep: xr.Dataset) -> str:
    """`mean` if it was swept, else the first ablation."""
    ablations = [str(ablation) for ablation in sweep["ablation"].values]
    return "mean" if "mean" in ablations else ablations[0]


def alike(networks: Sequence[Network]) -> bool:
    """Whether all have the same components and were swept at the same timesteps."""
    shapes = {
        (*map(str, network.sweep["component"].values), *map(int, network.sweep["t"].values))
        for network in networks
    }
    return len(shapes) <= 1


def without_controls(networks: Sequence[Network]) -> list[Network]:
    """The networks that claims are about: not those of Gaussian images and of scrambled ones, which show what
    measures make of data without faces."""
    return [network for network in networks if network.data not in CONTROLS]


def sides(networks: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """Networks of CelebA and of synthetic faces of complexity `TOP_COMPLEXITY`, sorted by training seed."""
    by_seed = sorted(networks, key=lambda network: network.seed)
    natural = [network for network in by_seed if network.data in ("celeba", "tfds")]
    simple = [
        network for network in by_seed if network.data == "synthetic" and network.complexity == TOP_COMPLEXITY
    ]
    return natural, simple


def pairs(networks: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """The networks of `sides`, cut to the same number, for comparison seed by seed.

    Raises:
      NotTestable: one of the data sets has no network.
    """
    natural, simple = sides(networks)
    if not natural or not simple:
        raise NotTestable(few(natural, simple, 1))
    count = min(len(natural), len(simple))
    return natural[:count], simple[:count]


def few(natural: Sequence, simple: Sequence, least: int) -> str:
    """Message: there are fewer than `least` networks of a data set."""
    return (
        f"needs at least {least} networks of either data set; there are {len(natural)} of CelebA "
        f"and {len(simple)} of synthetic faces"
    )


def relative_increases(sweep: xr.Dataset, ablation: str) -> Float[np.ndarray, " component"]:
    """Pooled relative loss increase (ΔL/L, %) of each component, images weighted evenly."""
    return increase_draws(sweep, ablation, even(sweep))[:, 0]


def increase_draws(
    sweep: xr.Dataset, ablation: str, weights: Float[np.ndarray, "m *timesteps image"]
) -> effects.Draws:
    """Pooled relative loss increase (ΔL/L, %) under each weighting of the images."""
    return effects.pooled_relative_increase(*effects.losses(sweep, ablation), weights)


def effective(sweep: xr.Dataset, ablation: str) -> float:
    """`effects.effective_number` of components, images weighted evenly."""
    return float(complexity.effective_components(sweep, ablation)(even(sweep))[0])


def weightings(results: xr.Dataset) -> Float[np.ndarray, "draws *timesteps image"]:
    """Even weights, then `RESAMPLES` resamples of units: the same for all networks with as many units."""
    units = stats.units_of(results)
    return np.concatenate([units.even(), units.resamples(RESAMPLES)])


def even(sweep: xr.Dataset) -> Float[np.ndarray, "1 *timesteps image"]:
    """Even weights of the images."""
    return stats.units_of(sweep).even()


def last(networks: Sequence[Network]) -> list[Network]:
    """The networks without snapshots of a training other than its last."""
    newest: dict[tuple, Network] = {}
    for network in networks:
        key = network.data, network.complexity, network.seed
        if key not in newest or network.steps > newest[key].steps:
            newest[key] = network
    return list(newest.values())


def visible(sweep: xr.Dataset) -> Bool[np.ndarray, "ablation component"]:
    """Whether ablating a component changed any prediction beyond rounding. If not (such as time injections
    under mean ablation), that ablation did not test it."""
    change = sweep["change"].max(("t", "image")).transpose("ablation", "component").values
    return change > ROUNDING


def measures(network: Network) -> dict[str, Float[np.ndarray, " draws"]]:
    """Every measure of complexity of a network: name -> value (above 0), followed by its values in resamples
    of the images where it can be recomputed on them.

    Effective components by ablation; circuit sizes by ablation and tau; for activations the geometric mean
    over sites and timesteps; effective components of the untrained control.
    """

    def effective_draws(sweep: xr.Dataset, ablation: str) -> Float[np.ndarray, " draws"]:
        return complexity.effective_components(sweep, ablation)(weightings(sweep))

    ablations = [str(ablation) for ablation in network.sweep["ablation"].values]
    values = {
        f"effective components, {ablation}": effective_draws(network.sweep, ablation)
        for ablation in ablations
    }
    for ablation, runs in network.circuits.items():
        for tau, size in zip(complexity.TAUS, np.atleast_1d(runs.attrs["sizes"]), strict=True):
            values[f"circuit to {tau:g}, {ablation}"] = np.array([size], np.float64)
    if network.activity is not None:
        logs = np.log(network.activity["value"]).mean(("site", "t"))
        for name in logs["measure"].values:
            values[f"activations: {name}"] = np.exp([float(logs.sel(measure=name))])
    if network.control is not None:
        values["untrained: effective components"] = effective_draws(network.control, lead(network.control))
    return values


def ratios(networks: Sequence[Network]) -> dict[str, Interval]:
    """CelebA over synthetic faces, for every measure that all networks have: geometric mean over pairs of
    seeds, with an interval over them, and over images where the measure can be recomputed on resamples."""
    paired = pairs(networks)
    natural, simple = (list(map(measures, side)) for side in paired)
    units = min(side[0].units.count for side in paired)
    intervals = {}
    for name in natural[0]:
        if not all(name in values for values in [*natural, *simple]):
            continue
        logs = np.array([np.log(a[name]) - np.log(b[name]) for a, b in zip(natural, simple, strict=True)])
        draws = logs[:, 1:] if logs.shape[1] > 1 else None
        mean, (low, high), _ = over_seeds(logs[:, 0], draws, units)
        estimate, low, high = map(np.asarray, np.exp([mean, low, high]))
        intervals[name] = Interval(estimate=estimate, low=low, high=high, confidence=0.95, n=len(logs))
    return intervals


def ladder(networks: Sequence[Network]) -> dict[int, list[float]]:
    """Effective components in networks of synthetic faces: complexity -> a value for each training seed."""
    values: dict[int, list[float]] = {}
    for network in sorted(networks, key=lambda network: (network.complexity, network.seed)):
        if network.data == "synthetic":
            values.setdefault(network.complexity, []).append(effective(network.sweep, lead(network.sweep)))
    return values
