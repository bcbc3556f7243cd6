"""Relative loss increases of ablations, from a saved sweep: per cell, pooled, compared.

Definitions are ours (that of arXiv 2506.17237 is not known). L_t is the denoising loss at timestep t averaged
over images, L0_t that of the network without intervention, L_t(do) that under an intervention:
  cells          relative loss increase dL_t = 100 (L_t(do) - L0_t) / L0_t, in %
  pooled         mean over t of dL_t; timesteps lie evenly in log-SNR and count alike
  pooled losses  100 (sum_t L_t(do) - sum_t L0_t) / sum_t L0_t: the loss-weighted average over timesteps
  rms            root mean square over t of dL_t: opposite signs at different timesteps don't cancel; sampling
                 noise raises it, which its interval allows for
  images hurt    share of images whose loss rises. An image at every timestep counts once, by its mean over t
                 of 100 (l_t(do) - l_t) / L0_t; in a nested design each image counts
  quantiles      of that number over images, of which the mean losses L0_t are taken as they are
  excess         mean over t of 100 (L_t(do) - L0_t) / (L0_t - floor_t), floor_t the loss of the optimal
                 denoiser; only where it is known
Everything is a function of weights of images, so that estimates and resamples are the same call; the unit of
replication is the image, or the person where it is known who is in it (`stats.clusters`), for a fixed
training seed.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechdiff import stats
from mechdiff.analysis import precision
from mechdiff.core.errors import CheckpointError, ConfigError, unknown
from mechdiff.core.numerics import ROUNDING
from mechdiff.stats import Interval

CleanLossArray = Float[np.ndarray, "t image"]
LossArray = Float[np.ndarray, "component t image"]
Weights = Float[np.ndarray, "m *timesteps image"]
Draws = Float[np.ndarray, "component m"]
QUANTILES = (0.05, 0.5, 0.95)  # of the relative loss increase over images


@dataclass(frozen=True)
class EffectGrid:
    """One number for every component at every timestep, and pooled: an effect, or how one changed.

    Attributes:
      ablation: where replacements come from.
      components: names; `component_type`, `resolution`, `depth` as in the sweep.
      t, log_snr: timesteps.
      cells: relative loss increase (%), or its change (percentage points), `[component, t]`.
      p: sign-flip p values of the cells' loss differences, adjusted by max-T over this grid.
      pooled: as the module defines it.
      change: largest mean squared change of a prediction over timesteps and images, `[component]`.
      images: number scored at each timestep.
      people: number of people in them; 0 where that is not known.
    """

    ablation: str
    components: tuple[str, ...]
    component_type: tuple[str, ...]
    resolution: Int[np.ndarray, " component"]
    depth: Int[np.ndarray, " component"]
    t: Int[np.ndarray, " t"]
    log_snr: Float[np.ndarray, " t"]
    cells: Interval
    p: Float[np.ndarray, "component t"]
    pooled: Interval
    change: Float[np.ndarray, " component"]
    images: int
    people: int

    @property
    def n(self) -> int:
        """Images."""
        return self.images

    @property
    def order(self) -> Int[np.ndarray, " component"]:
        """Components by pooled relative loss increase, the largest first."""
        return np.argsort(-self.pooled.estimate, kind="stable")

    @property
    def idle(self) -> Bool[np.ndarray, " component"]:
        """Components whose ablation changed no prediction by more than rounding: nothing was tested."""
        return self.change <= ROUNDING


@dataclass(frozen=True)
class Effects(EffectGrid):
    """Effects of one ablation on one denoiser; see the module for symbols.

    Attributes:
      pooled_losses: as the module defines it.
      effective: effective number of components, exp(entropy of the shares of |pooled|); its interval allows
        for noise, which moves it (`stats.concentration`).
      rms: root mean square over timesteps, `[component]`.
      hurt: share of images hurt, `[component]`, with an exact interval (`stats.share_interval`).
      quantiles: over images, `[component, QUANTILES]`, by order statistics (`stats.quantile_interval`): an
        end is infinite where no image is far enough out.
      precision_error: largest error of a relative loss increase by reduced precision of products, in points,
        `[component]`; 0 in full precision. Intervals of relative loss increases are wider by it at both ends
        (not those of `rms` and `effective`), and cells not above it have p = 1.
    """

    pooled_losses: Interval
    effective: Interval
    rms: Interval
    hurt: Interval
    quantiles: Interval
    precision_error: Float[np.ndarray, " component"]


def relative_loss_increase(
    clean: CleanLossArray, loss: LossArray, weights: Weights
) -> Float[np.ndarray, "component t m"]:
    """100 (L_t(do) - L0_t) / L0_t, in %, under each weighting of the images; 0 where losses are equal."""
    return 100 * stats.weighted_mean(loss - clean, weights) / stats.weighted_mean(clean, weights)


def pooled_relative_increase(clean: CleanLossArray, loss: LossArray, weights: Weights) -> Draws:
    """Mean over timesteps of the relative loss increase, in %, under each weighting of the images."""
    return relative_loss_increase(clean, loss, weights).mean(axis=1)


def pooled_loss_ratio_increase(clean: CleanLossArray, loss: LossArray, weights: Weights) -> Draws:
    """Relative increase of the loss summed over timesteps, in %, under each weighting of the images."""
    increase, base = stats.weighted_mean(loss - clean, weights), stats.weighted_mean(clean, weights)
    return 100 * increase.sum(axis=1) / base.sum(axis=0)


def excess_relative_increase(
    clean: CleanLossArray, loss: LossArray, floor: Float[np.ndarray, " *cells"], weights: Weights
) -> Draws:
    """Loss increase relative to the clean loss's excess over the optimal one, mean over timesteps, in %.

    Args:
      floor: loss of the optimal denoiser in the units of `clean`: expected, `(t,)`, or on the same images and
        noise, `(t, image)`, which leaves less noise in the difference.

    Raises:
      ConfigError: a floor that is not below the clean loss at every timestep.
    """
    floor = np.asarray(floor, np.float64)
    least = floor[:, None] if floor.ndim == 1 else stats.weighted_mean(floor, weights)
    excess = stats.weighted_mean(clean, weights) - least
    if not (excess > 0).all():
        t_index = int(np.argmin(excess.min(axis=-1)))
        raise ConfigError(
            f"floor {float(least[t_index].max()):.4g} at timestep index {t_index} is not below the network's "
            "loss; give that of the optimal denoiser in the units of the clean loss"
        )
    return 100 * (stats.weighted_mean(loss - clean, weights) / excess).mean(axis=1)


def increase_by_image(
    clean: CleanLossArray, loss: LossArray, nested: bool = False
) -> Float[np.ndarray, "component t_or_1 image"]:
    """Relative loss increase of each image, 100 (l_t(do) - l_t) / L0_t, whose mean is the pooled one.

    Args:
      nested: whether timesteps have different images. If not, the mean over timesteps is taken (t = 1).
    """
    cells = 100 * (loss - clean) / clean.mean(axis=-1, keepdims=True)
    return cells if nested else cells.mean(axis=1, keepdims=True)


def nested(sweep: xr.Dataset) -> bool:
    """Whether timesteps have different images. Sweeps say so since 2026-11-30; of an older one it is taken
    from the number of images, so that some of its images are not told from a nested sweep."""
    more = sweep.attrs.get("images_total", 0) > sweep.sizes["image"]
    return bool(sweep.attrs.get("nested", more))


def losses(sweep: xr.Dataset, ablation: str) -> tuple[CleanLossArray, LossArray]:
    """Losses of a finished sweep in float64: clean ones, and those under an ablation.

    Where ablating a component changed no prediction by more than rounding, its losses are the clean ones:
    nothing was tested, and differences that are all rounding would be small, but significant.

    Raises:
      ConfigError: an ablation that was not swept.
      CheckpointError: cells without a number, or a clean loss that is not positive.
    """
    if ablation not in sweep["ablation"].values:
        raise ConfigError(unknown("ablation", ablation, sweep["ablation"].values))
    clean = sweep["clean_loss"].transpose("t", "image").values.astype(np.float64)
    loss = sweep["loss"].sel(ablation=ablation).transpose("component", "t", "image").values.astype(np.float64)
    bad = int((~np.isfinite(loss)).sum() + (~np.isfinite(clean)).sum())
    whose = f"sweep of {sweep.attrs.get('denoiser')!r}"
    if bad:
        raise CheckpointError(
            f"{whose}: {bad} losses are missing or not finite; run it again, and check the network's output"
        )
    if not (clean > 0).all():
        raise CheckpointError(f"{whose}: clean loss {clean.min()} is not positive; run it again")
    if "change" in sweep:
        loss = np.where(_largest_change(sweep, ablation)[:, None, None] <= ROUNDING, clean, loss)
    return clean, loss


def measure(
    sweep: xr.Dataset, ablation: str, repeats: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Effects:
    """Effects of every component under one ablation, with bootstrap intervals over images or people.

    Args:
      sweep: as `ablation.ablation_sweep` makes it; at least 2 images.
      repeats, seed: of the resampling; the same weights serve all components.
    """
    clean, loss = losses(sweep, ablation)
    units = stats.units_of(sweep)
    by_image = increase_by_image(clean, loss, nested(sweep))

    drawn = {"repeats": repeats, "seed": seed, "confidence": confidence}

    def interval(statistic: stats.intervals.Statistic) -> Interval:
        return stats.bootstrap_units(statistic, units, student=True, **drawn)

    error = precision.relative_error(sweep, ablation)
    cells = precision.possible(interval(lambda w: relative_loss_increase(clean, loss, w)), error[:, None])
    return Effects(
        ablation=ablation,
        components=tuple(str(name) for name in sweep["component"].values),
        component_type=tuple(map(str, sweep["component_type"].values)),
        resolution=sweep["resolution"].values,
        depth=sweep["depth"].values,
        t=sweep["t"].values,
        log_snr=sweep["log_snr"].values.astype(np.float64),
        cells=cells,
        p=np.where(
            precision.lost(cells, error[:, None]), 1.0, stats.max_t(units.sums(loss - clean), seed=seed)
        ),
        pooled=precision.possible(interval(lambda w: pooled_relative_increase(clean, loss, w)), error),
        pooled_losses=precision.possible(
            interval(lambda w: pooled_loss_ratio_increase(clean, loss, w)), error
        ),
        effective=stats.effective_interval(
            lambda w: pooled_relative_increase(clean, loss, w), units, **drawn
        ),
        change=_largest_change(sweep, ablation),
        rms=stats.rms_interval(lambda w: relative_loss_increase(clean, loss, w), units, **drawn),
        hurt=hurt_share(sweep, clean, loss, confidence),
        quantiles=stats.quantile_interval(by_image, units, QUANTILES, confidence),
        precision_error=error,
        images=sweep.sizes["image"],
        people=units.people,
    )


def hurt_share(
    sweep: xr.Dataset, clean: CleanLossArray, loss: LossArray, confidence: float = 0.95
) -> Interval:
    """Share of images hurt under an ablation, with its exact interval; 0 where no prediction changed.

    Args:
      clean, loss: of `losses`.
    """
    hurt = increase_by_image(clean, loss, nested(sweep)) > 0
    interval = stats.share_interval(hurt, stats.units_of(sweep), confidence)
    idle = (loss == clean).all(axis=(1, 2))
    return dataclasses.replace(interval, high=np.where(idle, 0.0, interval.high))


def pooled_interval(sweep: xr.Dataset, ablation: str, seed: int = 0) -> Interval:
    """Pooled relative loss increase (%) of every component, with its 95 % interval over images or people.

    Args:
      sweep: `loss` and `change`, dims `ablation, component, t, image`, and `clean_loss`; at least 2 images.

    Raises:
      ConfigError, CheckpointError: see `losses`.
    """
    clean, loss = losses(sweep, ablation)
    interval = stats.bootstrap_units(
        lambda weights: pooled_relative_increase(clean, loss, weights),
        stats.units_of(sweep),
        seed=seed,
        student=True,
    )
    return precision.possible(interval)


def _largest_change(sweep: xr.Dataset, ablation: str) -> Float[np.ndarray, " component"]:
    """Mean squared change of a prediction, the largest over timesteps and images."""
    return sweep["change"].sel(ablation=ablation).max(("t", "image")).values.astype(np.float64)
