"""Simulated networks of studies, for the calibration of rules: heads in any order, curves over timesteps."""

import numpy as np
from jaxtyping import Float

from mechdiff.analysis import segmentation

IMAGE_HALVES = 6  # splits of the images into halves, in the checks of phases


def in_any_order(rng: np.random.Generator, heads: Float[np.ndarray, "network 28 t"]) -> None:
    """Permutes the heads of each network within its seven layers of four, in place."""
    for network in heads:
        order = np.concatenate([4 * i + rng.permutation(4) for i in range(7)])
        network[:] = network[order]


def held_out_scores(
    rng: np.random.Generator,
    networks: Float[np.ndarray, "6 t component"],
    noise: float | np.ndarray,
    halves: int = IMAGE_HALVES,
) -> tuple[Float[np.ndarray, "6 k"], Float[np.ndarray, "6 k"]]:
    """Scores of piecewise-constant models and of polynomials on held-out images, mean over splits
    of the images.

    Args:
      networks: true curves; either half of the images has independent noise around them.
      noise: standard deviation of that noise, broadcastable to a curve.
      halves: splits of the images into halves.
    """
    size = (6, halves, *networks.shape[1:])
    fit, scored = (
        (networks[:, None] + noise * rng.normal(size=size)).reshape(-1, *size[2:]) for _ in range(2)
    )
    steps, drift = segmentation.held_out(fit, scored)
    return steps.reshape(6, halves, -1).mean(1), drift.reshape(6, halves, -1).mean(1)


def four_phases_margin(
    steps: Float[np.ndarray, "network k"], drift: Float[np.ndarray, "network k"]
) -> Float[np.ndarray, " network"]:
    """Score of four phases above the best of other numbers of phases and of polynomials."""
    return steps[:, 3] - np.maximum(np.delete(steps, 3, axis=1).max(axis=1), drift.max(axis=1))
