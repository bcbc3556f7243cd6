"""Numbers over networks of several training seeds and data sets, for claims and the report.

CelebA is the natural data set, synthetic faces are the simple one. The training seed is the unit of
replication: the networks of both data sets are sorted by training seed and compared in pairs. Where a sweep
holds several ablations, a single number is taken from its `lead_ablation`.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff import stats
from mechdiff.analysis import complexity, effects
from mechdiff.core.errors import NotTestable
from mechdiff.core.numerics import ROUNDING
from mechdiff.core.text_table import counted
from mechdiff.stats import Interval
from mechdiff.stats.small_samples import over_seeds
from mechdiff.study.network_results import NetworkResults

RESAMPLES = 400  # of the images
# Root mean square difference of two networks' losses, of the losses, up to which they are one. Rounding moves
# single losses by 5.6e-6 at most but for rare ones; the most alike two trainings of a study's 72 networks, of
# Gaussian images, differ by 9e-3.
SAME = 1e-4
CONTROLS = ("gaussian", "celeba scrambled", "tfds scrambled")  # control data, see `without_controls`
TOP_COMPLEXITY = 4  # highest complexity of synthetic faces: all factors vary


def lead_ablation(sweep: xr.Dataset) -> str:
    """The ablation that single numbers are taken from: `mean` if it was swept, else the first."""
    ablations = [str(ablation) for ablation in sweep["ablation"].values]
    return "mean" if "mean" in ablations else ablations[0]


def comparable(networks: Sequence[NetworkResults]) -> bool:
    """Whether all have the same components, heads with attention, timesteps, and ablation that single numbers
    are taken from."""

    def axes(network: NetworkResults) -> tuple[str, ...]:
        swept = (network.sweep[name] for name in ("component", "t"))
        of_heads = (network.attention[name] for name in ("head", "t") if name in network.attention)
        labels = np.concatenate([axis.values.astype(str) for axis in (*swept, *of_heads)])
        return lead_ablation(network.sweep), *labels.tolist()

    return len(set(map(axes, networks))) <= 1


def without_controls(networks: Sequence[NetworkResults]) -> list[NetworkResults]:
    """The networks that claims are about: all but those trained on Gaussian or scrambled images, which show
    what the measures are on data without faces."""
    return [network for network in networks if network.data not in CONTROLS]


def natural_and_simple(
    networks: Sequence[NetworkResults],
) -> tuple[list[NetworkResults], list[NetworkResults]]:
    """Networks of CelebA and of synthetic faces of complexity `TOP_COMPLEXITY`, sorted by training seed."""
    by_seed = sorted(networks, key=lambda network: network.seed)
    natural = [network for network in by_seed if network.data in ("celeba", "tfds")]
    simple = [
        network for network in by_seed if network.data == "synthetic" and network.complexity == TOP_COMPLEXITY
    ]
    return natural, simple


def seed_pairs(networks: Sequence[NetworkResults]) -> tuple[list[NetworkResults], list[NetworkResults]]:
    """The same number of networks from either side of `natural_and_simple`, for comparison seed by seed.

    Raises:
      NotTestable: one of the data sets has no network.
    """
    natural, simple = natural_and_simple(networks)
    if not natural or not simple:
        raise NotTestable(too_few(natural, simple, 1))
    count = min(len(natural), len(simple))
    return natural[:count], simple[:count]


def too_few(natural: Sequence, simple: Sequence, least: int) -> str:
    """Message: one of the data sets has fewer than `least` networks."""
    return (
        f"needs at least {counted(least, 'network')} of either data set; there are {len(natural)} of CelebA "
        f"and {len(simple)} of synthetic faces"
    )


def relative_increases(sweep: xr.Dataset, ablation: str) -> Float[np.ndarray, " component"]:
    """Pooled relative loss increase (ΔL/L, %) of each component, images weighted evenly."""
    return increase_draws(sweep, ablation, _even_weights(sweep))[:, 0]


def increase_draws(
    sweep: xr.Dataset, ablation: str, weights: Float[np.ndarray, "m *timesteps image"]
) -> effects.Draws:
    """Pooled relative loss increase (ΔL/L, %) under each weighting of the images."""
    return effects.pooled_relative_increase(*effects.losses(sweep, ablation), weights)


def effective_number(sweep: xr.Dataset, ablation: str) -> float:
    """Effective number of components, images weighted evenly."""
    return float(complexity.effective_components(sweep, ablation)(_even_weights(sweep))[0])


def weightings(results: xr.Dataset) -> Float[np.ndarray, "draws *timesteps image"]:
    """Weights of the images: even ones, then those of `RESAMPLES` resamples of units.

    Networks with equally many units get the same resamples.
    """
    units = stats.units_of(results)
    return np.concatenate([units.even(), units.resamples(RESAMPLES)])


def _even_weights(sweep: xr.Dataset) -> Float[np.ndarray, "1 *timesteps image"]:
    return stats.units_of(sweep).even()


def final_snapshots(networks: Sequence[NetworkResults]) -> list[NetworkResults]:
    """The networks, of each training (NAME and its steps, NAME@STEP) only its last snapshot."""
    newest: dict[tuple, NetworkResults] = {}
    for network in networks:
        key = network.name.partition("@")[0], *_source(network)
        if key not in newest or network.steps > newest[key].steps:
            newest[key] = network
    return list(newest.values())


def of_one_seed(networks: Sequence[NetworkResults]) -> list[str]:
    """Names of the first networks found that share data and seed, though they are different trainings; empty
    where there are none. A seed counts once, and none of them is more right than the other."""
    alike: dict[tuple, list[str]] = {}
    for network in networks:
        alike.setdefault(_source(network), []).append(network.name)
    return next((names for names in alike.values() if len(names) > 1), [])


def copies(networks: Sequence[NetworkResults]) -> list[str]:
    """Names of the first networks that are one, as all losses of theirs agree (`SAME`); empty where there are
    none.

    A copy under another seed, or another data set, would count as a second training. Its losses differ by
    rounding, if it was examined on another device or at another time.
    """
    alike = ([other.name for other in networks if _same(network, other)] for network in networks)
    return next((names for names in alike if len(names) > 1), [])


def _same(first: NetworkResults, second: NetworkResults) -> bool:
    def agree(name: str) -> bool:
        left, right = (network.sweep[name].values for network in (first, second))
        near = left.shape == right.shape and np.linalg.norm(left - right) <= SAME * np.linalg.norm(left)
        return bool(near)

    return first is second or (agree("clean_loss") and agree("loss"))


def _source(network: NetworkResults) -> tuple[str, int, int]:
    return network.data, network.complexity, network.seed


def changes_predictions(sweep: xr.Dataset) -> Bool[np.ndarray, "ablation component"]:
    """Whether ablating a component changed any prediction by more than rounding.

    If it did not, as with time injections under mean ablation, that ablation did not test the component.
    """
    change = sweep["change"].max(("t", "image")).transpose("ablation", "component").values
    return change > ROUNDING


def complexity_measures(network: NetworkResults) -> dict[str, Float[np.ndarray, " draws"]]:
    """Every measure of complexity of a network: name -> values.

    These are its effective components by ablation, sizes of its circuits by ablation and tau, geometric means
    over sites and timesteps of measures of its activations, and effective components of the untrained
    control.

    Returns:
      The value, above 0, followed by its values in resamples of the images where it can be recomputed on
      them.
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
        values["untrained: effective components"] = effective_draws(
            network.control, lead_ablation(network.control)
        )
    return values


def complexity_ratios(networks: Sequence[NetworkResults]) -> dict[str, Interval]:
    """CelebA over synthetic faces, for every measure that all networks have: the geometric mean over pairs of
    seeds. The interval is over seeds, and also over images where the measure can be recomputed on resamples.

    Raises:
      NotTestable: one of the data sets has no network.
    """
    sides = seed_pairs(networks)
    natural, simple = (list(map(complexity_measures, side)) for side in sides)
    units = min(side[0].units.effective for side in sides)
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


def ladder(networks: Sequence[NetworkResults]) -> dict[int, list[float]]:
    """Effective components in networks of synthetic faces: complexity -> a value for each training seed."""
    values: dict[int, list[float]] = {}
    for network in sorted(networks, key=lambda network: (network.complexity, network.seed)):
        if network.data == "synthetic":
            number = effective_number(network.sweep, lead_ablation(network.sweep))
            values.setdefault(network.complexity, []).append(number)
    return values
