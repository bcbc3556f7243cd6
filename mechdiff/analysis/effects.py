"""Damage done by leaving components out, from a saved sweep: per cell, pooled, compared.

Definitions are ours (that of arXiv 2506.17237 is not known). L_t is the denoising loss at timestep t averaged
over images, L0_t that of the untouched network, L_t(do) that under an intervention:
  Deg%_t         = 100 (L_t(do) - L0_t) / L0_t
  pooled Deg%    = mean over t of Deg%_t; levels lie evenly in log-SNR, and each counts alike
  pooled losses  = 100 (sum_t L_t(do) - sum_t L0_t) / sum_t L0_t; levels with large losses count more
  rms Deg%       = root mean square over t of Deg%_t: what helps at some levels and hurts at others is near 0
                   in the mean, not here; sampling noise raises it
  pictures hurt  = share of pictures whose loss rises; 0.1 where one picture in ten rests on the component. A
                   picture shown at every level counts once, by its mean over levels of
                   100 (l_t(do) - l_t) / L0_t; where levels have pictures of their own, each counts
  quantiles      of that number over pictures
  excess damage  = mean over t of 100 (L_t(do) - L0_t) / (L0_t - floor_t), floor_t the least loss that any
                   denoiser can have; only where it is known
Everything is a function of weights of images, so that estimates and resamples are the same call; the unit of
replication is the image, or the person where it is known who is on it (`stats.clusters`), the training seed
being fixed.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from mechdiff import stats
from mechdiff.core.errors import CheckpointError, ConfigError, unknown
from mechdiff.stats import Interval

CleanLossArray = Float[np.ndarray, "t image"]
LossArray = Float[np.ndarray, "component t image"]
Weights = Float[np.ndarray, "m *levels image"]
Draws = Float[np.ndarray, "component m"]
QUANTILES = (0.05, 0.5, 0.95)  # of damage over pictures
ROUNDING = 1e-12  # mean squared change of a prediction of unit variance that float32 rounding can make


@dataclass(frozen=True)
class Effects:
    """What one kind of ablation does to one subject.

    Attributes:
      kind: of ablation.
      components: names; `part`, `resolution`, `depth` as in the sweep.
      t, log_snr: levels.
      cells: Deg%_t, `[component, t]`.
      p: sign-flip p values of the cells' loss differences, adjusted by max-T over this grid.
      pooled, pooled_losses: see the module.
      effective: exp(entropy of |pooled Deg%| as shares): over how many components damage is spread.
      change: largest mean squared change of a prediction over levels and images, `[component]`.
      rms, hurt: root mean square over levels of Deg%_t, and share of pictures hurt, `[component]`.
      quantiles: of damage over pictures, `[component, QUANTILES]`.
      images: scored at every level.
      people: on all of them; 0 where that is not known.
    """

    ablation: str
    components: tuple[str, ...]
    part: tuple[str, ...]
    resolution: Int[np.ndarray, " component"]
    depth: Int[np.ndarray, " component"]
    t: Int[np.ndarray, " t"]
    log_snr: Float[np.ndarray, " t"]
    cells: Interval
    p: Float[np.ndarray, "component t"]
    pooled: Interval
    pooled_losses: Interval
    effective: Interval
    change: Float[np.ndarray, " component"]
    rms: Interval
    hurt: Interval
    quantiles: Float[np.ndarray, "component quantile"]
    images: int
    people: int

    @property
    def n(self) -> int:
        """Images."""
        return self.images

    @property
    def order(self) -> Int[np.ndarray, " component"]:
        """Components by pooled Deg%, the most damaging first."""
        return np.argsort(-self.pooled.estimate, kind="stable")

    @property
    def idle(self) -> Bool[np.ndarray, " component"]:
        """Components whose ablation changed no prediction by more than rounding: nothing was tested."""
        return self.change <= ROUNDING


def relative_loss_increase(
    clean: CleanLossArray, loss: LossArray, weights: Weights
) -> Float[np.ndarray, "component t m"]:
    """Deg%_t under each weighting of the images."""
    return 100 * (stats.weighted(loss, weights) / stats.weighted(clean, weights) - 1)


def pooled_relative_increase(clean: CleanLossArray, loss: LossArray, weights: Weights) -> Draws:
    """Pooled Deg% under each weighting of the images."""
    return relative_loss_increase(clean, loss, weights).mean(axis=1)


def pooled_loss_ratio_increase(clean: CleanLossArray, loss: LossArray, weights: Weights) -> Draws:
    """Relative rise of the loss summed over levels, in %, under each weighting of the images."""
    raised, base = stats.weighted(loss, weights), stats.weighted(clean, weights)
    return 100 * (raised.sum(axis=1) / base.sum(axis=0) - 1)


def rms_damage(clean: CleanLossArray, loss: LossArray, weights: Weights) -> Draws:
    """Root mean square over levels of Deg%_t under each weighting of the images."""
    return np.sqrt((relative_loss_increase(clean, loss, weights) ** 2).mean(axis=1))


def excess_damage(
    clean: CleanLossArray, loss: LossArray, floor: Float[np.ndarray, " t"], weights: Weights
) -> Draws:
    """Rise of the loss over what the network's loss is above the least possible one, mean over levels, in %.

    Args:
      floor: loss of the optimal denoiser at each level, in the units of `clean`.

    Raises:
      ConfigError: a floor that is not below the clean loss at every level.
    """
    excess = stats.weighted(clean, weights) - np.asarray(floor, np.float64)[:, None]
    if not (excess > 0).all():
        level = int(np.argmin(excess.min(axis=-1)))
        raise ConfigError(
            f"floor {float(floor[level]):.4g} at level {level} is not below the network's loss; give that of "
            "the optimal denoiser in the units of the clean loss"
        )
    return 100 * ((stats.weighted(loss, weights) - stats.weighted(clean, weights)) / excess).mean(axis=1)


def picture_damage(
    clean: CleanLossArray, loss: LossArray, own: bool = False
) -> Float[np.ndarray, "component own_t image"]:
    """What each picture adds to pooled Deg%: 100 (l_t(do) - l_t) / L0_t, whose mean over all is pooled Deg%.

    Args:
      own: whether each level has pictures of its own. If not, the mean over levels is taken (t = 1).
    """
    cells = 100 * (loss - clean) / clean.mean(axis=-1, keepdims=True)
    return cells if own else cells.mean(axis=1, keepdims=True)


def effective_number(damage: Draws) -> Float[np.ndarray, " m"]:
    """exp(-sum p ln p) with p = |damage| / sum |damage|, in [1, components]; NaN where there is none."""
    size = np.abs(damage)
    total = size.sum(axis=0)
    p = np.where(size > 0, size / np.where(total > 0, total, 1), 1.0)
    return np.where(total > 0, np.exp(-(p * np.log(p)).sum(axis=0)), np.nan)


def losses(sweep: xr.Dataset, ablation: str) -> tuple[CleanLossArray, LossArray]:
    """Losses of a finished sweep in float64.

    Raises:
      ConfigError: a kind that was not swept.
      CheckpointError: cells without a number, or a clean loss that is not positive.
    """
    if ablation not in sweep["ablation"].values:
        raise ConfigError(unknown("ablation kind", ablation, sweep["ablation"].values))
    clean = sweep["clean_loss"].transpose("t", "image").values.astype(np.float64)
    loss = sweep["loss"].sel(ablation=ablation).transpose("component", "t", "image").values.astype(np.float64)
    bad = int((~np.isfinite(loss)).sum() + (~np.isfinite(clean)).sum())
    whose = f"sweep of {sweep.attrs.get('subject')!r}"
    if bad:
        raise CheckpointError(f"{whose}: {bad} losses are missing; run it again")
    if not (clean > 0).all():
        raise CheckpointError(f"{whose}: clean loss {clean.min()} is not positive; run it again")
    return clean, loss


def measure(
    sweep: xr.Dataset, ablation: str, repeats: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Effects:
    """Damage of every component under one kind of ablation, with bootstrap intervals over images.

    Args:
      sweep: as `sweeps.ablation_sweep` makes it; at least 2 images.
      repeats, seed: of the resampling; the same weights serve all components.
    """
    clean, loss = losses(sweep, ablation)
    units = stats.units_of(sweep)
    pictures = picture_damage(clean, loss, sweep.attrs.get("images_total", 0) > sweep.sizes["image"])
    raised = (pictures > 0).astype(np.float64)

    def interval(statistic: stats.intervals.Statistic) -> Interval:
        return stats.bootstrap_units(statistic, units, repeats=repeats, seed=seed, confidence=confidence)

    return Effects(
        ablation=ablation,
        components=tuple(str(name) for name in sweep["component"].values),
        part=tuple(str(part) for part in sweep["component_type"].values),
        resolution=sweep["resolution"].values,
        depth=sweep["depth"].values,
        t=sweep["t"].values,
        log_snr=sweep["log_snr"].values.astype(np.float64),
        cells=interval(lambda w: relative_loss_increase(clean, loss, w)),
        p=stats.max_t(units.sums(loss - clean), seed=seed),
        pooled=interval(lambda w: pooled_relative_increase(clean, loss, w)),
        pooled_losses=interval(lambda w: pooled_loss_ratio_increase(clean, loss, w)),
        effective=interval(lambda w: effective_number(pooled_relative_increase(clean, loss, w))),
        change=sweep["change"].sel(ablation=ablation).max(("t", "image")).values.astype(np.float64),
        rms=interval(lambda w: rms_damage(clean, loss, w)),
        hurt=interval(lambda w: stats.weighted(raised, w).mean(axis=1)),
        quantiles=np.quantile(pictures, QUANTILES, axis=(1, 2)).T,
        images=sweep.sizes["image"],
        people=units.people,
    )


def rank_correlation(first: Draws, second: Draws) -> Float[np.ndarray, " m"]:
    """Spearman's correlation over components, for each draw; NaN where one side has no spread."""
    x, y = (rankdata(values, axis=0) for values in (first, second))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.where(scale > 0, (x * y).sum(axis=0) / np.where(scale > 0, scale, 1), np.nan)


