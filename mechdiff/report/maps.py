"""Damage maps: components x noise levels, one panel per kind of ablation."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from mechdiff.analysis.effects import Effects
from mechdiff.report import style
from mechdiff.report.style import Theme

ALPHA = 0.05  # of the whole grid
ROW = 0.145  # inches
BREAK = 0.9  # rows between kinds of components
KEY = 4.7  # inches that the scale and its key need
LEFT, RIGHT, TOP, BOTTOM = 1.75, 0.1, 0.35, 1.1  # inches around the panels


def rows(damage: Effects) -> list[int | None]:
    """Components by kind, then by depth; None where a gap stands between kinds."""
    found: list[int | None] = []
    for part in dict.fromkeys(["res", "head", "skip", "time", *damage.part]):
        members = [i for i, own in enumerate(damage.part) if own == part]
        if members:
            found += ([None] if found else []) + sorted(members, key=lambda i: (damage.depth[i], i))
    return found


def draw(theme: Theme, damages: list[Effects], largest: float) -> Figure:
    """One panel per kind of ablation, sharing rows and a scale that ends at +-`largest` %."""
    order = rows(damages[0])
    edges = np.cumsum([0.0] + [BREAK if i is None else 1.0 for i in order])
    wide = max(2.6, 0.36 * len(damages[0].t))
    width = LEFT + max(len(damages) * (wide + 0.2), KEY) + RIGHT
    height = TOP + ROW * edges[-1] + BOTTOM
    figure = style.figure(width, height)
    for k, damage in enumerate(damages):
        box = (LEFT + k * (wide + 0.2)) / width, BOTTOM / height, wide / width, ROW * edges[-1] / height
        axes = figure.add_axes(box)
        _panel(axes, theme, damage, order, edges, largest)
        if k == 0:
            _labels(axes, theme, damage, order, edges)
    _scale(figure, theme, largest, width, height)
    return figure


def _panel(axes: Axes, theme: Theme, damage: Effects, order: list, edges: np.ndarray, largest: float) -> None:
    levels = len(damage.t)
    norm, colors = style.damage_norm(largest), theme.damage_map
    axes.set(xlim=(0, levels), ylim=(edges[-1], 0))
    blocks = np.split(np.arange(len(order)), [k for k, i in enumerate(order) if i is None])
    for block in blocks:
        members = [k for k in block if order[k] is not None]
        values = damage.cells.estimate[[order[k] for k in members]]
        extent = (0, levels, edges[members[-1] + 1], edges[members[0]])
        axes.imshow(values, cmap=colors, norm=norm, extent=extent, aspect="auto", interpolation="none")
    axes.set(xlim=(0, levels), ylim=(edges[-1], 0))
    _uncertain(axes, theme, damage, order, edges)
    step = max(1, -(-levels // 10))
    ticks = np.arange(0, levels, step)
    names = [f"{style.level_label(damage.log_snr[j])}\n{damage.t[j]}" for j in ticks]
    axes.set_xticks(ticks + 0.5, names, size=6.5)
    axes.tick_params(length=0)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{damage.ablation} ablation", pad=6)


def _uncertain(axes: Axes, theme: Theme, damage: Effects, order: list, edges: np.ndarray) -> None:
    """Cells not told apart from no change, faded and hatched; one path for all, neighbors together."""
    runs = []  # row, first level, level behind the last
    for k, i in enumerate(order):
        if i is not None:
            steps = np.diff(np.concatenate([[0], ~(damage.p[i] < ALPHA), [0]]).astype(int))
            runs += [(k, *run) for run in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1))]
    if not runs:
        return
    boxes = [
        [(j, edges[k]), (end, edges[k]), (end, edges[k + 1]), (j, edges[k + 1]), (j, edges[k])]
        for k, j, end in runs
    ]
    path = Path.make_compound_path(*(Path(box, closed=True) for box in boxes))
    axes.add_patch(PathPatch(path, facecolor=theme.paper, alpha=0.55, linewidth=0))
    hatch = {"facecolor": "none", "edgecolor": theme.muted, "hatch": "/////"}
    axes.add_patch(PathPatch(path, linewidth=0, alpha=0.75, **hatch))


def _labels(axes: Axes, theme: Theme, damage: Effects, order: list, edges: np.ndarray) -> None:
    """Component names, and the kinds along a colored bar at the far left."""
    across = axes.get_yaxis_transform()
    for k, i in enumerate(order):
        if i is not None:
            at = (edges[k] + edges[k + 1]) / 2
            place = {"ha": "right", "va": "center_baseline", "transform": across}
            axes.text(-0.02, at, damage.components[i], size=6.6, **place)
    inch = 1 / (axes.get_position().width * axes.figure.get_figwidth())
    for part in dict.fromkeys(damage.part):
        inside = [k for k, i in enumerate(order) if i is not None and damage.part[i] == part]
        low, high = edges[inside[0]], edges[inside[-1] + 1]
        x = -1.42 * inch
        line = {"color": theme.part(part), "lw": 2.2, "solid_capstyle": "butt"}
        axes.plot([x, x], [low + 0.1, high - 0.1], transform=across, clip_on=False, **line)
        words = style.WORDS.get(part, part)
        short = words if (high - low) * ROW > 0.062 * len(words) else part
        place = {"rotation": 90, "ha": "right", "va": "center", "transform": across}
        axes.text(x - 0.08 * inch, (low + high) / 2, short, size=7.2, color=theme.part(part), **place)


def _scale(figure: Figure, theme: Theme, largest: float, width: float, height: float) -> None:
    bar = figure.add_axes((LEFT / width, 0.34 / height, 2.6 / width, 0.1 / height))
    norm = style.damage_norm(largest)
    colors = figure.colorbar(ScalarMappable(norm, theme.damage_map), cax=bar, orientation="horizontal")
    ticks = style.decades(norm.vmax)
    colors.set_ticks(ticks, labels=[style.number(tick) for tick in ticks])
    colors.ax.minorticks_off()
    colors.outline.set_linewidth(0.5)
    bar.tick_params(labelsize=6.5)
    bar.set_title("Deg% at this level", size=7, pad=3)
    text = {"size": 7, "va": "center", "ha": "right"}
    figure.text((LEFT - 0.12) / width, (BOTTOM - 0.12) / height, "log-SNR", color=theme.muted, **text)
    figure.text((LEFT - 0.12) / width, (BOTTOM - 0.235) / height, "t", color=theme.muted, **text)
    key = figure.add_axes(((LEFT + 2.85) / width, 0.34 / height, 0.22 / width, 0.13 / height))
    hatch = {"facecolor": "none", "edgecolor": theme.muted, "hatch": "/////"}
    key.add_patch(PathPatch(Path.unit_rectangle(), lw=0.5, **hatch))
    key.axis("off")
    words = f"not told apart from 0\n(max-T p ≥ {ALPHA:g})"
    figure.text((LEFT + 3.15) / width, 0.4 / height, words, size=6.8, va="center", linespacing=1.3)
