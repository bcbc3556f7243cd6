"""Divergence of attention entropies between two data sets at each timestep, with controls for chance.

arXiv 2506.17237 reports an entropy divergence of 0.015 to 0.166; its formula isn't known, and these are ours.
H[h, t, i] is the entropy of head h at timestep t for image i, in nats, with Nk keys (`attention_stats`):
  means       mean over heads and images of the first minus that of the second; has a sign
  heads       root of the mean over heads of squared differences of the heads' means: none cancel
  histograms  mean over heads of the Jensen-Shannon divergence (Lin 1991) of the two histograms of H over
              images, in fixed bins on [0, ln Nk]; nats, at most ln 2
`heads` and `histograms` are above 0 even between equal distributions, the more so the fewer the images. They
must be compared with controls of as many images, random halves of one data set (`compare`), and concern two
networks: whether data sets differ takes networks of several training seeds (`network_divergence`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.core.errors import ConfigError
from mechdiff.stats import Interval

Entropy = Float[np.ndarray, "head t image"]
Weights = Float[np.ndarray, "m image"]
Levels = Float[np.ndarray, "t m"]
MEASURES = ("means", "heads", "histograms")
BINS = 32


@dataclass(frozen=True)
class Divergence:
    """One measure of divergence between two sets of entropies.

    Attributes:
      measure: of `MEASURES`.
      t, log_snr: timesteps.
      value: on all images, with percentile intervals over images or people, `[t]`.
      halves: between a random half of one and a random half of the other, `[t, draw]`.
      within: between two random halves of the first, and of the second, `[2, t, draw]`.
      p: of `value` when the labels of the data sets are shuffled among units, adjusted by max over
        timesteps, `[t]`. The unit is the image, or the person (`_units`), the networks being fixed.
    """

    measure: str
    t: Int[np.ndarray, " t"]
    log_snr: Float[np.ndarray, " t"]
    value: Interval
    halves: Levels
    within: Float[np.ndarray, "2 t draw"]
    p: Float[np.ndarray, " t"]


def mean_difference(first: Entropy, second: Entropy, weights: tuple[Weights, Weights]) -> Levels:
    """`means` under each pair of weightings of the two sets' images."""
    return first.mean(axis=0) @ weights[0].T - second.mean(axis=0) @ weights[1].T


def head_differences(first: Entropy, second: Entropy, weights: tuple[Weights, Weights]) -> Levels:
    """`heads` under each pair of weightings: heads are paired by index."""
    return np.sqrt(((first @ weights[0].T - second @ weights[1].T) ** 2).mean(axis=0))


def histogram_divergence(
    first: Entropy,
    second: Entropy,
    weights: tuple[Weights, Weights],
    tokens: Int[np.ndarray, " head"],
    bins: int = BINS,
) -> Levels:
    """`histograms` under each pair of weightings.

    Args:
      tokens: keys of each head; its bins have edges 0, ln Nk / bins, ..., ln Nk.
    """
    total = 0.0
    for head, counterpart, keys in zip(first, second, tokens, strict=True):
        p = _histogram(head, weights[0], int(keys), bins)
        q = _histogram(counterpart, weights[1], int(keys), bins)
        total = total + _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.maximum(total, 0) / len(tokens)


