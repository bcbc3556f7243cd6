"""Rank agreement of components' effects between two ablations of a denoiser, or between two denoisers.

Noise of the images lowers a rank correlation, and resampling adds that noise a second time: every draw lies
below the estimate, as the estimate lies below the correlation of the effects without noise. Percentile
intervals, used until 2026-11-30, covered that in .10 to .63 (8 images) and .77 to 1.00 (84) of subsets of a
shipped study's images. The interval here is Student's, with one unit left out at a time, around the estimate
and around the estimate less the bias that resampling shows: .91 to .98, and .99 to 1.00. With 8 images whose
effects scatter by twice their size it still covers no more than .65 to .77.
"""

import numpy as np
import scipy
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis.effects import Draws, losses, pooled_relative_increase
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import ROUNDING
from mechdiff.stats import Interval

Side = tuple[np.ndarray, np.ndarray]  # clean loss `[t, image]` and loss `[component, t, image]`


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
    return ranked(sides, [stats.units_of(sweep)], repeats, seed)


def of_denoisers(
    first: xr.Dataset, second: xr.Dataset, ablation: str, repeats: int = 2000, seed: int = 0
) -> Interval:
    """Rank correlation of pooled relative loss increases of two denoisers; `n`: the smaller count of images,
    or of people where they are known.

    Over the components that both have and that changed a prediction in both. The images of the two are
    resampled independently.

    Raises:
      ConfigError: fewer than 3 such components.
    """
    shared = _shared((first, ablation), (second, ablation))
    sides = [losses(sweep.sel(component=shared), ablation) for sweep in (first, second)]
    return ranked(sides, [stats.units_of(sweep) for sweep in (first, second)], repeats, seed)


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


def ranked(sides: list[Side], units: list[stats.Units], repeats: int = 2000, seed: int = 0) -> Interval:
    """Rank correlation of two sides with its 95 % interval, within [-1, 1]; it contains the estimate.

    Its ends lie Student's quantile times the standard error outside of the estimate and of twice the estimate
    less the mean of resamples; its degrees of freedom are those of as many units as people count as
    (`stats.Units.effective`). The standard error is the jackknife's, or that of resamples if larger: leaving
    out one unit can leave all ranks of few components as they are.

    Args:
      sides: losses of the components that both have.
      units: of each side; or one, if both were measured on the same images.
    """

    def correlate(weights: list[np.ndarray]) -> np.ndarray:
        draws = [
            pooled_relative_increase(*side, of_side)
            for side, of_side in zip(sides, (weights[0], weights[-1]), strict=True)
        ]
        return rank_correlation(*np.broadcast_arrays(*draws))

    even = [side.even() for side in units]
    estimate = float(correlate(even)[0])
    shares = [stats.bootstrap_weights(side.count, repeats, seed + i) for i, side in enumerate(units)]
    drawn = correlate([side.weights(share) for side, share in zip(units, shares, strict=True)])
    variance = 0.0
    for i, side in enumerate(units):
        without_each = side.weights((1.0 - np.eye(side.count)) / (side.count - 1))
        values = correlate([*even[:i], without_each, *even[i + 1 :]])
        variance += float(stats.jackknife_error(values)) ** 2
    n = min(side.count for side in units)
    error = np.sqrt(max(variance, stats.resampled_variance(drawn, n)[0]))
    count_as = min(side.effective for side in units)
    half = scipy.special.stdtrit(max(count_as - 1, 1), 0.975) * error
    corrected = 2 * estimate - float(drawn.mean())
    ends = min(estimate, corrected) - half, max(estimate, corrected) + half
    low, high = (np.asarray(np.clip(end, -1, 1)) for end in ends)
    return Interval(estimate=np.asarray(estimate), low=low, high=high, confidence=0.95, n=n)
