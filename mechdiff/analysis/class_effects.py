"""Effects of components on the images of each class, from a saved sweep of a network with classes."""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.analysis import effects, precision
from mechdiff.core.errors import ConfigError

CLASS = "class_label"  # coordinate of a result: the class of each image; dims `image`, or `t, image`
# Images (or people, as they count) of a class at a timestep. Among 32 images, log-sd .5, BCa intervals
# cover .943 from 5 of a class, .953 from 8, but .881 from 4 and .755 from 3, instead of .95. Those here also
# reach as far as Student's.
MIN_IMAGES = 5


def class_effects(
    sweep: xr.Dataset,
    ablation: str,
    *,
    labels: Sequence[int] | None = None,
    repeats: int = 2000,
) -> xr.Dataset:
    """The pooled relative loss increase of every component over the images of each class.

    The estimand is that of `effects.Effects.pooled` with the mean over images taken within a class. Intervals
    are bootstrapped over images (or people) of all classes together, and widened for as many as the class has
    (`fewest_units`); by the error of reduced precision, over all classes, they are wider at both ends.

    Args:
      sweep: of `ablation.ablation_sweep`, with the coordinate `class_label`.
      labels: the classes that are measured; None: all classes with images.
      repeats: of the resampling.

    Returns:
      Dataset with `estimate`, `low`, `high` (%), dims `component, class_label`, and `images`, the number of
      images of each class, all timesteps together.

    Raises:
      ConfigError: no classes are known, or one has fewer than 5 images (or people) at some timestep.
    """
    if CLASS not in sweep.coords:
        raise ConfigError(
            f"this sweep has no coordinate {CLASS!r}: its network has no classes, or its images came without"
        )
    clean, loss = effects.losses(sweep, ablation)
    of_images = sweep[CLASS].transpose(..., "image").values
    classes = np.unique(of_images) if labels is None else np.asarray(labels)
    units = stats.units_of(sweep)
    columns = [
        stats.bootstrap_units(
            _increase_within(clean, loss, of_images == label),
            units,
            repeats=repeats,
            effective=_enough_units(units, of_images, label),
            student=True,
        )
        for label in classes
    ]
    error = precision.relative_error(sweep, ablation)
    columns = [precision.possible(interval, error) for interval in columns]
    axes = ("component", CLASS)
    values = {
        name: (axes, np.stack([getattr(interval, name) for interval in columns], 1), {"units": "%"})
        for name in ("estimate", "low", "high")
    }
    counts = [int((of_images == label).sum()) for label in classes]
    return xr.Dataset(
        values | {"images": (CLASS, counts)},
        coords={"component": sweep["component"], CLASS: classes},
        attrs={"ablation": ablation, "confidence": columns[0].confidence},
    )


def _increase_within(
    clean: np.ndarray, loss: np.ndarray, member: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Weights of images -> relative loss increases over those of them that are members of a class."""
    return lambda weights: effects.pooled_relative_increase(clean, loss, within(weights, member))


def _enough_units(units: stats.Units, of_images: np.ndarray, label: int | np.integer) -> float:
    """As `fewest_units`; ConfigError if they are too few for an interval."""
    fewest = fewest_units(units, of_images, label)
    if fewest < MIN_IMAGES:
        what = "people, as they count," if units.clustered else "images"
        raise ConfigError(
            f"class {label} has {fewest:.3g} {what} at some timestep; at least {MIN_IMAGES} are needed "
            "(sweep.images)"
        )
    return fewest


def fewest_units(
    units: stats.Units, of_images: Int[np.ndarray, "*timesteps image"], label: int | np.integer
) -> float:
    """Effective number (`stats.kish`) of images, or people, of a class at the timestep that has the fewest.

    Args:
      of_images: class of each image.
    """
    member, classes = (np.atleast_2d(rows) for rows in np.broadcast_arrays(units.member, of_images))
    at_timesteps = zip(member, classes, strict=True)
    return min(stats.kish(np.bincount(member[of_t == label])) for member, of_t in at_timesteps)


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
