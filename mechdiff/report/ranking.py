"""Pooled ΔL/L: ranked components, their range, and agreement between ablations and between models."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechdiff.analysis.effects import Effects
from mechdiff.report import inline, style
from mechdiff.report.style import MARKERS, PLURALS, Theme

SHOWN = 15
VARIED = 3  # of those shown: not the largest on average, but the most varied over timesteps or images
PAPER = (25.6, 128.3)  # % degradation, abstract of arXiv 2506.17237


def draw(
    theme: Theme, increases: dict[str, Effects], ends: tuple[float, float], lead: str = "mean"
) -> Figure:
    """Forest plot of the components of `chosen` under `lead`, with the 5 to 95 % quantiles of images' own
    contributions as thin lines; other ablations as open marks below."""
    first = increases.get(lead) or next(iter(increases.values()))
    order = chosen(first)
    ablations = [first, *(increase for increase in increases.values() if increase is not first)]
    height = 0.95 + 0.235 * len(order)
    figure = style.figure(5.3, height)
    axes = figure.add_axes((0.30, 0.6 / height, 0.68, (height - 0.95) / height))
    for rank, i in enumerate(order):
        axes.hlines(rank, *first.quantiles.estimate[i, [0, -1]], color=theme.muted, lw=0.5, zorder=1)
    for k, increase in enumerate(ablations):
        shift = (k - (len(ablations) - 1) / 2) * 0.3
        for rank, i in enumerate(order):
            _mark(axes, theme, increase, i, rank + shift, filled=k == 0)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel="pooled ΔL/L, %, with 95 % interval")
    axes.set_yticks(
        range(len(order)), [first.components[i] for i in order], color=theme.ink, size=style.SMALL
    )
    axes.tick_params(axis="y", length=0)
    style.symlog((axes, "x"), *ends)
    axes.grid(axis="x")
    axes.axvline(0, color=theme.muted, lw=0.8)
    axes.spines["left"].set_visible(False)
    _ablations_key(axes, theme, [increase.ablation for increase in ablations])
    return figure


def chosen(increase: Effects) -> list[int]:
    """Components of the forest plot: the largest on average, and below them the `VARIED` whose effect is
    largest at some timesteps (root mean square) or on some images (5 or 95 % quantile)."""
    order = increase.order.tolist()
    if len(order) <= SHOWN:
        return order
    largest = order[: SHOWN - VARIED]
    size = np.maximum(increase.rms.estimate, np.abs(increase.quantiles.estimate).max(axis=1))
    varied = [i for i in np.argsort(-size, kind="stable").tolist() if i not in largest]
    return [*largest, *varied[:VARIED]]


def _mark(axes: Axes, theme: Theme, increase: Effects, i: int, y: float, filled: bool) -> None:
    color = theme.type_color(increase.component_type[i])
    pooled = increase.pooled
    line = {"color": color, "lw": 1.3 if filled else 0.9, "solid_capstyle": "butt"}
    axes.plot([pooled.low[i], pooled.high[i]], [y, y], **line)
    axes.plot(
        pooled.estimate[i], y, MARKERS.get(increase.component_type[i], "o"), ms=4.6, color=color,
        markerfacecolor=color if filled else theme.paper, markeredgewidth=0.9,
        gid=inline.mark(increase.components[i], increase.ablation),
    )  # fmt: skip


def _ablations_key(axes: Axes, theme: Theme, ablations: list[str]) -> None:
    for k, ablation in enumerate(ablations):
        face = theme.ink if k == 0 else theme.paper
        look = {"color": theme.ink, "markerfacecolor": face, "ms": 4.6, "markeredgewidth": 0.9}
        axes.plot([], [], "o", label=f"{ablation} ablation", **look)
    layout = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(ablations), "borderaxespad": 0}
    axes.legend(fontsize=style.SMALL, labelcolor=theme.ink, handletextpad=0.2, columnspacing=1.2, **layout)


def ends(increases: list[Effects]) -> tuple[float, float]:
    """Ends of an axis that shows the intervals of pooled ΔL/L of all, in %."""
    low = min(float(increase.pooled.low.min()) for increase in increases)
    high = max(float(increase.pooled.high.max()) for increase in increases)
    return min(-0.3, 1.3 * low), max(1.5, 1.25 * high)


def forest_ends(increases: list[Effects]) -> tuple[float, float]:
    """Ends of the forest plots' axis, which shows quantiles over images too, in %."""
    low, high = ends(increases)
    shown = [increase.quantiles.estimate[chosen(increase)] for increase in increases]
    lowest, highest = (float(f([f(quantiles) for quantiles in shown])) for f in (np.min, np.max))
    return min(low, 1.3 * lowest), max(high, 1.25 * highest)