def ablations_agreement(
    sweep: xr.Dataset, first: str, second: str, repeats: int = 2000, seed: int = 0
) -> Interval:
    """Rank correlation of pooled Deg% between two kinds of ablation of one subject; same images resampled.

    Over the components that changed something under both kinds. Raises as `denoisers_agreement` does.
    """
    shared = _shared((sweep, first), (sweep, second))
    sides = [losses(sweep.sel(component=shared), ablation) for ablation in (first, second)]
    units = stats.units_of(sweep)
    return _ranked(sides, [units, units], [stats.bootstrap_weights(units.count, repeats, seed)] * 2)


def denoisers_agreement(
    first: xr.Dataset, second: xr.Dataset, ablation: str, repeats: int = 2000, seed: int = 0
) -> Interval:
    """Rank correlation of pooled Deg% between two subjects; `n` is the smaller count of images.

    Over the components that both have and that changed something in both. Images of the two are resampled
    apart, as they are not the same.

    Raises:
      ConfigError: fewer than 3 such components.
    """
    shared = _shared((first, ablation), (second, ablation))
    sides = [losses(sweep.sel(component=shared), ablation) for sweep in (first, second)]
    units = [stats.units_of(sweep) for sweep in (first, second)]
    shares = [stats.bootstrap_weights(each.count, repeats, seed + i) for i, each in enumerate(units)]
    return _ranked(sides, units, shares)


def _shared(*sides: tuple[xr.Dataset, str]) -> list[str]:
    """Components that changed something on every side, in the order of the first."""
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
        return rank_correlation(*(pooled_relative_increase(*side, w) for side, w in zip(sides, weights)))

    estimate = correlate([each.even() for each in units])[0]
    drawn = correlate([each.weights(share) for each, share in zip(units, shares)])
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    ends = {"low": np.asarray(low), "high": np.asarray(high)}
    n = min(len(each.member.T) for each in units)
    return Interval(estimate=np.asarray(estimate), **ends, confidence=confidence, n=n)
