"""Linear probes of the factors of synthetic faces: ridge regression on pixels.

A probe is fitted on reference images, in the dual form, as there are fewer images than pixels. Its penalty is
that of least leave-one-out error (Hoerl & Kennard 1970; closed form of left-out residuals: Allen 1974). R2 is
that of left-out images; `fit_all` keeps the probes whose R2 is high enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images
from mechdiff.data.factors import SPECS

PENALTIES = np.logspace(-4, 2, 13)  # times the mean eigenvalue of the Gram matrix
CYCLIC = ("background_hue", "clothes_hue")  # ends of whose range meet


@dataclass(frozen=True)
class Probe:
    """A linear probe of one factor.

    Attributes:
      weights, offset: reading = pixels @ weights + offset, `(pixels, numbers)` and `(numbers,)`.
      r2: of left-out images, all numbers together.
    """

    weights: Float[np.ndarray, "pixels numbers"]
    offset: Float[np.ndarray, " numbers"]
    r2: float


def columns(
    factors: Mapping[str, Float[np.ndarray, " image"]],
) -> dict[str, Float[np.ndarray, "image numbers"]]:
    """Factors as columns of variance 1: hues as points of a circle, choices as indicators; no constants."""
    standardized = {}
    for name, value in factors.items():
        value, spec = np.asarray(value, np.float64), SPECS[name]
        if np.ptp(value) == 0:
            continue
        if name in CYCLIC:
            angle = 2 * np.pi * (value - spec.low) / (spec.high - spec.low)
            column = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        elif spec.choices > 2:
            column = (value[:, None] == np.unique(value)).astype(np.float64)
        else:
            column = value[:, None]
        standardized[name] = (column - column.mean(axis=0)) / column.std(axis=0)
    return standardized


def fit(images: Images, target: Float[np.ndarray, "image numbers"]) -> Probe:
    """Ridge regression of `target` on the pixels.

    Raises:
      ConfigError: fewer than 8 images.
    """
    return _fitted(_decomposed(images), target)


def fit_all(
    images: Images, factors: Mapping[str, Float[np.ndarray, " image"]], least: float = 0.3
) -> dict[str, Probe]:
    """A probe of every factor whose R2 on left-out images is at least `least`."""
    decomposition = _decomposed(images)
    probes = {name: _fitted(decomposition, column) for name, column in columns(factors).items()}
    return {name: probe for name, probe in probes.items() if probe.r2 >= least}


def as_arrays(probes: Mapping[str, Probe]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weights and offsets in float32, as `image_features.features` takes them."""
    return {name: (np.float32(probe.weights), np.float32(probe.offset)) for name, probe in probes.items()}


class _Decomposed(NamedTuple):
    """Centered pixels, their mean, and the eigenvalues and eigenvectors of their Gram matrix."""

    pixels: Float[np.ndarray, "image pixel"]
    mean: Float[np.ndarray, " pixel"]
    values: Float[np.ndarray, " image"]
    vectors: Float[np.ndarray, "image image"]


def _decomposed(images: Images) -> _Decomposed:
    if len(images) < 8:
        raise ConfigError(f"{len(images)} reference images: a probe needs at least 8, better hundreds")
    pixels = np.asarray(images, np.float64).reshape(len(images), -1)
    mean = pixels.mean(axis=0)
    pixels = pixels - mean
    values, vectors = np.linalg.eigh(pixels @ pixels.T)
    return _Decomposed(pixels, mean, np.maximum(values, 0), vectors)


def _fitted(images: _Decomposed, target: np.ndarray) -> Probe:
    pixels, mean, values, vectors = images
    center = target.mean(axis=0)
    rotated = vectors.T @ (target - center)
    total = ((target - center) ** 2).sum()
    least, best = np.inf, np.zeros_like(target)
    for penalty in PENALTIES * max(values.mean(), 1e-12):
        shrunk = 1 / (values + penalty)
        dual = vectors @ (shrunk[:, None] * rotated)
        # Residual of each image under the fit without it; 1 / n is the share of the mean in it.
        left_out = dual / (vectors**2 @ shrunk - 1 / (len(target) * penalty))[:, None]
        error = (left_out**2).sum()
        if error < least:
            least, best = error, dual
    weights = pixels.T @ best
    return Probe(weights, center - mean @ weights, float(1 - least / total))
