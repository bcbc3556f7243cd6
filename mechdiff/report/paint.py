"""Colors and numbers of components in a diagram of a network."""

from matplotlib.axes import Axes

from mechdiff.analysis.effects import EffectGrid
from mechdiff.report import inline, style
from mechdiff.report.style import Theme, number

POOLED = "pooled ΔL/L, %"  # what the numbers of a diagram are


class Paint:
    """Colors and numbers of components."""

    def __init__(self, theme: Theme, increase: EffectGrid, largest: float):
        self.theme, self.ablation = theme, increase.ablation
        self.norm, self.map = style.effect_norm(largest), theme.effect_map
        self.value = dict(zip(increase.components, increase.pooled.estimate, strict=True))
        self.idle = {name for name, idle in zip(increase.components, increase.idle, strict=True) if idle}

    def fill(self, name: str) -> dict:
        """Face and edge of a component; one that is not measured or idle is empty and dotted."""
        if name not in self.value or name in self.idle:
            return {**plain(self.theme), "linestyle": ":", "gid": inline.mark(name, self.ablation)}
        return {**plain(self.theme), "facecolor": self.color(name), "gid": inline.mark(name, self.ablation)}

    def color(self, name: str):
        """The color of a component's number."""
        return self.map(self.norm(self.value[name]))

    def label(self, axes: Axes, name: str, x: float, y: float, size: float = style.SMALL) -> None:
        """Writes the pooled ΔL/L of a component, in %, on it."""
        if name in self.value and name not in self.idle:
            ink = style.readable_on(self.color(name))
            axes.text(x, y, short(self.value[name]), size=size, color=ink, ha="center", va="center_baseline")


def short(value: float) -> str:
    """A number that fits a box of the diagram: one decimal below 10 %, none for what rounds to zero."""
    if abs(value) < 0.05:
        return "0"
    return number(round(value, 1)) if abs(value) < 10 else number(round(value))


def plain(theme: Theme) -> dict:
    """Face and edge of a shape that has no number."""
    return {"facecolor": theme.paper, "edgecolor": theme.muted, "linewidth": 0.7}
