"""Complexity of the circuits of networks trained on a data set, and its ratio between two data sets.

arXiv 2506.17237 gives a ratio of 1.084 +- 0.008 of a measure that is not known; these are ours:
  circuit size     C(tau): components in the smallest circuit that reaches faithfulness tau, of .8, .9, .95
  effective        exp(entropy of the shares of |pooled relative loss increase|) (`effects.effective_number`)
  participation, rank   participation ratio and effective rank of activation covariance
  variance         of activations; depends on scale, the weakest
Of the last three, a network's number is the geometric mean over sites and timesteps. Each measure is a
function of weights of images, so that any of them can be resampled.

A ratio is formed per pair of training seeds, one of either data set, as a difference of logs, log R_s. The
unit of replication is the pair: `ratio` gives Student's interval over pairs (it covered 95 % with 8 of them)
and the hierarchical bootstrap over (pair, image), which is too narrow for few pairs (89 % with 8). Controls:
random halves of one data set (`halves`), seeds of one data set among themselves (`among_seeds`), and the same
ratio on untrained networks, which shows the effect of the images alone.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float, Num

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.core.errors import ConfigError
from mechdiff.stats import Interval
from mechdiff.sweeps.channel_moments import Moments, covariance, effective_rank, participation_ratio, variance

Weights = Float[np.ndarray, "m image"]
Measure = Callable[[np.ndarray], np.ndarray]  # weights [m, image], rows summing to 1 -> value [m], above 0
TAUS = (0.8, 0.9, 0.95)
OF_COVARIANCE = {"participation": participation_ratio, "rank": effective_rank, "variance": variance}


@dataclass(frozen=True)
class Ratio:
    """Complexity of a first data set over that of a second, in networks trained on each.

    Attributes:
      pairs: R of each pair of seeds.
      student: geometric mean of R with Student's interval over pairs; NaN ends for a single pair.
      hierarchical: the same with the percentile interval of resampled pairs and images.
      p: sign-flip test over pairs that R = 1; at least 2^(1 - pairs). NaN for a single pair.
    """

    pairs: Float[np.ndarray, " pair"]
    student: Interval
    hierarchical: Interval
    p: float


def circuit_size(
    sizes: Num[np.ndarray, " size"], faithfulness: Float[np.ndarray, "*cells size"], tau: float
) -> Float[np.ndarray, "*cells"]:
    """Fewest components whose circuit reaches faithfulness `tau`; NaN where none does.

    Args:
      sizes: components in each circuit, in any order.
      faithfulness: of each, (m(C) - m(nothing)) / (m(all) - m(nothing)).
    """
    reached = np.where(np.asarray(faithfulness) >= tau, np.asarray(sizes, np.float64), np.inf).min(axis=-1)
    return np.where(np.isfinite(reached), reached, np.nan)


def effective_components(sweep: xr.Dataset, ablation: str) -> Measure:
    """`effective` of a saved sweep, as a function of weights of images."""
    clean, loss = effects.losses(sweep, ablation)
    return lambda weights: effects.effective_number(effects.pooled_relative_increase(clean, loss, weights))


def covariance_measure(moments_by_site: Mapping[str, Moments], name: str) -> Measure:
    """`participation`, `rank` or `variance` of the activations of one network.

    Args:
      moments_by_site: site -> moments, of `channel_moments.channel_moments`; its groups take the place of
        images.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in OF_COVARIANCE:
        raise ConfigError(f"unknown measure {name!r}; choose from: {', '.join(OF_COVARIANCE)}")

    def measure(weights):
        logs = [
            np.log(OF_COVARIANCE[name](covariance(moments, weights))).mean(axis=1)
            for moments in moments_by_site.values()
        ]
        return np.exp(np.mean(logs, axis=0))

    return measure


def site_values(moments_by_site: Mapping[str, Moments], name: str) -> dict[str, Float[np.ndarray, " t"]]:
    """One of `OF_COVARIANCE` for each site and timestep, with even weights of images."""

    def value(moments: Moments) -> np.ndarray:
        count = len(moments.rows)
        return OF_COVARIANCE[name](covariance(moments, stats.equal_weights(count)))[0]

    return {site: value(moments) for site, moments in moments_by_site.items()}