@dataclass(frozen=True)
class Row:
    """One line of the range figure."""

    label: str
    increase: Effects


def draw_range(theme: Theme, rows: list[Row], limits: tuple[float, float], paper: bool) -> Figure:
    """Pooled ΔL/L of all components of each row; with `paper` also the range in the paper's abstract."""
    height = 1.2 + 0.42 * len(rows)
    figure = style.figure(8.2, height)
    axes = figure.add_axes((0.29, 0.55 / height, 0.69, (height - 0.95) / height))
    low, high = min(limits[0], -1.5), max(2 * limits[1], 1.3 * PAPER[1] if paper else 0)
    if paper:
        axes.axvspan(*PAPER, color=theme.muted, alpha=0.16, lw=0)
        text = f"paper's abstract\n{PAPER[0]:g} % to {PAPER[1]:g} %"
        layout = {"ha": "center", "va": "bottom", "color": theme.muted}
        axes.text(np.sqrt(PAPER[0] * PAPER[1]), -0.62, text, size=style.SMALL, **layout)
    for y, row in enumerate(rows):
        _strip(axes, theme, row.increase, y)
    axes.set(ylim=(len(rows) - 0.45, -0.6), xlabel=f"pooled ΔL/L, %{' (ours)' if paper else ''}")
    axes.set_yticks(range(len(rows)), [row.label for row in rows], color=theme.ink, size=style.SMALL)
    axes.tick_params(axis="y", length=0)
    style.symlog((axes, "x"), low, high)
    axes.grid(axis="x")
    axes.axvline(0, color=theme.muted, lw=0.8)
    axes.spines["left"].set_visible(False)
    return figure


def _strip(axes: Axes, theme: Theme, increase: Effects, y: float) -> None:
    """Components that are not idle as jittered marks, on a line from the smallest to the largest value."""
    active = np.flatnonzero(~increase.idle)
    if not len(active):
        return
    values = increase.pooled.estimate[active]
    axes.plot([values.min(), values.max()], [y, y], color=theme.ink, lw=0.8, zorder=1)
    heights = y + 0.26 * (2 * ((np.arange(len(active)) * 0.61803) % 1) - 1)
    for component_type, indices in _by_type(increase, active):
        look = {"ms": 3.4, "color": theme.type_color(component_type), "alpha": 0.85, "mew": 0, "ls": ""}
        axes.plot(values[indices], heights[indices], MARKERS.get(component_type, "o"), **look)
    for value, side in ((values.min(), "right"), (values.max(), "left")):
        gap = -4 if side == "right" else 4
        layout = {"xytext": (gap, 0), "textcoords": "offset points", "ha": side, "va": "center_baseline"}
        axes.annotate(style.number(value), (value, y), size=style.SMALL, zorder=3, **layout)


def draw_agreement(
    theme: Theme, first: Effects, second: Effects, names: tuple[str, str], limits: tuple[float, float]
) -> Figure:
    """Pooled ΔL/L of the components that two sides share, with intervals; the diagonal is equality."""
    figure = style.figure(3.6, 3.6)
    axes = figure.add_axes((0.19, 0.16, 0.78, 0.79))
    where = {name: i for i, name in enumerate(second.components)}
    pairs = [(i, where[name]) for i, name in enumerate(first.components) if name in where]
    pairs = np.array([(i, j) for i, j in pairs if not (first.idle[i] or second.idle[j])], int).reshape(-1, 2)
    types = _by_type(first, pairs[:, 0])
    for component_type, indices in types:
        x, x_errors = _bars(first, pairs[indices, 0])
        y, y_errors = _bars(second, pairs[indices, 1])
        label = PLURALS.get(component_type, component_type)
        look = {"color": theme.type_color(component_type), "ms": 4, "mew": 0, "label": label}
        marker = MARKERS.get(component_type, "o")
        axes.errorbar(x, y, yerr=y_errors, xerr=x_errors, fmt=marker, elinewidth=0.7, **look)
    for which in "xy":
        style.symlog((axes, which), *limits)
    axes.plot(limits, limits, color=theme.muted, lw=0.7, ls=(0, (4, 3)), zorder=0)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.grid()
    if types:
        axes.legend(fontsize=style.SMALL, labelcolor=theme.ink, loc="upper left", handletextpad=0.2)
    return figure


def _by_type(increase: Effects, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Component types among `rows`, each with its positions in `rows`."""
    types = np.array([increase.component_type[i] for i in rows])
    return [(str(name), np.flatnonzero(types == name)) for name in dict.fromkeys(types)]


def _bars(increase: Effects, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pooled estimates of `rows`, and how far their intervals reach below and above."""
    low, middle, high = (getattr(increase.pooled, end)[rows] for end in ("low", "estimate", "high"))
    return middle, np.maximum([middle - low, high - middle], 0)
