"""Maps of relative loss increase: components x timesteps, one panel per ablation."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from mechdiff.analysis.effects import EffectGrid
from mechdiff.report import inline, style
from mechdiff.report.style import Theme
from mechdiff.stats import ALPHA

ROW = 0.155  # inches
CELL, NARROW, WIDE = 0.40, 0.20, 4.8  # inches: a timestep, but narrower where a panel would be wider
BREAK = 0.9  # rows between component types
KEY = 4.7  # inches for the color scale and its key
LEFT, RIGHT, TOP, BOTTOM = 2.0, 0.1, 0.35, 1.1  # inches around the panels


def rows(increase: EffectGrid) -> list[int | None]:
    """Components by component type, then by depth; None for the gap between types."""
    order: list[int | None] = []
    for component_type in dict.fromkeys(["res", "head", "skip", "time", *increase.component_type]):
        members = [i for i, other in enumerate(increase.component_type) if other == component_type]
        if members and order:
            order.append(None)
        order += sorted(members, key=lambda i: (increase.depth[i], i))
    return order


def draw(
    theme: Theme, increases: Sequence[EffectGrid], largest: float, quantity: str = "ΔL/L at this timestep, %"
) -> Figure:
    """One panel per ablation, with the same rows and a color scale from -`largest` to +`largest`.

    Args:
      quantity: what the numbers are, with their unit.
    """
    order = rows(increases[0])
    edges = np.cumsum([0.0] + [BREAK if i is None else 1.0 for i in order])
    timesteps = len(increases[0].t)
    wide = max(2.6, NARROW * timesteps, min(CELL * timesteps, WIDE))
    width = LEFT + max(len(increases) * (wide + 0.2), KEY) + RIGHT
    height = TOP + ROW * edges[-1] + BOTTOM
    figure = style.figure(width, height)
    for k, increase in enumerate(increases):
        box = (LEFT + k * (wide + 0.2)) / width, BOTTOM / height, wide / width, ROW * edges[-1] / height
        axes = figure.add_axes(box)
        _panel(axes, theme, increase, order, edges, largest)
        if k == 0:
            _labels(axes, theme, increase, order, edges)
    _scale(figure, theme, largest, (width, height), quantity)
    return figure


def _panel(
    axes: Axes, theme: Theme, increase: EffectGrid, order: list, edges: np.ndarray, largest: float
) -> None:
    timesteps = len(increase.t)
    norm, colors = style.effect_norm(largest), theme.effect_map
    blocks = np.split(np.arange(len(order)), [k for k, i in enumerate(order) if i is None])
    for block in blocks:
        members = [k for k in block if order[k] is not None]
        values = increase.cells.estimate[[order[k] for k in members]]
        borders = np.append(edges[members], edges[members[-1] + 1])
        gid = inline.cells(increase.ablation, [order[k] for k in members])
        axes.pcolormesh(np.arange(timesteps + 1), borders, values, cmap=colors, norm=norm, gid=gid)
    axes.set(xlim=(0, timesteps), ylim=(edges[-1], 0))
    _uncertain(axes, theme, increase, order, edges)
    step = max(1, math.ceil(timesteps / 10))
    ticks = np.arange(0, timesteps, step)
    names = [f"{style.level_label(increase.log_snr[j])}\n{increase.t[j]}" for j in ticks]
    axes.set_xticks(ticks + 0.5, names, size=style.SMALL)
    axes.tick_params(length=0)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{increase.ablation} ablation", pad=6)


def _uncertain(axes: Axes, theme: Theme, increase: EffectGrid, order: list, edges: np.ndarray) -> None:
    """Fades and hatches cells that are not significant; neighboring cells form one box."""
    runs = []  # row, first timestep, timestep after the last
    for k, i in enumerate(order):
        if i is not None:
            steps = np.diff(np.concatenate([[0], ~(increase.p[i] < ALPHA), [0]]).astype(int))
            starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
            runs += [(k, start, stop) for start, stop in zip(starts, stops, strict=True)]
    if not runs:
        return
    boxes = [
        [(start, edges[k]), (stop, edges[k]), (stop, edges[k + 1]), (start, edges[k + 1]), (start, edges[k])]
        for k, start, stop in runs
    ]
    path = Path.make_compound_path(*(Path(box, closed=True) for box in boxes))
    axes.add_patch(PathPatch(path, facecolor=theme.paper, alpha=0.55, linewidth=0, gid=inline.cover("fade")))
    hatch = {"facecolor": "none", "edgecolor": theme.muted, "hatch": "/////"}
    axes.add_patch(PathPatch(path, linewidth=0, alpha=0.75, gid=inline.cover("hatch"), **hatch))


def _labels(axes: Axes, theme: Theme, increase: EffectGrid, order: list, edges: np.ndarray) -> None:
    """Component names, and component types along a colored bar at the far left."""
    across = axes.get_yaxis_transform()
    for k, i in enumerate(order):
        if i is not None:
            at = (edges[k] + edges[k + 1]) / 2
            layout = {"ha": "right", "va": "center_baseline", "size": style.SMALL, "transform": across}
            axes.text(-0.02, at, increase.components[i], gid=inline.mark(increase.components[i]), **layout)
    inch = 1 / (axes.get_position().width * axes.figure.get_figwidth())
    for component_type in dict.fromkeys(increase.component_type):
        inside = [
            k for k, i in enumerate(order) if i is not None and increase.component_type[i] == component_type
        ]
        low, high = edges[inside[0]], edges[inside[-1] + 1]
        x = -1.68 * inch
        line = {"color": theme.type_color(component_type), "lw": 2.2, "solid_capstyle": "butt"}
        axes.plot([x, x], [low + 0.1, high - 0.1], transform=across, clip_on=False, **line)
        label = style.PLURALS.get(component_type, component_type)
        short = label if (high - low) * ROW > 0.075 * len(label) else component_type
        layout = {"rotation": 90, "ha": "right", "va": "center", "transform": across}
        color = theme.type_color(component_type)
        axes.text(x - 0.08 * inch, (low + high) / 2, short, size=style.SMALL, color=color, **layout)


def _scale(figure: Figure, theme: Theme, largest: float, size: tuple[float, float], quantity: str) -> None:
    width, height = size
    bar = figure.add_axes((LEFT / width, 0.34 / height, 2.6 / width, 0.1 / height))
    norm = style.effect_norm(largest)
    style.key_of_colors(figure, bar, norm, theme.effect_map, style.decades(norm.vmax))
    bar.set_title(quantity, size=style.SMALL, pad=3)
    text = {"size": style.SMALL, "va": "center", "ha": "right"}
    figure.text((LEFT - 0.12) / width, (BOTTOM - 0.12) / height, "log-SNR", color=theme.muted, **text)
    figure.text((LEFT - 0.12) / width, (BOTTOM - 0.235) / height, "t", color=theme.muted, **text)
    key = figure.add_axes(((LEFT + 2.85) / width, 0.34 / height, 0.22 / width, 0.13 / height))
    hatch = {"facecolor": "none", "edgecolor": theme.muted, "hatch": "/////"}
    key.add_patch(PathPatch(Path.unit_rectangle(), lw=0.5, **hatch))
    key.axis("off")
    note = f"not significant\n(max-T p ≥ {ALPHA:g})"
    figure.text((LEFT + 3.15) / width, 0.4 / height, note, size=style.SMALL, va="center", linespacing=1.3)
