"""Changes of effects from one denoiser to another, or over training: the data of their page, in one dataset.

All sweeps have the same images, timesteps and noise; differences are the last minus the first, paired image
by image (or person by person), in percentage points. See `paired` for the tests.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mechdiff import stats
from mechdiff.analysis import effects, paired, precision
from mechdiff.analysis.effects import EffectGrid, Effects
from mechdiff.analysis.saved_effects import ENDS, stacked
from mechdiff.stats import Interval


def changes(
    sweeps: Sequence[xr.Dataset], labels: Sequence[str], ablation: str, facts: dict[str, Any] | None = None
) -> xr.Dataset:
    """Effects of every component in each sweep, and how they differ between the first and the last.

    Args:
      sweeps: at least 2, in order, of equal timesteps over equal images and noise.
      labels: what each is called.
      ablation: that all swept.
      facts: JSON-ready, kept in the attributes.

    Returns:
      Dataset of dims `model, component, t, image`: `delta_loss` and `pooled_delta_loss` of each model (%),
      `difference` and `pooled_difference` from the first to the last (percentage points), all with `_low`,
      `_high` and `_p`; by model `change`, the largest mean squared change of a prediction, `contribution`,
      each image's share in the pooled effect (%; by `t` only where timesteps have different images), and
      `clean_loss`, the mean over images.

    Raises:
      ConfigError: fewer than 2 sweeps, sweeps that can't be paired, or no component in common.

    Example:
      >>> changes([before.dataset, after.dataset], ["before", "after"], "zero")  # doctest: +SKIP
    """
    between = paired.paired_difference(sweeps[0], sweeps[-1], ablation)
    names = [name for name in between.components if all(name in _names(sweep) for sweep in sweeps)]
    sides = [sweep.sel(component=names) for sweep in sweeps]
    measured = [effects.measure(side, ablation) for side in sides]
    kept = [between.components.index(name) for name in names]
    cells, p = cell_differences(sides[0], sides[-1], ablation)
    contributions = np.stack([_contributions(side, ablation) for side in sides])
    by_cell, by_component = ("model", "component", "t"), ("model", "component")
    of_images = by_cell if contributions.ndim == len(by_cell) + 1 else by_component
    variables = {
        **stacked("delta_loss", by_cell, [side.cells for side in measured]),
        "delta_loss_p": (by_cell, np.stack([side.p for side in measured])),
        **stacked("pooled_delta_loss", by_component, [side.pooled for side in measured]),
        "change": (by_component, np.stack([side.change for side in measured])),
        "contribution": ((*of_images, "image"), contributions),
        **_variables("difference", ("component", "t"), cells, p),
        **_variables("pooled_difference", ("component",), _rows(between.difference, kept), between.p[kept]),
        "clean_loss": (("model", "t"), np.stack([_clean_loss(side, ablation) for side in sides])),
        "delta_loss_n": ((), between.n),
    }
    coords = {"model": list(labels), "component": names, **_labels(sides[0], measured[0])}
    people = {"people": measured[0].people} if measured[0].people else {}
    about = {
        "ablation": ablation,
        **people,
        "least_p": between.least_p,
        "effective": between.effective,
        **(facts or {}),
    }
    return xr.Dataset(variables, coords=coords, attrs=about)


def cell_differences(before: xr.Dataset, after: xr.Dataset, ablation: str) -> tuple[Interval, np.ndarray]:
    """Change of the relative loss increase at every timestep, after - before, in percentage points.

    Args:
      before, after: sweeps of the same components, timesteps, images and noise.

    Returns:
      the interval and sign-flip p values, max-T over components and timesteps; both `[component, t]`.
    """
    losses = [effects.losses(side, ablation) for side in (before, after)]
    units = stats.units_of(before)

    def difference(weights: np.ndarray) -> np.ndarray:
        first, last = (effects.relative_loss_increase(*side, weights) for side in losses)
        return last - first

    interval = stats.bootstrap_units(difference, units, student=True)
    p = stats.max_t(units.sums(paired.contributions_to_change(*losses, pooled=False)))
    error = paired.errors(before, after, ablation)[:, None]
    return precision.widened(interval, error), np.where(precision.lost(interval, error), 1.0, p)


def grid_of(changed: xr.Dataset, index: int) -> EffectGrid:
    """The effects of one model of `changes`, by its index."""
    side = changed.isel(model=index)
    return _grid(changed, "delta_loss", side, side["change"].values)


def grid_of_difference(changed: xr.Dataset) -> EffectGrid:
    """The difference of `changes`; idle are components whose ablation changed no prediction of any model."""
    return _grid(changed, "difference", changed, changed["change"].max("model").values)


def _grid(changed: xr.Dataset, name: str, source: xr.Dataset, change: np.ndarray) -> EffectGrid:
    n = int(changed["delta_loss_n"])

    def interval(variable: str) -> Interval:
        ends = {end: source[f"{variable}{suffix}"].values for end, suffix in ENDS.items()}
        return Interval(**ends, confidence=0.95, n=n)

    return EffectGrid(
        ablation=str(changed.attrs["ablation"]),
        components=tuple(changed["component"].values.astype(str).tolist()),
        component_type=tuple(changed["component_type"].values.astype(str).tolist()),
        resolution=changed["resolution"].values,
        depth=changed["depth"].values,
        t=changed["t"].values,
        log_snr=changed["log_snr"].values,
        cells=interval(name),
        p=source[f"{name}_p"].values,
        pooled=interval(f"pooled_{name}"),
        change=change,
        images=changed.sizes["image"],
        people=int(changed.attrs.get("people", 0)),
    )


def _labels(sweep: xr.Dataset, measured: Effects) -> dict[str, Any]:
    return {
        "t": measured.t,
        "image": sweep["image"].values,
        "log_snr": ("t", measured.log_snr),
        "component_type": ("component", list(measured.component_type)),
        "resolution": ("component", measured.resolution),
        "depth": ("component", measured.depth),
    }


def _names(sweep: xr.Dataset) -> list[str]:
    return sweep["component"].values.astype(str).tolist()


def _contributions(sweep: xr.Dataset, ablation: str) -> np.ndarray:
    """Contribution of each image to the pooled effect, in %, `[component, image]`, or `[component, t, image]`
    where timesteps have different images; see `effects.increase_by_image`."""
    nested = effects.nested(sweep)
    by_image = effects.increase_by_image(*effects.losses(sweep, ablation), nested)
    return by_image if nested else by_image[:, 0]


def _clean_loss(sweep: xr.Dataset, ablation: str) -> np.ndarray:
    """Mean over images without intervention, `[t]`."""
    clean, _ = effects.losses(sweep, ablation)
    return clean.mean(axis=-1)


def _variables(name: str, dims: tuple[str, ...], interval: Interval, p: np.ndarray) -> dict[str, Any]:
    ends = {f"{name}{suffix}": (dims, getattr(interval, end)) for end, suffix in ENDS.items()}
    return {**ends, f"{name}_p": (dims, p)}


def _rows(interval: Interval, rows: list[int]) -> Interval:
    ends = {end: getattr(interval, end)[rows] for end in ENDS}
    return Interval(**ends, confidence=interval.confidence, n=interval.n)