def values(measures: Sequence[Measure], images: int) -> Float[np.ndarray, " network"]:
    """Each network's measure on all images, evenly weighted."""
    even = stats.equal_weights(images)
    return np.array([float(measure(even)[0]) for measure in measures])


def ratio_of(
    first: Float[np.ndarray, " pair"], second: Float[np.ndarray, " pair"], confidence: float = 0.95
) -> Interval:
    """Geometric mean of first / second with Student's interval over pairs: for measures that have one number
    per network, such as the size of a circuit. Pairs with a NaN are left out."""
    logs = np.log(np.asarray(first, np.float64)) - np.log(np.asarray(second, np.float64))
    logs = logs[np.isfinite(logs)]
    if len(logs) < 2:
        estimate = np.exp(logs[0]) if len(logs) else np.nan
        ends = {"low": np.asarray(np.nan), "high": np.asarray(np.nan)}
        return Interval(estimate=np.asarray(estimate), **ends, confidence=confidence, n=len(logs))
    mean = stats.student_mean(logs, confidence)
    ends = {name: np.asarray(np.exp(getattr(mean, name))) for name in ("estimate", "low", "high")}
    return Interval(**ends, confidence=confidence, n=len(logs))


def ratio(
    first: Sequence[Measure],
    second: Sequence[Measure],
    images: int,
    confidence: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Ratio:
    """Complexity of networks of a first data set over those of a second, pair by pair.

    Args:
      first, second: a measure for each training seed, in the same order.
      images: that each network was measured on (or groups of them), as many in both data sets.
      repeats, seed: of the resampling.
    Raises:
      ConfigError: unequal numbers of seeds.
    """
    if len(first) != len(second) or not first:
        raise ConfigError(f"{len(first)} and {len(second)} networks do not form pairs of seeds")
    logs = np.log(values(first, images)) - np.log(values(second, images))
    pairs = len(logs)
    weights = stats.hierarchical_weights(pairs, images, repeats, seed)
    share = weights.sum(axis=2)  # of each pair in each resample
    drawn = np.zeros(repeats)
    for i, (upper, lower) in enumerate(zip(first, second, strict=True)):
        drawn_pair = share[:, i] > 0
        # Image i of both data sets has the same noise: one resample of images serves both.
        within = weights[drawn_pair, i] / share[drawn_pair, i, None]
        drawn[drawn_pair] += share[drawn_pair, i] * (np.log(upper(within)) - np.log(lower(within)))
    in_logs = stats.percentile_interval(logs.mean(), drawn, confidence, pairs)
    hierarchical = Interval(
        estimate=np.asarray(np.exp(in_logs.estimate)),
        low=np.asarray(np.exp(in_logs.low)),
        high=np.asarray(np.exp(in_logs.high)),
        confidence=confidence,
        n=pairs,
    )
    p = float(stats.permutation_test(logs)) if pairs > 1 else float("nan")
    return Ratio(np.exp(logs), ratio_of(np.exp(logs), np.ones(pairs), confidence), hierarchical, p)


def halves(
    measures: Sequence[Measure], images: int, draws: int = 200, seed: int = 0
) -> Float[np.ndarray, " draw"]:
    """Control: ratios between two random halves of one data set, each the geometric mean over its networks.

    These are the ratios that the sampling of images alone gives.

    Raises:
      ConfigError: fewer than 4 images.
    """
    rng = np.random.default_rng(seed)
    order = stats.random_orders(rng, images, draws)
    size = images // 2
    if size < 2:
        raise ConfigError(f"{images} images can't be split into halves; at least 4")
    first, second = (order < size) / size, ((order >= size) & (order < 2 * size)) / size
    return np.exp(np.mean([np.log(measure(first)) - np.log(measure(second)) for measure in measures], axis=0))


def among_seeds(values: Float[np.ndarray, " seed"]) -> Float[np.ndarray, " pair"]:
    """Control: ratios, the larger over the smaller, of all pairs of training seeds of one data set."""
    stats.weights.check_units(len(values))
    logs = np.log(values)
    return np.exp([abs(a - b) for a, b in itertools.combinations(logs, 2)])
