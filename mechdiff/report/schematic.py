"""Diagram of the UNet: stages along a U, skips as bridges, components colored by pooled ΔL/L."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from mechdiff.analysis.effects import EffectGrid
from mechdiff.core.config import UNetConfig
from mechdiff.models.stages import Stage, stages
from mechdiff.models.unet import components
from mechdiff.report import style
from mechdiff.report.paint import POOLED, Paint, plain
from mechdiff.report.sequence import draw_sequence
from mechdiff.report.style import Theme

WIDTH, UNIT = 11.2, 0.46  # inches: the page, and a column at most
HALF, TALL = 0.43, 0.74  # half width and half height of a stage, columns
BRIDGE, GAP = 0.3, 0.62  # height of a bridge over the one inside it; from a stage's top to the first
FOOT = TALL + 1.2  # below a stage's middle: time injection and names
STRIP = 1.5  # at the bottom, for the key
KEY_END = 21.2  # the key reaches to this column
MARGIN = 2.8  # columns left of the U, for resolutions


@dataclass(frozen=True)
class Plan:
    """Layout of the diagram, in columns.

    Attributes:
      stages: in order; stage i stands in column i.
      row: row of each stage, 0 for the highest resolution.
      middle: vertical center of each row.
      bridges: (from stage, to stage, height of the bridge) of each skip tensor.
    """

    stages: tuple[Stage, ...]
    row: tuple[int, ...]
    middle: tuple[float, ...]
    bridges: tuple[tuple[int, int, float], ...]

    def center(self, i: int) -> tuple[float, float]:
        """Center of stage i."""
        return float(i), self.middle[self.row[i]]


def plan(config: UNetConfig) -> Plan:
    """Layout of a network: a line for each resolution, bridges nested over the lines they span."""
    in_order = stages(config)
    row = tuple(int(np.log2(config.image_size // stage.resolution)) for stage in in_order)
    stack, pairs = [], []
    for i, stage in enumerate(in_order):
        if stage.pop:
            pairs.append((stack.pop(), i))
        if stage.push:
            stack.append(i)
    rank = {pair: sum(row[a] == row[pair[0]] and a > pair[0] for a, _ in pairs) for pair in pairs}
    count = Counter(row[a] for a, _ in pairs)
    middle = [0.0]
    for below in range(1, max(row) + 1):
        middle.append(middle[-1] - FOOT - TALL - GAP - BRIDGE * max(0, count[below] - 1) - 0.25)
    decks = tuple((a, b, middle[row[a]] + TALL + GAP + BRIDGE * rank[a, b]) for a, b in pairs)
    return Plan(in_order, row, tuple(middle), decks)


def draw(
    theme: Theme, config: UNetConfig, increase: EffectGrid, largest: float, quantity: str = POOLED
) -> Figure:
    """The network of `config`, colored by `quantity` on a scale from -`largest` to +`largest`."""
    where = plan(config)
    top = max([deck for *_, deck in where.bridges] + [TALL]) + 0.35
    bottom = where.middle[-1] - FOOT - 0.35 - STRIP
    right = max(len(where.stages) - 0.5, KEY_END)
    columns = right + MARGIN + 0.4
    unit = max(min(UNIT, WIDTH / columns), 0.42)  # narrower, numbers would not fit
    figure = style.figure(columns * unit, (top - bottom) * unit)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-MARGIN - 0.4, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    paint = Paint(theme, increase, largest)
    _rows(axes, theme, where)
    _flow(axes, theme, where)
    for i, stage in enumerate(where.stages):
        _stage(axes, paint, where, i, stage)
    _groups(axes, theme, where)
    _key(figure, axes, paint, bottom, quantity)
    return figure


def drawing(
    theme: Theme, config: UNetConfig | None, increase: EffectGrid, largest: float, quantity: str = POOLED
) -> Figure:
    """The diagram of a UNet, or of any other denoiser its components in the order in which they run.

    Args:
      config: None where the denoiser has no stages of ours.
      quantity: what the numbers are, with their unit.
    """
    if config is not None and set(increase.components) <= {
        component.name for component in components(config)
    }:
        return draw(theme, config, increase, largest, quantity)
    return draw_sequence(theme, increase, largest, quantity)


def _rows(axes: Axes, theme: Theme, where: Plan) -> None:
    for row, y in enumerate(where.middle):
        inside = [stage for stage, r in zip(where.stages, where.row, strict=True) if r == row]
        side, width = inside[0].resolution, max(stage.width for stage in inside if stage.op == "block")
        axes.plot([-1.0, len(where.stages) - 0.6], [y, y], color=theme.rule, lw=0.5, ls=(0, (1, 3)), zorder=0)
        axes.text(-1.15, y + 0.06, f"{side} × {side}", ha="right", va="bottom", size=8.5)
        axes.text(
            -1.15, y - 0.1, f"{width} channels", ha="right", va="top", size=style.SMALL, color=theme.muted
        )


def _flow(axes: Axes, theme: Theme, where: Plan) -> None:
    """Lines from stage to stage, and the bridges of the skips."""
    for i in range(len(where.stages) - 1):
        (x0, y0), (x1, y1) = where.center(i), where.center(i + 1)
        bend = (x0 + x1) / 2
        _line(axes, [(x0 + HALF, y0), (bend, y0), (bend, y1), (x1 - HALF, y1)], theme.muted, 1.0)
    for a, b, deck in where.bridges:
        (x0, y0), (x1, y1) = where.center(a), where.center(b)
        corners = [(x0, y0 + TALL), (x0, deck), (x1, deck), (x1, y1 + TALL)]
        _line(axes, corners, theme.type_color("skip"), 1.1)


def _line(axes: Axes, corners: list[tuple[float, float]], color: str, width: float) -> None:
    """A line with rounded corners."""
    points, codes = [corners[0]], [Path.MOVETO]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        into, out = _towards(corner, before), _towards(corner, after)
        points += [into, corner, out]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*points, corners[-1]], [*codes, Path.LINETO])
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=color, linewidth=width, zorder=1))


def _towards(corner: tuple[float, float], other: tuple[float, float]):
    step = np.subtract(other, corner)
    size = np.hypot(*step)
    return tuple(corner + step * min(0.18 / size, 0.5)) if size else corner


def _stage(axes: Axes, paint: Paint, where: Plan, i: int, stage: Stage) -> None:
    x, y = where.center(i)
    match stage.op:
        case "block":
            _block(axes, paint, stage, x, y)
        case "attention":
            _heads(axes, paint, stage.name, stage.heads, x, y)
        case "downsample" | "upsample":
            sign = -1 if stage.op == "downsample" else 1
            corners = [(x - 0.26, y - 0.2 * sign), (x + 0.26, y - 0.2 * sign), (x, y + 0.28 * sign)]
            axes.add_patch(Polygon(corners, zorder=3, **plain(paint.theme)))
            axes.plot([x - HALF, x + HALF], [y, y], color=paint.theme.muted, lw=1, zorder=1)
            if stage.push:  # its skip leaves from its top
                axes.plot([x, x], [y, y + TALL], color=paint.theme.type_color("skip"), lw=1.1, zorder=1)
        case _:
            axes.add_patch(Rectangle((x - 0.2, y - TALL), 0.4, 2 * TALL, zorder=3, **plain(paint.theme)))
            axes.plot([x - HALF, x + HALF], [y, y], color=paint.theme.muted, lw=1, zorder=1)
            name = stage.op.replace("_", " ")
            axes.text(x, y, name, rotation=90, size=style.SMALL, ha="center", va="center", zorder=4)


def _block(axes: Axes, paint: Paint, stage: Stage, x: float, y: float) -> None:
    """Residual branch as a box, its time injection as a disc below, its skip as a wedge above."""
    axes.plot([x, x], [y - TALL - 0.2, y - TALL], color=paint.theme.type_color("time"), lw=1.1, zorder=1)
    axes.add_patch(Circle((x, y - TALL - 0.27), 0.14, zorder=3, **paint.fill(f"{stage.name}.time")))
    box = FancyBboxPatch(
        (x - HALF + 0.05, y - TALL + 0.05),
        2 * HALF - 0.1,
        2 * TALL - 0.1,
        boxstyle="round,pad=0.05,rounding_size=0.1",
        zorder=3,
        **paint.fill(f"{stage.name}.res"),
    )
    axes.add_patch(box)
    paint.label(axes, f"{stage.name}.res", x, y)
    if stage.pop:
        wedge = [(x - 0.2, y + TALL + 0.3), (x + 0.2, y + TALL + 0.3), (x, y + TALL + 0.02)]
        axes.add_patch(Polygon(wedge, zorder=3, **paint.fill(f"{stage.name}.skip")))


def _heads(axes: Axes, paint: Paint, name: str, heads: int, x: float, y: float) -> None:
    """An attention layer as a column of its heads, the first on top."""
    tall = 2 * TALL / heads
    for head in range(heads):
        low = y + TALL - (head + 1) * tall
        full = f"{name}.head{head}"
        axes.add_patch(Rectangle((x - HALF + 0.06, low), 2 * HALF - 0.12, tall, zorder=3, **paint.fill(full)))
        if heads <= 4:
            paint.label(axes, full, x, low + tall / 2)


def _groups(axes: Axes, theme: Theme, where: Plan) -> None:
    """Names under the stages, and the group they share (`down1`, `mid`, ...) under a bracket."""
    runs: dict[tuple[str, int], list[int]] = {}
    for i, stage in enumerate(where.stages):
        if "." in stage.name:
            group, short = stage.name.split(".")
            runs.setdefault((group, where.row[i]), []).append(i)
            word = {"downsample": "down", "upsample": "up"}.get(short, short)
            layout = {"ha": "center", "va": "baseline", "color": theme.muted}
            axes.text(i, where.center(i)[1] - TALL - 0.74, word, size=style.SMALL, **layout)
    for (group, row), members in runs.items():
        y = where.middle[row] - TALL - 0.84
        if len(members) > 1 or group == "mid":
            axes.plot([members[0] - HALF, members[-1] + HALF], [y, y], color=theme.muted, lw=0.7)
            axes.text(np.mean(members), y - 0.08, group, size=style.SMALL, ha="center", va="top")


def _key(figure: Figure, axes: Axes, paint: Paint, bottom: float, quantity: str) -> None:
    """Color bar and shapes, in a strip under the network."""
    corners = [(-MARGIN, bottom + 0.5), (3.2, bottom + 0.7)]
    left, right = figure.transFigure.inverted().transform(axes.transData.transform(corners))
    bar = figure.add_axes((*left, *(right - left)))
    style.key_of_colors(figure, bar, paint.norm, paint.map, style.decades(paint.norm.vmax))
    bar.set_title(quantity, size=style.SMALL, pad=3)
    x, y = 4.6, bottom + 0.6
    shapes = (
        (lambda x: Rectangle((x - 0.2, y - 0.2), 0.4, 0.4), "residual branch", 3.3),
        (lambda x: Rectangle((x - 0.2, y - 0.1), 0.4, 0.2), "attention head", 3.2),
        (lambda x: Polygon([(x - 0.2, y + 0.14), (x + 0.2, y + 0.14), (x, y - 0.14)]), "skip tensor", 2.8),
        (lambda x: Circle((x, y), 0.14), "time injection", 3.1),
        (lambda x: Circle((x, y), 0.14, linestyle=":"), "dotted: nothing changed", 0),
    )
    for shape_at, text, width in shapes:
        shape = shape_at(x)
        shape.set(facecolor=paint.theme.paper, edgecolor=paint.theme.muted, linewidth=0.8)
        axes.add_patch(shape)
        axes.text(x + 0.4, y, text, size=style.SMALL, va="center_baseline")
        x += width
