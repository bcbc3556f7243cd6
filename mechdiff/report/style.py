"""Style of all figures: two themes, colors by component type, symlog scales, and saving."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, SymLogNorm
from matplotlib.figure import Figure

from mechdiff.report import inline
from mechdiff.storage import files

PIXELS = 96  # CSS pixels an inch
STEPS = 48  # of a color scale
SMALL = 8.3  # points: 11 CSS pixels, the smallest text of a figure
GROUND = "white"  # of figures in files of their own, which may go into a paper
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colors of a page; `type_colors` are Okabe and Ito's palette, which is safe for color-blind readers.

    Attributes:
      paper, ink, muted, rule: background, text, secondary text, hairlines.
      type_colors: component type -> color.
      diverging: colors of negative, zero (the paper) to large ΔL/L.
      sequential: name of a matplotlib color map.
    """

    name: str
    paper: str
    ink: str
    muted: str
    rule: str
    type_colors: dict[str, str]
    diverging: tuple[str, ...]
    sequential: str = "cividis"

    @property
    def effect_map(self) -> LinearSegmentedColormap:
        """Diverging color map; ΔL/L = 0 has the color of the paper."""
        return LinearSegmentedColormap.from_list(f"effects-{self.name}", self.diverging)

    def type_color(self, component_type: str) -> str:
        """Color of a component type."""
        return self.type_colors.get(component_type, self.muted)


LIGHT = Theme(
    name="light",
    paper="#fffefb",
    ink="#1d1d1f",
    muted="#6a6a70",
    rule="#d9d6cf",
    type_colors={"res": "#0072b2", "head": "#d55e00", "skip": "#009e73", "time": "#a5558d"}
    | {"class": "#8a6d00", "condition": "#1f8a99"},
    diverging=("#1f4e86", "#5b8fc0", "#b5cfe3", "#f3f1ec", "#f2cf9f", "#dc7f4d", "#8e1f2f"),
)
DARK = Theme(
    name="dark",
    paper="#17181b",
    ink="#e9e7e2",
    muted="#9c9ba0",
    rule="#3a3b40",
    type_colors={"res": "#56b4e9", "head": "#f0913e", "skip": "#2fc79a", "time": "#d896c2"}
    | {"class": "#e6c84f", "condition": "#7fd4e0"},
    diverging=("#9ad0ff", "#4f8fc9", "#2f4a66", "#26272b", "#6b3f2c", "#d97a3a", "#ffe08a"),
)
MARKERS = {"res": "o", "head": "s", "skip": "^", "time": "D", "class": "P", "condition": "X"}
TYPES = {  # component type -> what one is called
    "res": "residual branch",
    "head": "attention head",
    "skip": "skip tensor",
    "time": "time injection",
    "class": "class injection",
    "condition": "condition channels",
}
PLURALS = {
    "res": "residual branches",
    "head": "attention heads",
    "skip": "skip tensors",
    "time": "time injections",
    "class": "class injections",
    "condition": "condition channels",
}


@dataclass(frozen=True)
class PageFigure:
    """A figure ready for the page: inline SVG for both themes, size in CSS pixels, alternative text."""

    name: str
    svg: str
    width: int
    height: int
    alt: str


Number = float | int | np.number
Draw = Callable[[Theme], Figure]


_FIXED = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "mechdiff",
    "axes.unicode_minus": True,
}


def settings(theme: Theme) -> dict:
    """Matplotlib parameters of a theme."""
    lines = {key: theme.rule for key in ("axes.edgecolor", "grid.color")}
    texts = {key: theme.ink for key in ("text.color", "axes.labelcolor", "axes.titlecolor")}
    ticks = {f"{axis}tick.{key}": value for axis in "xy" for key, value in _ticks(theme).items()}
    return _FIXED | lines | texts | ticks


def _ticks(theme: Theme) -> dict:
    sizes = {"labelsize": SMALL, "major.size": 3, "major.width": 0.8}
    return {"color": theme.rule, "labelcolor": theme.muted, **sizes}


