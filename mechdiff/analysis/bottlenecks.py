"""Bottlenecks: components whose ablation raises the loss beyond a threshold, whatever replaces them.

A comparison with the average of its component type would pass in any network whose components are unequal. So
a bottleneck is chosen before it is tested: one half of the networks chooses the component of largest relative
loss increase, the other half tests it against a threshold that was stated beforehand; then the other way
round. Its relative loss increase is the smallest over all ablations that change it: mean ablation does not
change what depends on the timestep alone. Definitions are ours.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import stdtrit

from mechdiff.stats import resampled_variance
from mechdiff.stats.small_samples import over_seeds

THRESHOLD = 25.0  # pooled relative loss increase, %: the smallest that arXiv 2506.17237 reports


@dataclass(frozen=True)
class Bottleneck:
    """The component that each half of the networks chose, and its test on the other half.

    Attributes:
      chosen: index of the component chosen by the first half, by the second; -1 where a half is empty.
      estimate, interval: its relative loss increase (%) on the half that did not choose it; mean of both.
      p: larger of the two p against the threshold: both halves must exceed it. NaN: too few networks.
      p_none: largest p, over components, against the threshold from below: if small, none is a bottleneck.
      share: of networks in which the *other* half's choice exceeds the threshold.
    """

    chosen: tuple[int, int]
    estimate: float
    interval: tuple[float, float]
    p: float
    p_none: float
    share: float


def weakest(
    increase: Float[np.ndarray, "network ablation component draws"],
    changes: Bool[np.ndarray, "ablation component"],
) -> Float[np.ndarray, "network component draws"]:
    """Smallest relative loss increase over the ablations that change the component; -inf if none does.

    Args:
      increase: relative loss increase (%).
      changes: whether an ablation changes the component.
    """
    least = np.where(changes[None, :, :, None], increase, np.inf).min(axis=1)
    return np.where(np.isfinite(least), least, -np.inf)


def crossed(
    increase: Float[np.ndarray, "network component draws"],
    first: Bool[np.ndarray, " network"],
    images: float = 0,
) -> Bottleneck:
    """Chooses a component on one half of the networks and tests it on the other, both ways.

    Args:
      increase: of `weakest`: first on all images evenly weighted, then in resamples of them, if any.
      first: the half that each network belongs to.
      images: units that were resampled, as they count (`stats.Units.effective`).
    """
    kept = np.flatnonzero(np.isfinite(increase).all(axis=(0, 2)))  # that some ablation changes
    increase = increase[:, kept]
    halves = increase[first], increase[~first]
    if not all(len(half) for half in halves) or not len(kept):
        return Bottleneck((-1, -1), np.nan, (np.nan, np.nan), np.nan, np.nan, np.nan)
    chosen = [int(half[..., 0].mean(axis=0).argmax()) for half in halves]
    tested = [halves[1 - i][:, component] for i, component in enumerate(chosen)]
    answers = [_tested(values, images) for values in tested]
    estimates, _, p_values = zip(*answers, strict=True)
    p = max(p_values) if np.isfinite(p_values).all() else np.nan
    estimate = float(np.mean(estimates))
    half = _half_width(tested, images)
    none = [_tested(increase[:, i], images, above=False)[2] for i in range(len(kept))]
    above = np.concatenate([values[:, 0] > THRESHOLD for values in tested])
    return Bottleneck(
        chosen=(int(kept[chosen[0]]), int(kept[chosen[1]])),
        estimate=estimate,
        interval=(estimate - half, estimate + half),
        p=float(p),
        p_none=float(np.max(none)),
        share=float(above.mean()),
    )


def split(data: list[str], seeds: list[int]) -> Bool[np.ndarray, " network"]:
    """The first half of the networks: of each data set every other one, in the order of training seeds."""
    first = np.zeros(len(data), bool)
    for name in dict.fromkeys(data):
        networks = sorted((i for i, other in enumerate(data) if other == name), key=lambda i: seeds[i])
        first[networks[::2]] = True
    return first


def _half_width(tested: list[Float[np.ndarray, "network draws"]], images: float) -> float:
    """Half the width of the interval of the mean of both halves' estimates. Networks of either half are
    others, so that their errors are independent; images are the same, so that what these move, moves both
    (taken for independent until 2026-11-30: where images err as much as networks, .86 covered)."""
    of_networks = [np.subtract(*over_seeds(values[:, 0])[1][::-1]) / 4 for values in tested]
    of_images = 0.0
    if tested[0].shape[1] > 1:
        draws = np.mean([values[:, 1:].mean(axis=0) for values in tested], axis=0)
        variance, freedom = resampled_variance(draws, images)
        of_images = stdtrit(freedom, 0.975) * np.sqrt(variance)
    return float(np.sqrt(np.sum(np.square([*of_networks, of_images]))))


def _tested(
    values: Float[np.ndarray, "network draws"], images: float, above: bool = True
) -> tuple[float, tuple[float, float], float]:
    """Mean over networks, its interval, and p against `THRESHOLD`; the first column is the estimate."""
    draws = values[:, 1:] if values.shape[1] > 1 else None
    return over_seeds(values[:, 0], draws, images, above, THRESHOLD)
