"""Figures of single models, on scales that all models of a report share."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mechdiff.analysis.effects import Effects
from mechdiff.report import attention, curves, maps, ranking, schematic, style
from mechdiff.report.style import PageFigure
from mechdiff.study.examined_model import ExaminedModel


@dataclasses.dataclass(frozen=True)
class Limits:
    """Ends of scales, the same in the figures of all models that are shown.

    Attributes:
      cell, pooled: largest absolute increase at one timestep, and pooled.
      ends, forest: of axes of pooled increases, without and with their intervals.
      attention: of every attention statistic.
    """

    cell: float
    pooled: float
    ends: tuple[float, float]
    forest: tuple[float, float]
    attention: dict[str, tuple[float, float]]


def limits(models: list[ExaminedModel]) -> Limits:
    """Limits of all models that are shown."""
    increases = [increase for model in models for increase in model.increases.values()]
    return Limits(
        cell=max(float(np.abs(increase.cells.estimate).max()) for increase in increases),
        pooled=max(float(np.abs(increase.pooled.estimate).max()) for increase in increases),
        ends=ranking.ends(increases),
        forest=ranking.forest_ends(increases),
        attention=attention.limits([model.attention for model in models]),
    )


# What a figure is called, its alternative text, and how it is drawn in a theme.
Drawing = Callable[[str, str, Callable], PageFigure]


def draw(model: ExaminedModel, limits: Limits, figures: Path) -> dict:
    """Figures of one model: name -> figure (None: nothing to draw), or a list with one per ablation."""
    increases = list(model.increases.values())
    first = [model.lead, *(increase for increase in increases if increase is not model.lead)]

    def drawing(what: str, alt: str, draw: Callable) -> PageFigure:
        return style.page_figure(figures, f"{what}-{model.name}", f"{alt} of {model.name}.", draw)

    return {
        "map": drawing(
            "increase-map",
            "Map of relative loss increase: "
            f"{len(increases[0].components)} components at {len(increases[0].t)} timesteps",
            lambda theme: maps.draw(theme, increases, limits.cell),
        ),
        "ranking": drawing(
            "ranking",
            f"Forest plot of {ranking.SHOWN} components with large pooled relative loss increase",
            lambda theme: ranking.draw(theme, model.increases, limits.forest),
        ),
        "schematics": _schematics(model, first, limits, drawing),
        **_figures_where_known(model, limits, drawing),
        "ablations": _ablations(first, limits, drawing) if len(first) > 1 else None,
    }


def _schematics(
    model: ExaminedModel, increases: Sequence[Effects], limits: Limits, drawing: Drawing
) -> list[PageFigure]:
    unet = None if model.function else model.config.unet
    return [
        drawing(
            f"schematic-{increase.ablation}",
            f"The network, each component colored by its pooled ΔL/L under {increase.ablation} ablation,",
            lambda theme, increase=increase: schematic.drawing(theme, unet, increase, limits.pooled),
        )
        for increase in increases
    ]


def _figures_where_known(
    model: ExaminedModel, limits: Limits, drawing: Drawing
) -> dict[str, PageFigure | None]:
    """Loss curves of a network that was trained here, and attention of one that has heads."""
    drawn: dict[str, PageFigure | None] = dict.fromkeys(("curves", "attention"))
    if model.record.get("log"):
        drawn["curves"] = drawing("curves", "Loss curves", lambda theme: curves.draw(theme, model))
    if heads := model.attention.sizes["head"]:
        drawn["attention"] = drawing(
            "attention",
            f"Five attention statistics of {heads} heads by timestep",
            lambda theme: attention.draw(theme, model.attention, limits.attention),
        )
    return drawn


def _ablations(increases: Sequence[Effects], limits: Limits, drawing: Drawing) -> PageFigure:
    """The first two ablations, one against the other."""
    first, second = increases[:2]
    names = tuple(f"pooled ΔL/L, %, {increase.ablation} ablation" for increase in (first, second))
    return drawing(
        "ablations",
        f"Scatter plot of pooled ΔL/L under {first.ablation} against {second.ablation} ablation",
        lambda theme: ranking.draw_agreement(theme, first, second, names, limits.ends),
    )