def page_figure(folder: Path, name: str, alt: str, draw: Draw) -> PageFigure:
    """A figure drawn in both themes; `folder` gets `name.svg`, `name-dark.svg` and `name.png`."""
    drawings, size, name = {}, (0, 0), re.sub(r"[^\w.-]+", "-", name)
    for theme in (LIGHT, DARK):
        with matplotlib.rc_context(settings(theme)):
            figure = draw(theme)
            data = svg(figure)
            if theme is LIGHT:
                size = tuple(round(side * PIXELS) for side in figure.get_size_inches())
                files.write_atomic(folder / f"{name}.png", _png(figure))
        suffix = "" if theme is LIGHT else "-dark"
        files.write_atomic(folder / f"{name}{suffix}.svg", data)
        drawings[theme.name] = data.decode()
    return PageFigure(name, inline.themed(drawings["light"], drawings["dark"], name, alt), *size, alt)


def svg(figure: Figure) -> bytes:
    """SVG bytes, deterministic, with text in the reader's sans-serif font."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!DOCTYPE.*?>\s*", "", text, flags=re.DOTALL)
    # Matplotlib's own font, as it writes it to 3.10 and since, would win over the page's.
    text = re.sub(r"font: ([\d.]+px) 'DejaVu Sans'", r"font-size: \1", text)
    text = text.replace("; font-family: 'DejaVu Sans'", "")
    return text.replace("<defs>", f"<style>text {{ font-family: {FONTS} }}</style>\n <defs>", 1).encode()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor=GROUND, metadata={"Software": None})
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """The bytes as a base64 data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def figure(width: float, height: float, **layout) -> Figure:
    """An empty figure; width and height in inches."""
    return Figure(figsize=(width, height), **layout)


def key_of_colors(
    figure: Figure, axes: Axes, norm: Normalize, colors: Colormap, ticks: Sequence[float]
) -> None:
    """A horizontal color scale in `axes`, in few steps to keep the drawing small, with `ticks` in numbers."""
    bar = figure.colorbar(ScalarMappable(norm, colors.resampled(STEPS)), cax=axes, orientation="horizontal")
    bar.set_ticks(ticks, labels=[number(tick) for tick in ticks])
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.5)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # no seams between the steps
    axes.tick_params(labelsize=SMALL)


def effect_norm(largest: Number) -> SymLogNorm:
    """Symmetric scale of ΔL/L in %, linear within +-1 % and logarithmic beyond, up to `largest`."""
    largest = max(2.0, float(largest))
    return SymLogNorm(linthresh=1.0, linscale=0.6, vmin=-largest, vmax=largest, base=10)


def symlog(axis: tuple[Axes, str], low: Number, high: Number, threshold: float = 1.0) -> None:
    """Makes `axis`, axes and "x" or "y", symlog with decade ticks, between two ends.

    Args:
      threshold: numbers of at most this size lie on a linear scale.
    """
    axes, which = axis
    getattr(axes, f"set_{which}scale")("symlog", linthresh=threshold, linscale=0.6)
    getattr(axes, f"set_{which}lim")(low, high)
    ticks = [tick for tick in decades(max(abs(low), abs(high))) if low <= tick <= high]
    getattr(axes, f"set_{which}ticks")(ticks, [number(tick) for tick in ticks], minor=False)
    getattr(axes, f"set_{which}ticks")([], minor=True)


def decades(largest: Number) -> list[float]:
    """0 and powers of ten of both signs, up to `largest`; every second power where there are many."""
    last = int(np.floor(np.log10(max(largest, 1))))
    powers = [10.0**k for k in range(0, last + 1, 1 if last < 4 else 2)]
    return [-power for power in reversed(powers)] + [0.0, *powers]


def number(value: Number) -> str:
    """A number for a label: three digits at most, k for thousands, a true minus sign."""
    size = abs(value)
    if size == 0 or size < 0.005:
        return "0"
    if size >= 999.5:
        scaled = size / 1000
        text = f"{scaled:.0f}k" if scaled >= 9.95 or abs(scaled - round(scaled)) < 0.05 else f"{scaled:.1f}k"
    else:
        text = f"{size:.0f}" if size >= 99.5 else f"{size:.3g}" if size >= 1 else f"{size:.2g}"
    return ("−" if value < 0 else "") + text


def level_label(log_snr: Number) -> str:
    """log-SNR as a tick label, with its sign."""
    return f"{log_snr:+.1f}".replace("-", "−")


def readable_on(color: Any) -> str:
    """Black or white, whichever has more contrast on `color` (relative luminance, WCAG 2)."""
    rgb = np.asarray(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "#111111" if linear @ np.array([0.2126, 0.7152, 0.0722]) > 0.18 else "#ffffff"
