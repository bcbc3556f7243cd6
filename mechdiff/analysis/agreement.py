"""Rank agreement of components' effects between two ablations of a denoiser, or between two denoisers.

Noise of the images lowers a rank correlation, and of two ablations on the same images it may raise one, as
both err alike. Resampling adds that noise a second time, which shows how much of it there is. Percentile
intervals of resamples, used until 2026-11-30, covered the correlation of the effects without noise in .10 to
.63 (8 images) and .77 to 1.00 (84) of subsets of a shipped study's images. The interval here is Student's,
with one unit left out at a time, around the estimate and around the estimate less the bias that resampling
shows: .91 to .98, and .99 to 1.00. Where effects scatter by twice their size it still covered .65 to .77 of 8
images, and of simulated effects that scatter by six times their mean size 0 to .2 (56 components, 4 to 16
images). So where noise is more than a tenth of what ranks scatter by, it also holds the correlation corrected
for attenuation (Spearman 1904, American Journal of Psychology 15:72; noise that both sides share is taken out
first): now at least .90 in each of 360 such designs of 4, 8, 16 and 84 images, at least .97 where both sides
have the same noise, and often [-1, 1], which says that so few images do not show it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis.effects import Draws, losses, pooled_relative_increase
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import ROUNDING
from mechdiff.stats import Interval

RELIABLE = 0.9  # share of the variance of one side's ranks that is not noise; above it, that is left as it is
MIN_RELIABILITY = 0.05  # that is divided by
Side = tuple[np.ndarray, np.ndarray]  # clean loss `[t, image]` and loss `[component, t, image]`


def rank_correlation(first: Draws, second: Draws) -> Float[np.ndarray, " m"]:
    """Spearman's correlation over components, for each draw; NaN where one side has no spread."""
    x, y = (scipy.stats.rankdata(values, axis=0) for values in (first, second))
    return of_centered(x - x.mean(axis=0), y - y.mean(axis=0))


def of_centered(x: Draws, y: Draws) -> Float[np.ndarray, " m"]:
    """Pearson's correlation over components of ranks whose mean is 0; NaN where one side has no spread."""
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
    """Rank correlation of pooled relative loss increases of two sides, see `rank_interval`.

    Args:
      sides: losses of the components that both have.
      units: of each side; or one, if both were measured on the same images.
    """

    def effects(weights: list[np.ndarray]) -> list[Draws]:
        both = zip(sides, (weights[0], weights[-1]), strict=True)
        return [pooled_relative_increase(*side, of_side) for side, of_side in both]

    return rank_interval(effects, units, repeats=repeats, seed=seed)


def rank_interval(
    effects: Callable[[list[np.ndarray]], Sequence[Draws]],
    units: list[stats.Units],
    correlate: Callable[[Draws, Draws], Float[np.ndarray, " m"]] = rank_correlation,
    *,
    repeats: int = 2000,
    seed: int = 0,
) -> Interval:
    """Rank correlation of two measured quantities with its 95 % interval, within [-1, 1]; it contains the
    estimate.

    Its ends lie Student's quantile times the standard error outside of the estimate and of twice the estimate
    less the mean of resamples; its degrees of freedom are those of as many units as people count as
    (`stats.Units.effective`). The standard error is the jackknife's, or that of resamples if larger: leaving
    out one unit can leave all ranks of few components as they are. Where one side is less than `RELIABLE`,
    they also lie as far outside of the correlation `without_noise`, whose error is larger.

    Args:
      effects: maps weights of images, for each of `units`, to both quantities, `[component, m]` each.
      units: of each side; or one, if both were measured on the same images.
      correlate: the rank correlation.
    """
    even = [side.even() for side in units]
    of_even = effects(even)
    estimate = float(correlate(*of_even)[0])
    shares = [stats.bootstrap_weights(side.count, repeats, seed + i) for i, side in enumerate(units)]
    of_drawn = effects([side.weights(share) for side, share in zip(units, shares, strict=True)])
    drawn = _defined(correlate(*of_drawn))
    variance = 0.0
    for i, side in enumerate(units):
        without_each = side.weights((1.0 - np.eye(side.count)) / (side.count - 1))
        of_each = np.broadcast_arrays(*effects([*even[:i], without_each, *even[i + 1 :]]))
        values = _defined(correlate(*of_each))
        variance += float(stats.jackknife_error(values)) ** 2
    n = min(side.count for side in units)
    error = np.sqrt(max(variance, stats.resampled_variance(drawn, n)[0]))
    count_as = min(side.effective for side in units)
    quantile = scipy.special.stdtrit(max(count_as - 1, 1), 0.975)
    middles, reach = [estimate, 2 * estimate - float(drawn.mean())], [quantile * error] * 2
    pairs = [np.broadcast_arrays(*pair) for pair in zip(of_even, of_drawn, strict=True)]
    own = [float(_defined(correlate(*pair)).mean()) for pair in pairs]
    corrected = without_noise(estimate, float(drawn.mean()), own, n, shared=len(units) == 1)
    if min(corrected.reliability) < RELIABLE:
        middles.append(corrected.estimate)
        # A covariance of n units is known to about 1 / sqrt(n - 1) of itself.
        of_common = abs(corrected.common) / np.sqrt(n - 1)
        reach.append(quantile * (error + of_common) / corrected.scale)
    ends = np.subtract(middles, reach).min(), np.add(middles, reach).max()
    low, high = (np.asarray(np.clip(end, -1, 1)) for end in ends)
    return Interval(estimate=np.asarray(estimate), low=low, high=high, confidence=0.95, n=n)


def _defined(correlations: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Correlations of resamples, 0 where one side is the same for all: it shows no agreement."""
    return np.nan_to_num(correlations, nan=0.0)


class WithoutNoise(NamedTuple):
    """A rank correlation corrected for noise.

    Attributes:
      estimate: within [-1, 1].
      reliability: of each side, the share of the variance of its ranks that is not noise: 1 at most, and
        below 0 where resampling shows nothing but noise.
      common: what noise that both sides share adds to the correlation as it is seen.
      scale: that of the correlation as it is seen, of the corrected one.
    """

    estimate: float
    reliability: tuple[float, float]
    common: float
    scale: float


def without_noise(estimate: float, drawn: float, own: Sequence[float], n: int, shared: bool) -> WithoutNoise:
    """Corrects a rank correlation for attenuation by noise.

    A resample adds as much noise as the estimate has. So ranks in resamples correlate with those of the
    estimate by 1 / sqrt(1 + noise), and where both sides share noise `drawn` is larger than `estimate` times
    the product of these.

    Args:
      drawn: the mean of its resamples.
      own: mean correlation of each side's ranks in resamples with those of all units.
      n: units, whose resamples spread too little by 1 / n.
      shared: whether the same units were measured on both sides.

    Example (half of the variance is noise, on either side):
      >>> corrected = without_noise(0.4, 0.4 / 1.5, [1.5**-0.5] * 2, 10**6, shared=False)
      >>> round(corrected.estimate, 3), round(corrected.scale, 3)
      (0.8, 0.5)
    """
    first, second = (max(correlation, MIN_RELIABILITY) for correlation in own)
    more = n / (n - 1)
    reliability = 1 - more * (1 / first**2 - 1), 1 - more * (1 / second**2 - 1)
    common = more * (drawn / (first * second) - estimate) if shared else 0.0
    scale = float(np.sqrt(np.prod(np.maximum(reliability, MIN_RELIABILITY))))
    corrected = float(np.clip((estimate - common) / scale, -1, 1))
    return WithoutNoise(corrected, reliability, common, scale)
