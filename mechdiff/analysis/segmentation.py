"""Piecewise-constant models of effects over timesteps, and polynomials to compare them with, fitted exactly.

Least squares over all boundaries by dynamic programming (Bellman 1961; Auger & Lawrence 1989); `phases` says
what is tested with them.
"""

import numpy as np
from jaxtyping import Float, Int

from mechdiff.core.errors import ConfigError

Matrix = Float[np.ndarray, "draws t component"]
Scores = Float[np.ndarray, "draws k"]  # k = 1, 2, ...
MAX_PHASES = 8  # tried
MIN_MEAN_SQUARE = 1e-12  # below which a fit counts as perfect, in variances of a component


def standardized(matrix: Matrix, by: Matrix | None = None) -> Matrix:
    """Each component standardized over timesteps by mean and deviation of `by`; constant ones are 0."""
    by = matrix if by is None else by
    spread = by.std(axis=-2, keepdims=True)
    moved = matrix - by.mean(axis=-2, keepdims=True)
    return np.where(spread > np.sqrt(MIN_MEAN_SQUARE), moved / np.where(spread > 0, spread, 1), 0.0)


def segment(
    matrix: Matrix, most: int = MAX_PHASES
) -> tuple[Float[np.ndarray, "draws k"], list[Int[np.ndarray, "draws phases"]]]:
    """Best segmentations of the timesteps into 1 .. `most` contiguous phases, exactly, for every draw.

    Returns:
      least sums of squares `[draw, k]`, and for each k the first timestep of each phase `[draw, k]`.
    Raises:
      ConfigError: fewer than 2 timesteps, or `most` below 1.
    """
    most = bounded(matrix.shape[-2], most)
    cost = _costs(matrix)
    draws, ends = cost.shape[0], cost.shape[1]
    best, back = cost[:, 0, :], []  # best[:, j]: timesteps 0 .. j - 1 in the phases so far
    sums, starts = [best[:, -1]], [np.zeros((draws, 1), int)]
    for _ in range(2, most + 1):
        options = best[:, :, None] + cost  # the last phase begins at the first of the two axes
        back.append(options.argmin(axis=1))
        best = options.min(axis=1)
        sums.append(best[:, -1])
        end, later = np.full(draws, ends - 1), []
        for choice in reversed(back):
            end = choice[np.arange(draws), end]
            later.append(end)
        starts.append(np.stack([np.zeros(draws, int), *later[::-1]], axis=1))
    return np.maximum(np.stack(sums, axis=1), 0), starts


def step_means(matrix: Matrix, starts: Int[np.ndarray, "draws phases"]) -> Matrix:
    """The piecewise constant fit: each component's mean over the timesteps of its phase."""
    timesteps = matrix.shape[-2]
    phase = (np.arange(timesteps)[None, :, None] >= starts[:, None, :]).sum(-1) - 1
    member = (phase[:, :, None] == np.arange(starts.shape[1])).astype(np.float64)
    means = member.swapaxes(1, 2) @ matrix / member.sum(axis=1)[..., None]
    return member @ means


def held_out(fit: Matrix, scored: Matrix, most: int = MAX_PHASES) -> tuple[Scores, Scores]:
    """Log-likelihood per cell of `scored` under piecewise-constant models and polynomials fitted to `fit`.

    Both halves are standardized by the mean and deviation of `fit`.

    Args:
      fit, scored: effects on disjoint images; as many draws.
    Returns:
      `[draw, k]` each, k = 1 .. the smaller of `most` and the number of timesteps.
    """
    fit, scored = standardized(fit), standardized(scored, by=fit)
    starts = segment(fit, most)[1]
    steps = [_score(scored - step_means(fit, first)) for first in starts]
    # Orthonormal polynomials of the timestep's index: timesteps are even in log-SNR.
    x = np.linspace(-1, 1, fit.shape[-2])
    basis = np.linalg.qr(np.polynomial.legendre.legvander(x, len(starts) - 1))[0]
    drift = [_score(scored - basis[:, :k] @ (basis[:, :k].T @ fit)) for k in range(1, len(starts) + 1)]
    return np.stack(steps, axis=1), np.stack(drift, axis=1)


def _cumulative(a: np.ndarray) -> np.ndarray:
    """Sums over the first 0, 1, 2, ... entries of axis 1."""
    return np.concatenate([np.zeros_like(a[:, :1]), a.cumsum(axis=1)], axis=1)


def _costs(matrix: Matrix) -> Float[np.ndarray, "draws start stop"]:
    """Squares about the mean of timesteps `start` to `stop - 1`, summed over components; inf where none."""
    timesteps = matrix.shape[-2]
    centered = matrix - matrix.mean(axis=-2, keepdims=True)
    sums, squares = _cumulative(centered), _cumulative((centered**2).sum(-1))
    gram = sums @ sums.swapaxes(1, 2)
    norms = np.einsum("mii->mi", gram)
    between = norms[:, None, :] + norms[:, :, None] - 2 * gram  # |sum over the timesteps|^2
    count = np.arange(timesteps + 1)[None, :] - np.arange(timesteps + 1)[:, None]
    cost = squares[:, None, :] - squares[:, :, None] - between / np.maximum(count, 1)
    return np.where(count > 0, np.maximum(cost, 0), np.inf)


def _score(error: Matrix) -> Float[np.ndarray, " draws"]:
    mean_square = np.maximum((error**2).mean(axis=(1, 2)), MIN_MEAN_SQUARE)
    return -(1 + np.log(2 * np.pi * mean_square)) / 2


def bounded(timesteps: int, most: int) -> int:
    """The largest number of phases of so many timesteps, at most `most`; ConfigError if there are too few."""
    if timesteps < 2 or most < 1:
        raise ConfigError(f"{timesteps} timesteps, most={most}: phases need at least 2 timesteps and 1 phase")
    return min(timesteps, most)
