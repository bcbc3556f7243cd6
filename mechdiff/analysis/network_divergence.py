"""Divergence of attention entropies between networks of two data sets, beyond that between training seeds.

The unit is the network. H[h, t] is the mean entropy of head h at timestep t, in nats. Heads of a layer have
no order: head 2 of one training may be head 0 of another. So the heads of every two networks are matched
within their layers, by least summed squared distance over timesteps (Hungarian method, Kuhn 1955), and
  d2[i, j, t]  = mean over matched heads of (H_i - H_j)^2
  excess2[t]   = mean of d2 over pairs across data sets - half the mean over pairs within each of the two
is, but for the matching, an unbiased estimate of the mean over heads of the squared difference of the data
sets' means. Reported is its signed root, nats. Three tests:
  differ   p of the mean of excess2 over timesteps, over all ways of calling as many networks the first data
           set: exact, whatever the law of trainings
  by t     the same at each timestep, adjusted by the maximum over timesteps
  varies   the same of profiles less their mean over timesteps, head by head: a data set that adds the same
           to a head at all timesteps does not change these, so this p is exact under "the difference does not
           depend on the timestep"
The interval leaves out one network at a time. Without any difference excess2 is a degenerate U-statistic, for
which such intervals are too wide: they bound how large a difference can be, but don't test whether there is
one. Definitions are ours (that of arXiv 2506.17237 is not known).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from mechdiff.core.errors import ConfigError
from mechdiff.stats import small_samples

Profiles = Float[np.ndarray, "network head t"]
Squares = Float[np.ndarray, "network network t"]
MAX_GROUPINGS = 5000  # ways of grouping networks that are tried; beyond, as many random ones


@dataclass(frozen=True)
class NetworkDivergence:
    """Divergence of two data sets over timesteps, as the module defines it.

    Attributes:
      between, within: root mean square over matched heads, nats, over pairs across and within data sets.
      excess: root of what data sets add, with its sign, nats.
      pooled: the same over all timesteps, with its 95 % `interval`, NaN for fewer than 3 networks per side.
      p, p_by_t, p_varies: of differing at all, at each timestep, and not by the same everywhere.
      varying: `pooled` of profiles less their mean over timesteps, nats; `p_varies` tests it.
      p_paired: of differing at all, by exchanging the data sets within pairs of networks, network i of the
        first with i of the second: exact where such pairs share initial parameters; NaN if not asked for.
    """

    between: Float[np.ndarray, " t"]
    within: Float[np.ndarray, " t"]
    excess: Float[np.ndarray, " t"]
    pooled: float
    interval: tuple[float, float]
    p: float
    p_by_t: Float[np.ndarray, " t"]
    p_varies: float
    varying: float
    p_paired: float


def compare(
    first: Profiles,
    second: Float[np.ndarray, "other head t"],
    layers: Sequence[str],
    draws: Float[np.ndarray, "m both head t"] | None = None,
    images: float = 0,
    paired: bool = False,
) -> NetworkDivergence:
    """Divergence between the networks of two data sets.

    Args:
      first, second: mean entropies, nats; at least 2 networks each, heads in the same order.
      layers: of the heads.
      draws: of all networks, first and second, in resamples of the images; heads stay matched as they are.
      images: units that were resampled, as they count (`stats.Units.effective`).
      paired: whether to compute `p_paired`, for equally many networks of both data sets.

    Raises:
      ConfigError: fewer than 2 networks of either; `paired` with unequal numbers.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> heads = rng.normal(2, 0.1, (10, 4, 3))
      >>> divergence = compare(heads[:5] + 0.5, heads[5:], ["a"] * 4)
      >>> round(divergence.pooled, 1), round(divergence.p, 4)
      (0.5, 0.0079)
    """
    count = len(first)
    _check_counts(count, len(second), paired)
    profiles = np.concatenate([first, second]).astype(np.float64)
    counterparts = matched(profiles, layers)
    squares = distances(profiles, counterparts)
    groups = groupings(len(profiles), count)
    between, within = between_within(squares, groups)
    excess = between - within
    centered = profiles - profiles.mean(axis=2, keepdims=True)
    shapes = np.subtract(*between_within(distances(centered, matched(centered, layers)), groups))
    resampled = None if draws is None else _resampled(draws, counterparts, groups[:1])
    pooled = float(excess[0].mean())
    ends = _interval(squares, count, pooled, resampled, images)
    largest = excess.max(axis=1, keepdims=True)
    return NetworkDivergence(
        between=np.sqrt(between[0]),
        within=np.sqrt(within[0]),
        excess=signed_root(excess[0]),
        pooled=float(signed_root(np.float64(pooled))),
        interval=tuple(float(signed_root(np.float64(end))) for end in ends),
        p=_share(excess.mean(axis=1)),
        p_by_t=(largest >= excess[0] - 1e-12).mean(axis=0),
        p_varies=_share(shapes.mean(axis=1)),
        varying=float(signed_root(shapes[0].mean())),
        p_paired=_p(squares, exchanges(count)) if paired else np.nan,
    )


def _check_counts(first: int, second: int, paired: bool) -> None:
    if min(first, second) < 2:
        raise ConfigError(f"{first} and {second} networks; at least 2 of either data set are needed")
    if paired and first != second:
        raise ConfigError(f"{first} and {second} networks; pairs need equally many of both data sets")


def _resampled(
    draws: Float[np.ndarray, "m both head t"],
    counterparts: Int[np.ndarray, "both both head"],
    grouping: Bool[np.ndarray, "1 both"],
) -> Float[np.ndarray, " m"]:
    """The mean excess in every resample of the images."""
    return np.array(
        [np.subtract(*between_within(distances(draw, counterparts), grouping)).mean() for draw in draws]
    )


def matched(profiles: Profiles, layers: Sequence[str]) -> Int[np.ndarray, "network network head"]:
    """For each head of network i its counterpart in network j, within its layer."""
    layers, count = np.asarray(layers), len(profiles)
    counterparts = np.tile(np.arange(profiles.shape[1]), (count, count, 1))
    for layer in dict.fromkeys(layers.tolist()):
        heads = np.flatnonzero(layers == layer)
        of_layer = profiles[:, heads]
        square = (of_layer**2).sum(-1)
        products = np.einsum("iat,jbt->ijab", of_layer, of_layer, optimize=True)
        cost = square[:, None, :, None] + square[None, :, None, :] - 2 * products
        for i, j in itertools.combinations(range(count), 2):
            rows, columns = linear_sum_assignment(cost[i, j])
            counterparts[i, j, heads[rows]] = heads[columns]
            counterparts[j, i, heads[columns]] = heads[rows]
    return counterparts


def distances(profiles: Profiles, counterparts: Int[np.ndarray, "network network head"]) -> Squares:
    """Mean over matched heads of squared differences, of every two networks."""
    network = np.arange(len(profiles))[None, :, None]
    counterpart = profiles[network, counterparts]  # of network j, [i, j, head, t]
    return ((profiles[:, None] - counterpart) ** 2).mean(axis=2)


def groupings(count: int, first: int) -> Bool[np.ndarray, "way network"]:
    """Which networks are the first data set: the true one first, then all others or `MAX_GROUPINGS`."""
    true = np.arange(count) < first
    if math.comb(count, first) <= MAX_GROUPINGS:
        chosen = np.array(list(itertools.combinations(range(count), first)))
        groups = np.zeros((len(chosen), count), bool)
        groups[np.arange(len(chosen))[:, None], chosen] = True  # the first combination is the true way
        return groups
    rng = np.random.default_rng(0)
    return np.stack([true, *(rng.permutation(true) for _ in range(MAX_GROUPINGS))])


def exchanges(pairs: int) -> Bool[np.ndarray, "way network"]:
    """Which of `pairs` networks and as many partners are called the first data set, when the data sets of a
    pair may be exchanged: the true way first, then all others (or `MAX_GROUPINGS` random ones). Pair 0
    stays, since exchanging all pairs gives the same distances."""
    if 2 ** (pairs - 1) <= MAX_GROUPINGS:
        ways = np.array(list(itertools.product([True, False], repeat=pairs - 1)))
    else:
        drawn = np.random.default_rng(0).random((MAX_GROUPINGS, pairs - 1)) < 0.5
        ways = np.concatenate([np.ones((1, pairs - 1), bool), drawn])
    first = np.concatenate([np.ones((len(ways), 1), bool), ways], axis=1)
    return np.concatenate([first, ~first], axis=1)


def between_within(
    squares: Squares, groups: Bool[np.ndarray, "way network"]
) -> tuple[Float[np.ndarray, "way t"], Float[np.ndarray, "way t"]]:
    """Mean squared distance of pairs across two groups, and mean of those within either, evenly weighted."""
    count, timesteps = groups.shape[1], squares.shape[-1]
    sides = groups.astype(np.float64)
    size = sides.sum(axis=1, keepdims=True)
    rest = count - size
    # With x the members of the first group and D the distances, all sums follow from x D x and x D 1.
    rows = squares.sum(axis=1)
    products = (sides @ squares.reshape(count, -1)).reshape(len(groups), count, timesteps)
    left, touched = (products * sides[:, :, None]).sum(axis=1), sides @ rows
    right = rows.sum(axis=0) - 2 * touched + left
    within = left / np.maximum(size * (size - 1), 1) + right / np.maximum(rest * (rest - 1), 1)
    return (touched - left) / (size * rest), np.maximum(within / 2, 0)


def signed_root(square: Float[np.ndarray, "*cells"] | float) -> Float[np.ndarray, "*cells"]:
    """sqrt |x| with the sign of x: an unbiased estimate of a square may be below 0."""
    return np.asarray(np.sign(square) * np.sqrt(np.abs(square)))


def _p(squares: Squares, groups: Bool[np.ndarray, "way network"]) -> float:
    """Share of ways of grouping in which the data sets differ at least as much as in the true one."""
    return _share(np.subtract(*between_within(squares, groups)).mean(axis=1))


def _share(values: Float[np.ndarray, " way"]) -> float:
    return float((values >= values[0] - 1e-12).mean())


def _interval(
    squares: Squares, count: int, pooled: float, draws: np.ndarray | None, images: float
) -> tuple[float, float]:
    mean = squares.mean(axis=2, keepdims=True)

    def statistic(left: Sequence[int], right: Sequence[int]) -> float:
        chosen = np.array([*left, *right])
        group = np.arange(len(chosen))[None] < len(left)
        between, within = between_within(mean[np.ix_(chosen, chosen)], group)
        return float((between - within)[0, 0])

    first, second = list(range(count)), list(range(count, len(squares)))
    return small_samples.jackknife_interval(statistic, first, second, pooled, draws, images)
