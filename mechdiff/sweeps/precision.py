"""What reduced precision costs: a part of a sweep run in float32 too, under the same random numbers.

Image, noise, timestep and replacements are the same in both, so that the difference is that of the products
alone, and a few images suffice: it hardly varies between them, while the effects themselves do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mechdiff.stats import percent_increase

IMAGES = 8  # run in full too, at each of
TIMESTEPS = 4  # evenly spread over those of the sweep

Losses = tuple[Float[np.ndarray, "components images"], Float[np.ndarray, " images"]]  # ablated, clean


class Subset(NamedTuple):
    """What is run in full: places of timesteps among those of the sweep, and how many of the first images."""

    t_indices: tuple[int, ...]
    images: int


def subset(timesteps: int, block: int) -> Subset:
    """Of a sweep with so many timesteps, whose blocks hold so many images."""
    places = np.linspace(0, timesteps - 1, min(TIMESTEPS, timesteps)).round().astype(int)
    return Subset(tuple(dict.fromkeys(places.tolist())), min(IMAGES, block))


def facts(setting: str, checked: Subset) -> dict:
    """Attributes of a result whose products were of precision `setting`."""
    return {
        "precision": setting,
        "precision_images": checked.images,
        "precision_timesteps": len(checked.t_indices),
    }


def largest_error(swept: Sequence[Losses], exact: Sequence[Losses]) -> Float[np.ndarray, " components"]:
    """For each component the largest difference, over timesteps, of its relative loss increase between
    reduced and full precision, in points of per cent.

    Args:
      swept, exact: losses of the same images at each timestep, with and without the ablation.
    """

    def increase(losses: Losses) -> Float[np.ndarray, " components"]:
        ablated, clean = (np.asarray(values, np.float64).mean(axis=-1) for values in losses)
        return percent_increase(ablated, clean)

    differences = [increase(reduced) - increase(full) for reduced, full in zip(swept, exact, strict=True)]
    return np.abs(differences).max(axis=0)
