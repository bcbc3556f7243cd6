"""Weights of units: even ones, resamples, and random orders."""

import numpy as np
from jaxtyping import Float, Int

from mechdiff.core.errors import ConfigError

MIN_RELIABLE = 8  # images or people, below which intervals may be too narrow, which is said


def check_units(n: int) -> int:
    """`n`; ConfigError if it is below 2, too few units to show their spread."""
    if n < 2:
        raise ConfigError(f"{n} unit(s): at least 2 images or seeds are needed to tell how sure an effect is")
    return n


def few_images(n: int, effective: float | None = None) -> str:
    """A note that intervals over `n` images or people may be too narrow, if they may; else nothing. Few
    numbers seldom show how far a skewed rest would reach, see `intervals.bootstrap`.

    Args:
      effective: what they count as, see `Units.effective`; None: as `n`.

    Example:
      >>> few_images(4), few_images(16)
      ('; n = 4 is few, intervals may be too narrow', '')
      >>> few_images(16, 2.2)
      '; n = 16 people count as 2.2, as few have most of the images: intervals may be too narrow'
    """
    if n < MIN_RELIABLE:
        return f"; n = {n} is few, intervals may be too narrow"
    if effective is not None and effective < MIN_RELIABLE:
        count = f"n = {n} people count as {effective:.1f}, as few have most of the images"
        return f"; {count}: intervals may be too narrow"
    return ""


def bootstrap_weights(n: int, repeats: int = 2000, seed: int = 0) -> Float[np.ndarray, "repeats n"]:
    """Shares of `n` units in `repeats` resamples with replacement: multinomial counts / n (Efron 1979)."""
    check_units(n)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=repeats) / n


def equal_weights(n: int) -> Float[np.ndarray, "1 n"]:
    """The weighting in which all units count alike.

    Example:
      >>> equal_weights(4)
      array([[0.25, 0.25, 0.25, 0.25]])
    """
    return np.full((1, n), 1 / n)


def hierarchical_weights(
    seeds: int, images: int, repeats: int = 2000, seed: int = 0, crossed: bool = False
) -> Float[np.ndarray, "repeats seeds images"]:
    """Shares of every (training seed, image) when seeds are resampled, and images within them.

    Nested (Davison & Hinkley 1997, section 3.8): a seed drawn c times gives c independent resamples of its
    images. Crossed (Owen 2007): the seeds were scored on the *same* images; one resample of images serves all
    seeds, and shares are products. `seed` is that of the resampling.
    """
    seed_rng, image_rng = np.random.default_rng(seed).spawn(2)
    counts = seed_rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=repeats)
    even = np.full(images, 1 / images)
    if crossed:
        image_counts = image_rng.multinomial(images, even, size=repeats)
        return counts[:, :, None] * image_counts[:, None, :] / (seeds * images)
    return image_rng.multinomial(counts * images, even) / (seeds * images)


def random_orders(rng: np.random.Generator, n: int, draws: int) -> Int[np.ndarray, "draws n"]:
    """The ranks of `n` units in random orders: those below n / 2 are a random half."""
    return rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