def compare(
    first: xr.Dataset, second: xr.Dataset, measure: str = "heads", draws: int = 500, seed: int = 0
) -> Divergence:
    """One measure between two saved sets of attention statistics, with its controls over images.

    Args:
      first, second: as `activations.attention_stats` makes them, of networks of one configuration at the same
        timesteps; of one network on two data sets, or of one trained on each. With the coordinate `person`,
        on `image`, people are drawn, halved and relabelled, not images.
      draws: of the bootstrap and of random halves.

    Raises:
      ConfigError: an unknown measure, or sets that can't be compared.
    """
    check_alike([first, second])
    entropy, other = _entropies(first), _entropies(second)
    tokens, rng = first["tokens"].values, np.random.default_rng(seed)
    units = _units(first, second)
    least = min(side.count for side in units)
    if least < 4:
        what = "people" if units[0].clustered else "images"
        raise ConfigError(f"{least} {what} can't be split into halves; at least 4")

    def divergence_of(a, b, weights):
        return measured(measure, a, b, weights, tokens)

    resampled = tuple(side.resamples(draws, seed + i) for i, side in enumerate(units))
    even = tuple(side.even() for side in units)
    estimate = divergence_of(entropy, other, even)[:, 0]
    low, high = np.quantile(divergence_of(entropy, other, resampled), [0.025, 0.975], axis=-1)
    value = Interval(estimate=estimate, low=low, high=high, confidence=0.95, n=least)
    halves = [_two_halves(rng, side, least // 2, draws) for side in units]
    both = np.concatenate([entropy, other], axis=-1)
    shuffled = divergence_of(both, both, _relabelled(rng, units[0], units[1], draws))
    within = [divergence_of(entropy, entropy, halves[0]), divergence_of(other, other, halves[1])]
    return Divergence(
        measure=measure,
        t=first["t"].values,
        log_snr=first["log_snr"].values.astype(np.float64),
        value=value,
        halves=divergence_of(entropy, other, (halves[0][0], halves[1][0])),
        within=np.stack(within),
        p=_adjusted(shuffled),
    )


def measured(
    measure: str,
    first: Entropy,
    second: Entropy,
    weights: tuple[Weights, Weights],
    tokens: Int[np.ndarray, " head"],
) -> Levels:
    """The measure of this name under each pair of weightings.

    Raises:
      ConfigError: the name of no measure.
    """
    if measure == "means":
        return mean_difference(first, second, weights)
    if measure == "heads":
        return head_differences(first, second, weights)
    if measure == "histograms":
        return histogram_divergence(first, second, weights, tokens)
    raise ConfigError(f"unknown measure of divergence {measure!r}; choose from: {', '.join(MEASURES)}")


def check_alike(networks: Sequence[xr.Dataset]) -> None:
    """Raises ConfigError unless all have the same heads and timesteps."""
    for network in networks[1:]:
        for name in ("head", "t"):
            if list(network[name].values) != list(networks[0][name].values):
                raise ConfigError(
                    f"two sets of attention statistics differ in {name!r}; compare like with like"
                )


def _entropies(attention: xr.Dataset) -> Entropy:
    return attention["entropy"].transpose("head", "t", "image").values.astype(np.float64)


def _histogram(
    values: Float[np.ndarray, "t image"], weights: Weights, keys: int, bins: int
) -> Float[np.ndarray, "bins t m"]:
    place = np.clip((values / np.log(max(keys, 2)) * bins).astype(int), 0, bins - 1)
    return np.stack([(place == i).astype(np.float64) @ weights.T for i in range(bins)])


def _entropy(p: Float[np.ndarray, "bins t m"]) -> Levels:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=0)


def _units(first: xr.Dataset, second: xr.Dataset) -> tuple[stats.Units, stats.Units]:
    """Units that are resampled and relabeled on each side: images, or people.

    If people are known on one side only, the other's images are taken in blocks, as many as there are
    people: labels are shuffled among units of about equal size and number, so that a spread that is larger
    between people than between blocks doesn't make p too small.
    """
    units = stats.units_of(first), stats.units_of(second)
    if units[0].clustered == units[1].clustered:
        return units
    people = max(side.people for side in units)

    def in_blocks(side: stats.Units) -> stats.Units:
        if side.clustered:
            return side
        count = min(people, side.count)
        return stats.Units(side.member * count // side.count, count, True)

    return in_blocks(units[0]), in_blocks(units[1])


def _two_halves(
    rng: np.random.Generator, units: stats.Units, size: int, draws: int
) -> tuple[Weights, Weights]:
    """Two disjoint random sets of `size` units, `draws` times."""
    rank = stats.random_orders(rng, units.count, draws)
    first, second = rank < size, (rank >= size) & (rank < 2 * size)
    return units.weights(first.astype(np.float64)), units.weights(second.astype(np.float64))


def _relabelled(
    rng: np.random.Generator, first: stats.Units, second: stats.Units, draws: int
) -> tuple[Weights, Weights]:
    """Weights of the images of both sides: as they are, then with labels of units shuffled `draws` times."""
    count = first.count + second.count
    member = np.concatenate([first.member, first.count + second.member])
    both = stats.Units(member, count, first.clustered)
    rank = np.concatenate([np.arange(count)[None], stats.random_orders(rng, count, draws)])
    to_first = (rank < first.count).astype(np.float64)
    return both.weights(to_first), both.weights(1 - to_first)


def _adjusted(values: Float[np.ndarray, "t draws"]) -> Float[np.ndarray, " t"]:
    """p of the first column among all, by the maximum over timesteps in units of their spread."""
    middle, spread = values.mean(axis=1, keepdims=True), np.maximum(values.std(axis=1, keepdims=True), 1e-12)
    size = (np.abs if (values < 0).any() else np.asarray)((values - middle) / spread)  # `means` has a sign
    return (size.max(axis=0)[None] >= size[:, :1] - 1e-9).mean(axis=1)
