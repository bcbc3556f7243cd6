"""The error of reduced precision, measured by running a part of a sweep in float32 too.

Image, noise, timestep and replacements are the same in both, so the difference is only that of the matrix
products, and a few images suffice: the error hardly varies between images, while the effects do.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff.core import devices
from mechdiff.core.config import Precision
from mechdiff.core.types import Images
from mechdiff.stats import percent_increase
from mechdiff.storage import labelled
from mechdiff.sweeps.execution.passes import SweepLosses

IMAGES = 8  # run in full precision too, at each of
TIMESTEPS = 4  # evenly spread over those of the sweep; or as many windows of a sampling sweep
DRAWN = 4  # images of a sheet of samples that are drawn in full precision too

Losses = tuple[Float[np.ndarray, "components images"], Float[np.ndarray, " images"]]  # ablated, clean


class Subset(NamedTuple):
    """The part run in full precision: indices of timesteps among those of the sweep, and number of images."""

    t_indices: tuple[int, ...]
    images: int


def subset(timesteps: int, block: int) -> Subset:
    """The part of a sweep that is run in full precision too, by its timesteps and images per block."""
    indices = np.linspace(0, timesteps - 1, min(TIMESTEPS, timesteps)).round().astype(int)
    return Subset(tuple(dict.fromkeys(indices.tolist())), min(IMAGES, block))


def facts(setting: str, checked: Subset) -> dict:
    """Attributes of a result whose matrix products had the precision `setting`."""
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


def loss_error(
    path: Path, checked: Subset, exact: Sequence[SweepLosses], ablation: tuple[int, ...] = ()
) -> Float[np.ndarray, " components"]:
    """`largest_error` of a part of a store, whose `loss` ends in `component, t, image`.

    Args:
      exact: losses of that part in full precision, at each of its timesteps.
      ablation: index of the ablation in `loss`, if that has an axis of them.
    """
    first = slice(checked.images)
    swept = [
        labelled.region(
            path, {"loss": (*ablation, slice(None), t_index, first), "clean_loss": (t_index, first)}
        )
        for t_index in checked.t_indices
    ]
    return largest_error(
        [(read["loss"], read["clean_loss"]) for read in swept],
        [(losses.loss, losses.clean_loss) for losses in exact],
    )


def largest_distance_error(
    swept: Float[np.ndarray, "components windows samples"],
    exact: Float[np.ndarray, "components windows samples"],
) -> Float[np.ndarray, " components"]:
    """For each component the largest difference, over windows, of its mean distance between reduced and full
    precision, in units of pixels."""
    means = (np.asarray(distance, np.float64).mean(axis=-1) for distance in (swept, exact))
    return np.abs(next(means) - next(means)).max(axis=-1)


def error_of(swept: xr.Dataset) -> Float[np.ndarray, "ablation component"]:
    """Error of mean distances of a sampling sweep by its precision; 0 where that was full."""
    if "precision_error" not in swept:
        return np.zeros((swept.sizes["ablation"], swept.sizes["component"]))
    return swept["precision_error"].transpose("ablation", "component").values


def above_error(swept: xr.Dataset) -> Bool[np.ndarray, "ablation component window"]:
    """Which mean distances of a sampling sweep exceed the error of their precision; in full precision
    all."""
    means = swept["distance"].mean("sample").transpose("ablation", "component", "window").values
    error = error_of(swept)[..., None]
    return (means > error) | (error == 0)


def sampling_statement(swept: xr.Dataset) -> str | None:
    """One line on the numerical error of a sampling sweep, next to its sampling error; None in full
    precision."""
    if "precision_error" not in swept:
        return None
    scatter = swept["distance"].std("sample", ddof=1) / np.sqrt(swept.sizes["sample"])
    about = swept.attrs
    return (
        f"products in {about['precision']}: precision {float(swept['precision_error'].max()):.2g}, sampling "
        f"{float(scatter.median()):.2g} (the largest error of a component's mean distance, measured on "
        f"{about['precision_samples']} samples x {about['precision_windows']} windows drawn in "
        "float32 too; the median standard error)"
    )


def drawn(setting: Precision, draw: Callable[[int], Images], count: int) -> tuple[Images, float]:
    """Samples computed in a precision, and their distance from those of float32.

    Args:
      draw: count -> that many images, the first of any larger number.
    Returns:
      `draw(count)`, and the largest root mean square difference of an image's pixels over the first few,
      drawn in float32 too from the same noise; 0 if the precision has no effect here.
    """
    with devices.multiplying(setting):
        images = np.asarray(draw(count))
    if not devices.acts(setting):
        return images, 0.0
    few = min(DRAWN, count)
    with jax.default_matmul_precision("float32"):
        exact = np.asarray(draw(few))
    return images, float(np.sqrt(((images[:few] - exact) ** 2).mean(axis=(1, 2, 3))).max())
