"""Figures of one result, for a notebook or a file; without pyplot, so MPLBACKEND has no effect."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from mechdiff.analysis.effects import Effects
from mechdiff.core.errors import ConfigError
from mechdiff.report import maps, style
from mechdiff.report.style import LIGHT, Theme
from mechdiff.storage import files

KINDS = tuple(FigureCanvasBase.filetypes)

DPI = 144


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure that a notebook shows and a script saves.

    Attributes:
      draw: makes it, in a theme.
      alt: what there is to see, in words.
    """

    draw: Callable[[Theme], Figure]
    alt: str

    @property
    def figure(self) -> Figure:
        """The Matplotlib figure, to be changed further."""
        with matplotlib.rc_context(style.settings(LIGHT)):
            return self.draw(LIGHT)

    def _repr_png_(self) -> bytes:
        return self._bytes("png")

    def _bytes(self, kind: str) -> bytes:
        with matplotlib.rc_context(style.settings(LIGHT)):
            if kind == "svg":
                return style.svg(self.draw(LIGHT))
            buffer = io.BytesIO()
            self.draw(LIGHT).savefig(buffer, format=kind, dpi=DPI, facecolor=style.GROUND)
            return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Writes the figure, of the kind that the name ends in (.png, .svg, .pdf, ...), else ConfigError."""
        path = Path(path)
        kind = path.suffix.lstrip(".").lower() or "png"
        if kind not in KINDS:
            raise ConfigError(f"{path}: figures are written as {', '.join(KINDS)}")
        files.write_atomic(path, self._bytes(kind))

    def __repr__(self) -> str:
        return f"Plot({self.alt})"


def plot_component(measured: Effects, component: str, title: str) -> Plot:
    """Relative loss increase of one component over log-SNR, with its interval at every timestep."""
    index = measured.components.index(component)
    pooled = measured.pooled
    text = (
        f"pooled {pooled.estimate[index]:.1f} % [{pooled.low[index]:.1f}, {pooled.high[index]:.1f}], "
        f"n = {measured.n} images"
    )

    def draw(theme: Theme) -> Figure:
        figure = style.figure(5.2, 3.0, layout="constrained")
        axes = figure.add_subplot()
        cells, color = measured.cells, theme.type_color(measured.component_type[index])
        axes.axhline(0, color=theme.rule, lw=0.8)
        axes.fill_between(measured.log_snr, cells.low[index], cells.high[index], color=color, alpha=0.2, lw=0)
        axes.plot(measured.log_snr, cells.estimate[index], "o-", color=color, ms=3.5, lw=1.2)
        axes.set(xlabel="log-SNR (clean to the left)", ylabel="relative loss increase, %")
        axes.set_title(f"{component}: {title}\n{text}", fontsize=8)
        axes.invert_xaxis()
        return figure

    return Plot(draw, f"{component} over log-SNR: {text}")


def plot_map(measured: Effects, title: str) -> Plot:
    """Relative loss increase of every component at every timestep."""
    largest = float(np.abs(measured.cells.estimate).max())

    def draw(theme: Theme) -> Figure:
        return maps.draw(theme, [measured], largest)

    return Plot(draw, f"map of {len(measured.components)} components by {len(measured.t)} timesteps: {title}")


def plot_ranked(
    names: Sequence[str],
    estimate: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    label: str,
    title: str,
) -> Plot:
    """Estimates with intervals, one per line, in the order given from the top."""

    def draw(theme: Theme) -> Figure:
        figure = style.figure(5.6, 0.6 + 0.22 * len(names), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(names))
        axes.axvline(0, color=theme.rule, lw=0.8)
        axes.hlines(rows, low, high, color=theme.muted, lw=1.2)
        axes.plot(estimate, rows, "o", color=theme.type_color("res"), ms=4)
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.set(xlabel=label)
        axes.set_title(title.replace(": ", ":\n"), fontsize=8)
        return figure

    return Plot(draw, f"{title}: {len(names)} rows with intervals")


def plot_course(
    steps: Sequence[int],
    lines: dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    title: str,
) -> Plot:
    """Relative loss increases over training steps: component -> estimate, low and high at every step."""

    def draw(theme: Theme) -> Figure:
        figure = style.figure(5.6, 3.2, layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=theme.rule, lw=0.8)
        colors = matplotlib.colormaps["tab10"].colors
        for number, (name, (estimate, low, high)) in enumerate(lines.items()):
            color = colors[number % len(colors)]
            axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
            axes.plot(steps, estimate, "o-", color=color, ms=3.5, lw=1.2, label=name)
        axes.set(xlabel="training step", ylabel="relative loss increase, %")
        axes.set_title(title, fontsize=8)
        axes.legend(fontsize=7, labelcolor=theme.ink)
        return figure

    return Plot(draw, f"{title}: {len(lines)} components over {len(steps)} steps")
