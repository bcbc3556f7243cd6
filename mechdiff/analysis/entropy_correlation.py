"""Rank correlation, over the heads of one network, of attention entropy with effects or selectivity.

Once over all heads, and again of ranks within layers, since layers of few keys have low entropies, and layers
differ in effects. Entropies are normalized, H / ln Nk. The test by intervention is `entropy_causality`.

Intervals allow for noise of the images, which hides a correlation (`agreement.rank_interval`). Percentiles of
resamples, used until 2026-11-30, covered one of -.9 in 0 to .45 of simulated sets of 8 images whose effects
scatter by .5 to 6 times their mean size, and in .01 to .91 of 84; now in .96 or more.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.analysis.agreement import of_centered, rank_correlation, rank_interval
from mechdiff.analysis.roles import selectivity, target_groups
from mechdiff.analysis.roles.matching import layers_of
from mechdiff.core.errors import ConfigError
from mechdiff.stats import Interval
from mechdiff.stats.intervals import Statistic


@dataclass(frozen=True)
class EntropyCorrelation:
    """Rank correlation of entropy with another quantity over the heads of one network.

    Attributes:
      overall: Spearman's, with its interval over images (`n` of them), or people.
      within: the same of ranks within layers, less each layer's mean.
      p: of `overall`, two-sided, heads shuffled anywhere; `p_within`: of `within`, shuffled within layers.
      heads: number of heads.
    """

    overall: Interval
    within: Interval
    p: float
    p_within: float
    heads: int


def correlation(
    attention: xr.Dataset,
    other: Statistic,
    repeats: int = 1000,
    seed: int = 0,
) -> EntropyCorrelation:
    """Rank correlation over heads of a quantity with normalized entropy, with permutation p values.

    Args:
      attention: of `activations.attention_stats`; with the coordinate `person`, people are resampled.
      other: of the same heads, as a function of weights `[m, image]` of the same images that gives `[head,
        m]`: `effect_size`, `max_selectivity`.

    Raises:
      ConfigError: `other` gives another number of heads.
    """
    entropy = (
        attention["normalized_entropy"].transpose("head", "t", "image").values.astype(np.float64).mean(1)
    )
    layers = np.array(layers_of(attention["head"].values))
    units = stats.units_of(attention)

    def both(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return entropy @ w.T, other(w)

    x, y = both(units.even())
    if len(x) != len(y):
        raise ConfigError(
            f"{len(x)} heads have an entropy, {len(y)} the other quantity; compare the same heads"
        )
    overall, within = (
        rank_interval(lambda weights: both(weights[0]), [units], correlate, repeats=repeats, seed=seed)
        for correlate in (rank_correlation, functools.partial(within_layers, layers=layers))
    )
    rng = np.random.default_rng(seed)
    anywhere = np.stack([rng.permutation(x[:, 0]) for _ in range(repeats)], axis=1)
    inside = np.tile(x, (1, repeats))
    for layer in np.unique(layers):
        inside[layers == layer] = rng.permuted(inside[layers == layer], axis=0)

    def p(observed: np.ndarray, drawn: np.ndarray) -> float:
        if np.isnan(observed):  # one head a layer, say, or effects that are all alike
            return np.nan
        return float((1 + (~(np.abs(drawn) < abs(observed) - 1e-9)).sum()) / (1 + len(drawn)))

    return EntropyCorrelation(
        overall=overall,
        within=within,
        p=p(overall.estimate, rank_correlation(anywhere, np.tile(y, (1, repeats)))),
        p_within=p(within.estimate, within_layers(inside, np.tile(y, (1, repeats)), layers)),
        heads=len(entropy),
    )


def effect_size(clean: effects.CleanLossArray, loss: effects.LossArray) -> Statistic:
    """|pooled relative loss increase| of each head, from a sweep's `effects.losses` of those heads."""
    return lambda weights: np.abs(effects.pooled_relative_increase(clean, loss, weights))


def max_selectivity(effect: xr.Dataset) -> Statistic:
    """Each head's largest selectivity, from its `roles.role_effects`; -1 for a head that changes nothing."""
    values = effect["effect"].mean("t").transpose("component", "target", "image").values.astype(np.float64)
    group = target_groups([str(name) for name in effect["target"].values])

    def measure(weights):
        index = selectivity(np.moveaxis(values @ weights.T, 2, 0), group)
        return np.where(np.isfinite(index), index, -1.0).max(axis=-1).T

    return measure


def within_layers(first: effects.Draws, second: effects.Draws, layers: np.ndarray) -> Float[np.ndarray, " m"]:
    """Correlation of ranks, taken within each layer and centered there; NaN where a side has no spread."""
    x, y = (
        np.concatenate([_ranks(side[layers == layer]) for layer in np.unique(layers)])
        for side in (first, second)
    )
    return of_centered(x, y)


def _ranks(values: effects.Draws) -> effects.Draws:
    ranks = scipy.stats.rankdata(values, axis=0)
    return (ranks - ranks.mean(axis=0)) / len(values)
