"""The page "what changed": two models, or one over its training, from what `analysis.changes` gave."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechdiff.analysis import changes
from mechdiff.analysis.effects import EffectGrid
from mechdiff.core.config import UNetConfig, from_dict
from mechdiff.report import inline, maps, numbers, over_training, page_data, pages, paint, schematic, style
from mechdiff.report.findings import between, precise
from mechdiff.report.over_training import Training
from mechdiff.report.style import PageFigure, Theme
from mechdiff.stats import ALPHA, few_images
from mechdiff.storage import files, labelled

SHOWN = 18  # components in the figure of the largest changes
NAME = "compare"  # of the files
POINTS = "percentage points"


@dataclass(frozen=True)
class Changed:
    """What the page shows.

    Attributes:
      labels: what the models are called, in order.
      sides: their effects.
      difference: from the first to the last, in percentage points; `p` of its cells is max-T.
      p: of the pooled differences, Holm over components, `[component]`.
      least_p: that the number of images allows.
      steps: of training, one per model; empty where they are different models.
      unet: that all have; None: not known, or not of ours.
      clean: mean loss without intervention over timesteps, one per model.
      dataset: all of it, as it was saved.
    """

    labels: tuple[str, ...]
    sides: tuple[EffectGrid, ...]
    difference: EffectGrid
    p: np.ndarray
    least_p: float
    steps: tuple[int, ...]
    unet: UNetConfig | None
    clean: tuple[float, ...]
    dataset: xr.Dataset

    @property
    def order(self) -> np.ndarray:
        """Components by the size of their change, the largest first."""
        return np.argsort(-np.abs(self.difference.pooled.estimate), kind="stable")


def build(folder: Path | str) -> Path:
    """Writes `folder/compare.html`, and its figures into `folder/figures`, from `folder/compare.zarr`.

    Raises:
      MechdiffError: that result is absent or damaged, or the folder can't be written to.
    """
    folder = Path(folder)
    changed = read(labelled.read(folder / f"{NAME}.zarr"))
    page = render(changed, files.ensure_writable(folder / "figures"))
    files.write_atomic(folder / f"{NAME}.html", page)
    return folder / f"{NAME}.html"


def read(dataset: xr.Dataset) -> Changed:
    """The record of a saved dataset."""
    unet = dataset.attrs.get("unet")
    return Changed(
        labels=tuple(dataset["model"].values.astype(str).tolist()),
        sides=tuple(changes.grid_of(dataset, side) for side in range(dataset.sizes["model"])),
        difference=changes.grid_of_difference(dataset),
        p=dataset["pooled_difference_p"].values,
        least_p=float(dataset.attrs["least_p"]),
        steps=tuple(dataset.attrs.get("steps", ())),
        unet=from_dict(unet, UNetConfig) if unet else None,
        clean=tuple(dataset["clean_loss"].mean("t").values.tolist()),
        dataset=dataset,
    )


def render(changed: Changed, figures: Path) -> str:
    """The page; its figures are also written into `figures`."""
    difference = changed.difference
    rows = [
        {
            "name": difference.components[i],
            "type": style.TYPES.get(difference.component_type[i], difference.component_type[i]),
            "idle": bool(difference.idle[i]),
            "sides": [numbers.value(side.pooled, i) for side in changed.sides],
            "change": numbers.value(difference.pooled, i),
            "p": float(changed.p[i]),
            "cells": [numbers.value(difference.cells, i, j) for j in range(len(difference.t))],
            "cell_p": difference.p[i].tolist(),
        }
        for i in changed.order.tolist()
    ]
    facts = {name: value for name, value in changed.dataset.attrs.items() if name != "unet"}
    return pages.render(
        "changes.html.j2",
        changed=changed,
        rows=rows,
        figures=_figures(changed, figures),
        findings=findings(changed),
        few=few_images(difference.pooled.n, changed.dataset.attrs.get("effective")),
        facts=facts,
        alpha=ALPHA,
        data=page_data.as_json(data_of(changed)),
    )


def findings(changed: Changed) -> list[Markup]:
    """What changed, in sentences: how many components, which most, and the clean loss."""
    difference, sure = changed.difference.pooled, changed.p < ALPHA
    rose = int((sure & (difference.estimate > 0)).sum())
    fell = int((sure & (difference.estimate < 0)).sum())
    sentence = (
        "<b>Significant changes:</b> {} of {} components (Holm p < {:g}); ablation costs more than before "
        "for {}, less for {}."
    )
    sentences = [Markup(sentence).format(rose + fell, len(sure), ALPHA, rose, fell)]
    if changed.least_p > ALPHA:
        sentence = "With n = {} and {} components no p can fall below {}, whatever changed: take more images."
        sentences.append(Markup(sentence).format(difference.n, len(sure), precise(changed.least_p)))
    sentence = "<b>{}:</b> <code>{}</code>, from {} to {}: a change of {}, p = {} (Holm)."
    for title, index in (
        ("Largest rise", int(difference.estimate.argmax())),
        ("Largest fall", int(difference.estimate.argmin())),
    ):
        change = numbers.value(difference, index)
        if (change.estimate > 0) != (title == "Largest rise") or change.estimate == 0:
            continue
        first, last = (between(numbers.value(changed.sides[side].pooled, index), " %") for side in (0, -1))
        component, p = changed.difference.components[index], precise(float(changed.p[index]))
        points = between(change, f" {POINTS}")
        sentences.append(Markup(sentence).format(title, component, first, last, points, p))
    sentence = "<b>Loss without ablation,</b> mean over these images and timesteps: {} before, {} after."
    first, last = (f"{changed.clean[side]:.4g}" for side in (0, -1))
    return [*sentences, Markup(sentence).format(first, last)]


def data_of(changed: Changed) -> list[dict]:
    """The models, then the change as a further model, for report.js."""
    contributions = changed.dataset["contribution"].values
    contributions = contributions.reshape(*contributions.shape[:2], -1)  # of all images, over all timesteps
    inputs = str(changed.dataset.attrs.get("inputs", "the same images"))
    common = {"inputs": inputs, "own": False, "attention": {"heads": [], "statistics": {}}, "examples": {}}
    models = []
    for name, side, images in zip(titles(changed), changed.sides, contributions, strict=True):
        ablations = {side.ablation: page_data.of_grid(side, images)}
        models.append({"name": name, **page_data.axes_of(side), "ablations": ablations, **common})
    difference = changed.difference
    entry = page_data.of_grid(difference, contributions[-1] - contributions[0])
    with_p = zip(entry["pooled"], page_data.short(changed.p), strict=True)
    entry["pooled"] = [[*triple, p] for triple, p in with_p]
    change = {"name": "change, last − first", **page_data.axes_of(difference)}
    measure = {"cell": "change of ΔL/L", "pooled": "change of pooled ΔL/L", "unit": "points"}
    return [*models, {**change, "ablations": {difference.ablation: entry}, "measure": measure, **common}]


def titles(changed: Changed) -> list[str]:
    """What the models are called where one is shown alone."""
    if changed.steps:
        return list(changed.labels)
    return [f"{when}: {label}" for when, label in zip(("before", "after"), changed.labels, strict=True)]


def _figures(changed: Changed, figures: Path) -> dict[str, PageFigure | None]:
    difference, sides = changed.difference, changed.sides
    largest = float(np.abs(difference.pooled.estimate).max())
    effect = max(float(np.abs(side.pooled.estimate).max()) for side in sides)
    cell = float(np.abs(difference.cells.estimate).max())
    change = f"change of pooled ΔL/L, {POINTS}"

    def schematic_of(grid: EffectGrid, scale: float, quantity: str):
        return lambda theme: schematic.drawing(theme, changed.unet, grid, scale, quantity)

    drawn = {
        "change": ("The network, colored by change", schematic_of(difference, largest, change)),
        "before": ("The network before", schematic_of(sides[0], effect, paint.POOLED)),
        "after": ("The network after", schematic_of(sides[-1], effect, paint.POOLED)),
        "largest": (f"The {SHOWN} largest changes", functools.partial(draw_largest, changed=changed)),
        "map": (
            "Map of changes, components by timesteps",
            lambda theme: maps.draw(theme, [difference], cell, f"change of ΔL/L, {POINTS}"),
        ),
    }
    if changed.steps:
        draw = functools.partial(over_training.draw, training=training(changed))
        drawn["course"] = ("Effects by training step", draw)
    return {
        name: style.page_figure(figures, f"{NAME}-{name}", alt, draw) for name, (alt, draw) in drawn.items()
    }


def training(changed: Changed) -> Training:
    """The effects at all steps, as the figure over training takes them."""
    pooled = [side.pooled for side in changed.sides]
    return Training(
        name=changed.labels[-1],
        ablation=changed.difference.ablation,
        steps=np.array(changed.steps),
        components=changed.difference.components,
        component_type=changed.difference.component_type,
        estimate=np.array([interval.estimate for interval in pooled]),
        low=np.array([interval.low for interval in pooled]),
        high=np.array([interval.high for interval in pooled]),
        counted=f"{changed.difference.images} images",
    )


def draw_largest(theme: Theme, changed: Changed) -> Figure:
    """The components that changed most: effect before (open) and after (filled), and the change itself."""
    order = changed.order[:SHOWN].tolist()
    height = 1.15 + 0.235 * len(order)
    figure = style.figure(8.2, height)
    bottom, tall = 0.6 / height, (height - 1.0) / height
    left = figure.add_axes((0.21, bottom, 0.40, tall))
    right = figure.add_axes((0.65, bottom, 0.33, tall), sharey=left)
    first, last, difference = changed.sides[0], changed.sides[-1], changed.difference
    for y, i in enumerate(order):
        _bar(left, theme, first, i, y - 0.14, filled=False)
        _bar(left, theme, last, i, y + 0.14, filled=True)
        _bar(right, theme, difference, i, y, filled=bool(changed.p[i] < ALPHA))
    names = [difference.components[i] for i in order]
    left.set(ylim=(len(order) - 0.4, -0.6), xlabel="pooled ΔL/L, %: before (open), after (filled)")
    left.set_yticks(range(len(order)), names, color=theme.ink, size=style.SMALL)
    right.set(xlabel=f"change, {POINTS}; filled: Holm p < {ALPHA:g}")
    right.tick_params(labelleft=False)
    for axes, grids in ((left, (first, last)), (right, (difference,))):
        low = min(float(grid.pooled.low[order].min()) for grid in grids)
        high = max(float(grid.pooled.high[order].max()) for grid in grids)
        style.symlog((axes, "x"), min(-0.3, 1.3 * low), max(1.5, 1.3 * high))
        axes.axvline(0, color=theme.muted, lw=0.8)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def _bar(axes: Axes, theme: Theme, grid: EffectGrid, i: int, y: float, filled: bool) -> None:
    """An estimate with its interval; its mark opens the component's card."""
    color, pooled = theme.type_color(grid.component_type[i]), grid.pooled
    axes.plot([pooled.low[i], pooled.high[i]], [y, y], color=color, lw=1.2, solid_capstyle="butt")
    face = color if filled else theme.paper
    marker = style.MARKERS.get(grid.component_type[i], "o")
    look = {"ms": 4.6, "color": color, "markerfacecolor": face, "markeredgewidth": 0.9}
    axes.plot(pooled.estimate[i], y, marker, gid=inline.mark(grid.components[i]), **look)
