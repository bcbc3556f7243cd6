"""Phases of denoising: contiguous ranges of timesteps within which components have like effects.

Definitions are ours (how arXiv 2506.17237 found its four phases is not known). The effect of component c at
timestep t is D[t, c] = ln(L_t(do c) / L0_t), each component standardized over timesteps. A
segmentation into k phases models it as piecewise constant: the sum of squares about the means of (phase,
component), least over all boundaries by dynamic programming (Bellman 1961; Auger & Lawrence 1989), exactly.

k is chosen by likelihood on images that were not used: boundaries and means come from one random half of the
images, the other half is scored under a Gaussian of one variance, that of the scored half about those means:
  l_k = -(1 + ln(2 pi MSE_k)) / 2 per cell, averaged over splits.
The number of timesteps bounds k: with the 8 of preset `quickstart` a phase is one or two of them. To test
"four" against its neighbors, take at least 24 timesteps, better 32 (`--set=sweep.timesteps=32`): at least six
per phase, or three if there are eight phases.

Three ways in which "four phases" can be an artifact, each with its number here:
  noise            k = 1 scores best when images share nothing;
  any ordering     `p_order`: the gain l_k - l_1 against that of the same timesteps in random order;
  smooth drift     `drift`: the score of a polynomial in the timestep's index with as many coefficients a
                   component as there are phases, and `stepped`, how often the piecewise-constant model beats
                   it. k alone is no evidence: simulated effects that drift evenly were cut into 2 to 6
                   pieces, three or four most often.
The fourth, the architecture alone, needs the sweep of an untrained network.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.analysis.segmentation import (
    MAX_PHASES,
    MIN_MEAN_SQUARE,
    Matrix,
    Scores,
    bounded,
    held_out,
    segment,
    standardized,
)
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import ROUNDING


@dataclass(frozen=True)
class Phases:
    """The phases of one denoiser under one ablation.

    Attributes:
      k: with the best mean score.
      starts: first timestep of each of the `k` phases, fitted on all images; indices into `t`.
      t, log_snr: timesteps.
      score: mean log-likelihood per cell on held-out images, `[k]` for k = 1, 2, ...
      drift: the same of polynomials with k coefficients.
      share: of bootstrap draws in which each k scores best, `[k]`.
      gain: score minus that of k = 1, in each bootstrap draw, `[draw, k]`.
      stepped: share of bootstrap draws in which the best segmentation scores above the best polynomial.
      p_order: of each gain, against timesteps in random order, `[k]`; NaN for k = 1.
      images: of the sweep.
    """

    k: int
    starts: tuple[int, ...]
    t: Int[np.ndarray, " t"]
    log_snr: Float[np.ndarray, " t"]
    score: Float[np.ndarray, " k"]
    drift: Float[np.ndarray, " k"]
    share: Float[np.ndarray, " k"]
    gain: Float[np.ndarray, "draw k"]
    stepped: float
    p_order: Float[np.ndarray, " k"]
    images: int

    @property
    def boundaries(self) -> Float[np.ndarray, " boundaries"]:
        """Log-SNR half-way between the last timestep of a phase and the first of the next."""
        first = np.array(self.starts[1:], int)
        return (self.log_snr[first - 1] + self.log_snr[first]) / 2

    def likely(self) -> tuple[int, int]:
        """Range of k that holds at least 95 % of the bootstrap draws, with equal tails."""
        below = np.cumsum(self.share)
        low, high = np.searchsorted(below, [0.025 + 1e-12, 0.975 - 1e-12]) + 1
        return int(low), int(high)


def effect_matrix(
    clean: effects.CleanLossArray, loss: effects.LossArray, weights: effects.Weights
) -> Float[np.ndarray, "m t component"]:
    """ln(L_t(do c) / L0_t) under each weighting of the images."""
    ratio = 1 + effects.relative_loss_increase(clean, loss, weights) / 100
    return np.moveaxis(np.log(np.maximum(ratio, MIN_MEAN_SQUARE)), 2, 0).swapaxes(1, 2)


def check_sizes(images: int, timesteps: int) -> None:
    """Checks the size of a sweep before it is made; ConfigError if it is too small for `measure`."""
    _check_count(images)
    bounded(timesteps, MAX_PHASES)


def _check_count(count: int, kind: str = "images") -> None:
    if count < 4:
        raise ConfigError(f"{count} {kind} can't be split into halves; at least 4")


def measure(
    sweep: xr.Dataset,
    ablation: str,
    most: int = MAX_PHASES,
    splits: int = 20,
    draws: int = 200,
    seed: int = 0,
    ordered: bool = True,
) -> Phases:
    """The phases of a saved sweep.

    Args:
      sweep: as `ablation.ablation_sweep` makes it: at least 4 images and 2 timesteps; idle components are
        left out.
      most: largest number of phases, bounded by that of timesteps.
      splits: of the images into halves, whose scores are averaged.
      draws: of the bootstrap, each with a new split whose halves are resampled separately (no image is in
        both), and of the order of timesteps.
      ordered: whether the order of timesteps is tested (`p_order`, else NaN), a third of the time.
    Raises:
      ConfigError: too few images or timesteps, or no component that changed anything.
    """
    clean, loss = _active_losses(sweep, ablation)
    units, rng = stats.units_of(sweep), np.random.default_rng(seed)  # no person is in both halves
    _check_count(units.count, units.kind)

    def matrix(shares: np.ndarray) -> Matrix:
        return effect_matrix(clean, loss, units.weights(shares))

    fit, scored = (matrix(half) for half in _halves(rng, units.count, splits))
    steps, drift = held_out(fit, scored, most)
    score = steps.mean(axis=0)
    drawn = [matrix(_resampled(rng, half)) for half in _halves(rng, units.count, draws)]
    drawn_steps, drawn_drift = held_out(drawn[0], drawn[1], most)
    gain = _gain(drawn_steps)
    everything = standardized(effect_matrix(clean, loss, units.even()))
    k = int(score.argmax()) + 1
    return Phases(
        k=k,
        starts=tuple(int(start) for start in segment(everything, most)[1][k - 1][0]),
        t=sweep["t"].values,
        log_snr=sweep["log_snr"].values.astype(np.float64),
        score=score,
        drift=drift.mean(axis=0),
        share=np.bincount(gain.argmax(axis=1), minlength=len(score)) / draws,
        gain=gain,
        stepped=float((drawn_steps.max(axis=1) > drawn_drift.max(axis=1)).mean()),
        p_order=order_test(fit, scored, most, draws, seed) if ordered else np.full(len(score), np.nan),
        images=clean.shape[-1],
    )


def _active_losses(sweep: xr.Dataset, ablation: str) -> tuple[effects.CleanLossArray, effects.LossArray]:
    """Losses of the components whose ablation changed a prediction; ConfigError if there are none."""
    active = sweep["change"].sel(ablation=ablation).max(("t", "image")).values > ROUNDING
    if not active.any():
        raise ConfigError(
            f"ablation {ablation!r}: no component changed a prediction, so there are no phases to find"
        )
    return effects.losses(sweep.isel(component=np.flatnonzero(active)), ablation)


def order_test(
    fit: Matrix, scored: Matrix, most: int = MAX_PHASES, repeats: int = 200, seed: int = 0
) -> Float[np.ndarray, " k"]:
    """p of the gain of k phases over one against the same timesteps in random order, the same in both halves.

    p = (1 + orders that gain at least as much) / (1 + repeats); gains are averaged over the splits (draws).
    """
    rng = np.random.default_rng(seed)

    def gain(order):
        return _gain(held_out(fit[:, order], scored[:, order], most)[0]).mean(axis=0)

    observed = gain(np.arange(fit.shape[-2]))
    shuffled = np.stack([gain(rng.permutation(fit.shape[-2])) for _ in range(repeats)])
    p = (1 + (shuffled >= observed - 1e-12).sum(axis=0)) / (1 + repeats)
    return np.where(np.arange(len(p)) > 0, p, np.nan)


def _gain(score: Scores) -> Scores:
    return score - score[:, :1]


def _halves(rng: np.random.Generator, images: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of `count` random halves and of their complements, `(count, images)` each."""
    order = stats.random_orders(rng, images, count)
    first = (order < images // 2).astype(np.float64)
    return tuple(half / half.sum(axis=1, keepdims=True) for half in (first, 1 - first))


def _resampled(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """Each row's images drawn again with replacement."""
    counts = (weights > 0).sum(axis=1)
    return rng.multinomial(counts, weights) / counts[:, None]
