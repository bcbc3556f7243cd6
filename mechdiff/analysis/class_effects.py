"""Effects of components on the images of each class, from a saved sweep of a network with classes."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.core.errors import ConfigError

CLASS = "class_label"  # coordinate of a result: the class of each image; dims `image`, or `t, image`
FEWEST = 3  # images of a class at a timestep


def class_effects(
    sweep: xr.Dataset,
    ablation: str,
    *,
    labels: Sequence[int] | None = None,
    repeats: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """The pooled relative loss increase of every component over the images of each class.

    The estimand is that of `effects.Effects.pooled` with the mean over images taken within a class. Intervals
    are bootstrapped over images (or people) of all classes together, so that those of two classes may be
    compared draw by draw.

    Args:
      sweep: of `sweeps.ablation_sweep`, with the coordinate `class_label`.
      labels: the classes that are measured; None: all classes with images.
      repeats, seed: of the resampling.

    Returns:
      Dataset with `estimate`, `low`, `high` (%), dims `component, class_label`, and `images`, the number of
      images of each class, all timesteps together.

    Raises:
      ConfigError: no classes are known, or one has fewer than 3 images at some timestep.
    """
    if CLASS not in sweep.coords:
        raise ConfigError(
            f"this sweep has no coordinate {CLASS!r}: its network has no classes, or its images came without"
        )
    clean, loss = effects.losses(sweep, ablation)
    of_images = sweep[CLASS].transpose(..., "image").values
    classes = np.unique(of_images) if labels is None else np.asarray(labels)
    units, columns = stats.units_of(sweep), []
    for label in classes:
        member = _members(of_images, label)

        def statistic(weights, member=member):
            return effects.pooled_relative_increase(clean, loss, within(weights, member))

        columns.append(
            stats.bootstrap_units(statistic, units, repeats=repeats, seed=seed, confidence=confidence)
        )
    axes = ("component", CLASS)
    values = {
        name: (axes, np.stack([getattr(interval, name) for interval in columns], 1), {"units": "%"})
        for name in ("estimate", "low", "high")
    }
    counts = [int((of_images == label).sum()) for label in classes]
    return xr.Dataset(
        values | {"images": (CLASS, counts)},
        coords={"component": sweep["component"], CLASS: classes},
        attrs={"ablation": ablation, "confidence": confidence},
    )


def _members(
    of_images: Int[np.ndarray, "*timesteps image"], label: int | np.integer
) -> Bool[np.ndarray, "..."]:
    """Which images are of a class; ConfigError if too few are at some timestep."""
    member = of_images == label
    if member.sum(-1).min() < FEWEST:
        raise ConfigError(
            f"class {label} has {member.sum(-1).min()} images at some timestep; at least {FEWEST} are "
            "needed (sweep.images)"
        )
    return member


def within(
    weights: Float[np.ndarray, "m *timesteps image"], member: Int[np.ndarray, "*cells image"] | np.ndarray
) -> Float[np.ndarray, "m *cells image"]:
    """Weights of images within a class, of sum 1 at every timestep. Where a resample drew none of the class,
    its images weigh the same."""
    weights = weights if weights.ndim > member.ndim else weights[:, None]
    chosen = weights * member
    total = chosen.sum(-1, keepdims=True)
    even = member / member.sum(-1, keepdims=True)
    return np.where(total > 0, chosen / np.where(total > 0, total, 1), even)
