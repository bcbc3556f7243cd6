"""Diagram of a denoiser that is not a UNet of ours: its components as boxes, in the order in which they
run."""

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mechdiff.analysis.effects import EffectGrid
from mechdiff.report import style
from mechdiff.report.paint import POOLED, Paint, short
from mechdiff.report.style import Theme

MIN_COMPONENTS = 3  # components of a block that gets its own lines


def draw_sequence(theme: Theme, increase: EffectGrid, largest: float, quantity: str = POOLED) -> Figure:
    """Components as boxes in the order of execution, colored by pooled ΔL/L as in `draw`; each block has
    separate lines, see `in_lines`."""
    columns, wide, tall = 8, 1.38, 0.52  # boxes per line, inches
    cells = in_lines(increase.components, columns)
    lines = 1 + cells[-1][0] if cells else 1
    width, height = columns * wide + 0.1, lines * tall + 0.75
    figure = style.figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    paint = Paint(theme, increase, largest)
    for (line, column), name in zip(cells, increase.components, strict=True):
        x, y = 0.05 + wide * column, height - tall * (line + 1)
        axes.add_patch(Rectangle((x, y), wide - 0.08, tall - 0.07, **paint.fill(name)))
        ink = style.readable_on(paint.color(name)) if name not in paint.idle else theme.ink
        label = name if len(name) <= 20 else f"{name[:9]}…{name[-9:]}"
        text = {"size": style.SMALL, "ha": "center", "va": "center_baseline", "color": ink}
        axes.text(x + wide / 2 - 0.04, y + 0.31, label, **text)
        value = "no change" if name in paint.idle else short(paint.value[name])
        axes.text(x + wide / 2 - 0.04, y + 0.13, value, **text)
    bar = figure.add_axes((0.05 / width, 0.3 / height, 3.4 / width, 0.09 / height))
    style.key_of_colors(figure, bar, paint.norm, paint.map, style.decades(paint.norm.vmax))
    bar.set_title(f"{quantity}; left to right in the order of execution", size=style.SMALL, pad=3, loc="left")
    return figure


def in_lines(names: Sequence[str], columns: int) -> list[tuple[int, int]]:
    """Line and column of each component; the parts of a block get separate lines.

    A block is a run of at least `MIN_COMPONENTS` names with the same first word; shorter runs share lines.

    Example:
      >>> in_lines(["time", "class", "block0.mlp", "block0.head0", "block0.head1", "out"], 8)
      [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    """
    cells: list[tuple[int, int]] = []
    line, column, after_block = 0, 0, False
    for _, run in itertools.groupby(names, key=lambda name: name.split(".")[0]):
        size = len(list(run))
        if column and (after_block or size >= MIN_COMPONENTS):
            line, column = line + 1, 0
        after_block = size >= MIN_COMPONENTS
        for _ in range(size):
            if column == columns:
                line, column = line + 1, 0
            cells.append((line, column))
            column += 1
    return cells
