"""Networks of several training seeds and data sets side by side, as claims and the report need them.

CelebA is the natural data set, synthetic faces the simple one. Numbers of networks are compared per pair of
training seeds, the first of one with the first of the other, since the training seed is the unit of
replication. Sweeps may hold several kinds of ablation; `lead` is the one that a single number is taken from.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import complexity, effects, stats
from mechdiff.claims.verdicts import Missing, Network
from mechdiff.stats import Interval

RESAMPLES = 400
TOP_LEVEL = 4  # of the ladder of synthetic faces: everything varies


def lead(sweep: xr.Dataset) -> str:
    """`mean` if it was swept, else the first kind."""
    kinds = [str(kind) for kind in sweep["kind"].values]
    return "mean" if "mean" in kinds else kinds[0]


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
    simple = [network for network in by_seed if network.data == "synthetic" and network.level == TOP_LEVEL]
    return natural, simple


def pairs(networks: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """The same, as many of either: seed by seed.

    Raises:
      Missing: one of the data sets has no network.
    """
    natural, simple = sides(networks)
    if not natural or not simple:
        raise Missing(few(natural, simple, 1))
    count = min(len(natural), len(simple))
    return natural[:count], simple[:count]


def few(natural: Sequence, simple: Sequence, least: int) -> str:
    """That there are too few networks, in words."""
    return (
        f"needs at least {least} networks of either data set; there are {len(natural)} of CelebA "
        f"and {len(simple)} of synthetic faces"
    )


def damage(sweep: xr.Dataset, kind: str) -> Float[np.ndarray, " component"]:
    """Pooled Deg%, all images alike."""
    return damages(sweep, kind, even(sweep))[:, 0]


def damages(sweep: xr.Dataset, kind: str, weights: Float[np.ndarray, "m image"]) -> effects.Draws:
    """Pooled Deg% under each weighting of the images."""
    return effects.pooled_damage(*effects.losses(sweep, kind), weights)


def effective(sweep: xr.Dataset, kind: str) -> float:
    """`effects.effective_number` of components, all images alike."""
    return float(complexity.effective_components(sweep, kind)(even(sweep))[0])


def weightings(found: xr.Dataset) -> Float[np.ndarray, "draws image"]:
    """All images alike, then `RESAMPLES` resamples of them: the same for all networks of as many images."""
    return np.concatenate([even(found), stats.bootstrap_weights(found.sizes["image"], RESAMPLES)])


def even(sweep: xr.Dataset) -> Float[np.ndarray, "1 image"]:
    """The weighting in which all images count alike."""
    return np.full((1, sweep.sizes["image"]), 1 / sweep.sizes["image"])


def measures(network: Network) -> dict[str, float]:
    """Every measure of complexity that was taken of a network: name -> value, above 0.

    `effective` of every kind of ablation; `circuit` sizes of every kind and tau; of activations the geometric
    mean over sites and levels; `untrained`, of the control.
    """
    kinds = [str(kind) for kind in network.sweep["kind"].values]
    found = {f"effective components, {kind}": effective(network.sweep, kind) for kind in kinds}
    for kind, runs in network.circuits.items():
        for tau, size in zip(complexity.TAUS, np.atleast_1d(runs.attrs["sizes"])):
            found[f"circuit to {tau:g}, {kind}"] = float(size)
    if network.activity is not None:
        logs = np.log(network.activity["value"]).mean(("site", "t"))
        found |= {
            f"activations: {name}": float(np.exp(logs.sel(measure=name))) for name in logs["measure"].values
        }
    if network.control is not None:
        found["untrained: effective components"] = effective(network.control, lead(network.control))
    return found


def ratios(networks: Sequence[Network]) -> dict[str, Interval]:
    """CelebA over synthetic faces for every measure that all networks have, see `complexity.ratio_of`."""
    natural, simple = (list(map(measures, side)) for side in pairs(networks))
    shared = [name for name in natural[0] if all(name in one for one in [*natural, *simple])]
    column = lambda side, name: np.array([one[name] for one in side])  # noqa: E731
    return {name: complexity.ratio_of(column(natural, name), column(simple, name)) for name in shared}


def ladder(networks: Sequence[Network]) -> dict[int, list[float]]:
    """Effective components in networks of synthetic faces: level of complexity -> a value a training seed."""
    found: dict[int, list[float]] = {}
    for network in sorted(networks, key=lambda one: (one.level, one.seed)):
        if network.data == "synthetic":
            found.setdefault(network.level, []).append(effective(network.sweep, lead(network.sweep)))
    return found
