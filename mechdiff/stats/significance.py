"""Tests of differences between two arms measured on the same units, and corrections for many of them.

Sign flips test that differences scatter symmetrically about zero. Where only their mean is zero and they are
skewed, p is too small: of 16 units, lognormal less their mean, one test at .05 errs .07 (log-sd .5) to .16
(1.2), and max-T over 28 means of four timesteps .37 (1). Of real effects of three shipped networks, centred,
max-T over pooled ones erred .03 to .07 (150 subsamples of 8, 16 and 32 images each).

Families are whole arrays: every entry counts, whatever its axes.
"""

import math
from typing import Literal

import numpy as np
import scipy
from jaxtyping import Float
from scipy import special

from mechdiff.core.errors import ConfigError
from mechdiff.stats.intervals import Cells
from mechdiff.stats.weights import check_units

BLOCK = 1000  # sign flips held at once
ALPHA = 0.05  # usual level of a test, or of a family of tests
FLIPS = 9999  # random sign flips where not all of them are taken


def permutation_test(
    differences: Cells,
    repeats: int = FLIPS,
    seed: int = 0,
    alternative: Literal["two-sided", "greater"] = "two-sided",
) -> Float[np.ndarray, "*cells"]:
    """p values of paired sign-flip tests: under the null, differences are symmetric about zero (of skewed
    ones see the module).

    p = share of flips, the observed one among them, whose mean is at least as extreme (Phipson & Smyth 2010).
    Exact, over all 2^n flips, where there are at most `repeats + 1` of them.
    """
    differences = np.asarray(differences, np.float64)
    sided = np.abs if alternative == "two-sided" else np.asarray
    signs = _signs(differences.shape[-1], repeats, seed)
    observed = sided(_flipped(differences, np.ones_like(signs[:1])))
    count = sum(
        (sided(_flipped(differences, block)) >= observed - 1e-9).sum(axis=-1) for block in _blocks(signs)
    )
    return np.where(np.isnan(observed[..., 0]), np.nan, count / len(signs))


def max_t(
    differences: Cells,
    repeats: int = FLIPS,
    seed: int = 0,
    alternative: Literal["two-sided", "greater"] = "two-sided",
) -> Float[np.ndarray, "*cells"]:
    """Sign-flip p values adjusted for all cells by step-down max-T.

    Westfall & Young 1993, algorithm 4.1. Controls the chance of any false rejection in the grid, and uses the
    dependence between cells, as a flip of a unit flips it in every cell; under the null of symmetry, see the
    module. Cells without any difference get
    p = 1; those with NaN are left out.
    """
    differences = np.asarray(differences, np.float64)
    flat = differences.reshape(-1, differences.shape[-1])
    sided = np.abs if alternative == "two-sided" else np.asarray
    signs = _signs(flat.shape[-1], repeats, seed)
    observed = sided(_flipped(flat, np.ones_like(signs[:1])))
    order = np.argsort(observed[:, 0])
    order = order[~np.isnan(observed[order, 0])]
    count = np.zeros(len(order))
    for block in _blocks(signs):
        # At each rank: the largest statistic among cells that are no more significant.
        largest = np.maximum.accumulate(sided(_flipped(flat[order], block)), axis=0)
        count += (largest >= observed[order] - 1e-9).sum(axis=-1)
    adjusted = np.full(len(flat), np.nan)
    adjusted[order[::-1]] = np.maximum.accumulate(count[::-1] / len(signs))
    return adjusted.reshape(differences.shape[:-1])


def holm(p: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """Holm's (1979) adjusted p values, all entries one family: max_{j <= i} min(1, (m - j + 1) p_(j))."""
    flat = _check_p(p)
    order = np.argsort(flat)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(flat.size, 0, -1) * flat[order]))
    return adjusted.reshape(np.shape(p))


def benjamini_hochberg(p: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """Benjamini & Hochberg's (1995) adjusted p values, all entries one family: min_{j >= i} m p_(j) / j."""
    return scipy.stats.false_discovery_control(_check_p(p)).reshape(np.shape(p))


def equivalence_test(differences: Cells, margin: float) -> Float[np.ndarray, "*cells"]:
    """p values of two one-sided t tests (TOST, Schuirmann 1987) against the null |mean difference| >= margin.

    The larger of the two belongs to the nearer margin: P(t_{n-1} <= (|mean| - margin) / (sd / sqrt(n))).

    Raises:
      ConfigError: a margin that is not positive.
    """
    if not margin > 0:
        raise ConfigError(f"margin={margin} must be positive: the largest difference that does not matter")
    differences = np.asarray(differences, np.float64)
    n = check_units(differences.shape[-1])
    excess = np.abs(differences.mean(axis=-1)) - margin
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread: decided by the sign of the excess alone
        statistic = excess / (differences.std(axis=-1, ddof=1) / np.sqrt(n))
    return np.asarray(special.stdtr(n - 1, np.where(excess == 0, 0.0, statistic)))


def _signs(n: int, repeats: int, seed: int) -> np.ndarray:
    """Sign flips [m, n], the identity among them: all 2^n, or the identity and `repeats` random ones."""
    check_units(n)
    if 2**n <= repeats + 1:
        return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    flips = np.random.default_rng(seed).integers(0, 2, (repeats, n))
    return np.concatenate([np.ones((1, n)), 1.0 - 2.0 * flips])


def _blocks(signs: np.ndarray) -> list[np.ndarray]:
    return np.array_split(signs, math.ceil(len(signs) / BLOCK))


def _flipped(differences: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Mean under each flip over root mean square / sqrt(n), in [-1, 1]: [*cells, m].

    Monotone in Student's t, r = t / sqrt(n - 1 + t^2), as flips leave the mean square alone; finite without
    spread.
    """
    norm = np.linalg.norm(differences, axis=-1, keepdims=True)
    return differences @ signs.T / (np.sqrt(signs.shape[-1]) * np.where(norm == 0, 1.0, norm))


def _check_p(p: np.ndarray) -> np.ndarray:
    flat = np.asarray(p, np.float64).ravel()
    if not np.all((flat >= 0) & (flat <= 1)):
        raise ConfigError("p values must lie in [0, 1]; leave out cells that were not measured (NaN)")
    return flat
