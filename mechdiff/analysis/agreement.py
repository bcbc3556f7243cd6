"""Rank agreement of components' effects between two ablations of a denoiser, or between two denoisers."""

import numpy as np
import scipy
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis.effects import Draws, losses, pooled_relative_increase
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import ROUNDING
from mechdiff.stats import Interval


def rank_correlation(first: Draws, second: Draws) -> Float[np.ndarray, " m"]:
    """Spearman's correlation over components, for each draw; NaN where one side has no spread."""
    x, y = (scipy.stats.rankdata(values, axis=0) for values in (first, second))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.where(scale > 0, (x * y).sum(axis=0) / np.where(scale > 0, scale, 1), np.nan)


def of_ablations(sweep: xr.Dataset, first: str, second: str, repeats: int = 2000, seed: int = 0) -> Interval:
    """Rank correlation of pooled relative loss increases between two ablations of one denoiser.

    Over the components that changed a prediction under both; the same resamples of images serve both. Raises
    as `of_denoisers` does.
    """
    shared = _shared((sweep, first), (sweep, second))
    sides = [losses(sweep.sel(component=shared), ablation) for ablation in (first, second)]
    units = stats.units_of(sweep)
    return _ranked(sides, [units, units], [stats.bootstrap_weights(units.count, repeats, seed)] * 2)


def of_denoisers(
    first: xr.Dataset, second: xr.Dataset, ablation: str, repeats: int = 2000, seed: int = 0
) -> Interval:
    """Rank correlation of pooled relative loss increases of two denoisers; `n`: the smaller image count.

    Over the components that both have and that changed a prediction in both. The images of the two are
    resampled independently.

    Raises:
      ConfigError: fewer than 3 such components.
    """
    shared = _shared((first, ablation), (second, ablation))
    sides = [losses(sweep.sel(component=shared), ablation) for sweep in (first, second)]
    units = [stats.units_of(sweep) for sweep in (first, second)]
    shares = [stats.bootstrap_weights(side.count, repeats, seed + i) for i, side in enumerate(units)]
    return _ranked(sides, units, shares)


def _shared(*sides: tuple[xr.Dataset, str]) -> list[str]:
    """Components whose ablation changed a prediction on every side, in the order of the first."""
    active = []
    for sweep, ablation in sides:
        change = sweep["change"].sel(ablation=ablation).max(("t", "image"))
        active.append([str(name) for name in sweep["component"].values[change.values > ROUNDING]])
    shared = [name for name in active[0] if all(name in others for others in active[1:])]
    if len(shared) < 3:
        raise ConfigError(f"{len(shared)} components in common: at least 3 are needed to compare their ranks")
    return shared


def _ranked(
    sides: list[tuple[np.ndarray, np.ndarray]],
    units: list[stats.Units],
    shares: list[np.ndarray],
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of the rank correlation of two sides (clean, loss), in resamples of their units."""

    def correlate(weights: list[np.ndarray]) -> np.ndarray:
        first, second = (
            pooled_relative_increase(clean, loss, w) for (clean, loss), w in zip(sides, weights, strict=True)
        )
        return rank_correlation(first, second)

    estimate = correlate([side.even() for side in units])[0]
    drawn = correlate([side.weights(share) for side, share in zip(units, shares, strict=True)])
    n = min(len(side.member.T) for side in units)
    return stats.percentile_interval(estimate, drawn, confidence, n)
