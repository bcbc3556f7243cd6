"""The attention atlas: statistics of every head at every timestep."""

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mechdiff.interventions.components import site_stage
from mechdiff.report import inline, style
from mechdiff.report.style import Theme

PANELS = {
    "entropy": "entropy H, nats",
    "normalized_entropy": "H / ln Nk",
    "mutual_information": "mutual information, nats",
    "distance": "attended distance, sides",
    "identity_mass": "weight on itself",
}
UNIT = ("normalized_entropy",)  # scale that always runs from 0 to 1
ROW, BREAK = 0.155, 0.35  # inches per head; rows between layers
LEFT, WIDE, APART, RIGHT, TOP, BOTTOM = 2.1, 1.68, 0.13, 0.1, 0.35, 0.98  # inches


def limits(datasets: list[xr.Dataset]) -> dict[str, tuple[float, float]]:
    """Ends of each statistic's color scale, the same for all models so that their figures are comparable."""
    ends, datasets = {}, [data for data in datasets if data.sizes["head"]]
    for name in PANELS:
        largest = max((float(data[name].mean("image").max()) for data in datasets), default=0.0)
        if name == "entropy":
            largest = max((float(np.log(data["tokens"].max())) for data in datasets), default=0.0)
        ends[name] = (0.0, 1.0 if name in UNIT else max(largest, 1e-6))
    return ends


def draw(theme: Theme, data: xr.Dataset, scale: dict[str, tuple[float, float]]) -> Figure:
    """Heads x timesteps, one panel per statistic, means over images; the entropy's scale marks ln Nk."""
    heads = [str(head) for head in data["head"].values]
    layers = [site_stage(head) for head in heads]
    starts = [i for i, layer in enumerate(layers) if i == 0 or layer != layers[i - 1]]
    tops = np.arange(len(heads)) + BREAK * (np.searchsorted(starts, np.arange(len(heads)), side="right") - 1)
    tall = float(tops[-1] + 1) if heads else 1.0
    width, height = LEFT + len(PANELS) * (WIDE + APART) + RIGHT, TOP + ROW * tall + BOTTOM
    figure = style.figure(width, height)
    for k, (name, title) in enumerate(PANELS.items()):
        left = (LEFT + k * (WIDE + APART)) / width
        axes = figure.add_axes((left, BOTTOM / height, WIDE / width, ROW * tall / height))
        _panel(axes, theme, data, name, tops, starts, scale[name])
        axes.set_title(title, pad=5, size=style.SMALL)
        bar = figure.add_axes((left + 0.08 / width, 0.34 / height, (WIDE - 0.16) / width, 0.085 / height))
        ceilings = [0.0, *np.log(np.unique(data["tokens"].values))] if name == "entropy" else []
        _bar(figure, bar, theme, scale[name], ceilings)
        if k == 0:
            _labels(axes, theme, data, tops)
            side = {"size": style.SMALL, "color": theme.muted, "ha": "right", "va": "center"}
            figure.text((LEFT - 0.08) / width, (BOTTOM - 0.12) / height, "log-SNR", **side)
    return figure


def _panel(axes: Axes, theme: Theme, data: xr.Dataset, name: str, tops, starts, ends) -> None:
    values = data[name].mean("image").transpose("head", "t").values
    timesteps = values.shape[1]
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        borders = np.append(tops[start:stop], tops[stop - 1] + 1)
        gid = inline.cells(name, list(range(start, stop)))
        look = {"cmap": theme.sequential, "norm": Normalize(*ends), "gid": gid}
        axes.pcolormesh(np.arange(timesteps + 1), borders, values[start:stop], **look)
    axes.set(xlim=(0, timesteps), ylim=(tops[-1] + 1, 0), yticks=[])
    labels = 3 if timesteps in (5, 6) else 4  # with four of so few, two would touch
    ticks = np.unique(np.linspace(0, timesteps - 1, min(timesteps, labels)).round().astype(int))
    log_snr = data["log_snr"].values
    _label_ends_inside(axes, ticks, [style.level_label(log_snr[j]) for j in ticks], timesteps)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label_ends_inside(axes: Axes, ticks: np.ndarray, labels: list[str], timesteps: int) -> None:
    """Labels below columns; the outermost end where the panel does, so that they miss those of the next."""
    positions = ticks + 0.5
    if len(ticks) > 1:
        positions[0], positions[-1] = 0.0, timesteps
    axes.set_xticks(positions, labels, size=style.SMALL)
    if len(ticks) > 1:
        first, *_, last = axes.get_xticklabels()
        first.set_ha("left")
        last.set_ha("right")


def _labels(axes: Axes, theme: Theme, data: xr.Dataset, tops: np.ndarray) -> None:
    across = axes.get_yaxis_transform()
    layout = {"ha": "right", "va": "center_baseline", "transform": across}
    for head, keys, top in zip(data["head"].values, data["tokens"].values, tops, strict=True):
        axes.text(-0.36, top + 0.5, str(head), size=style.SMALL, gid=inline.mark(str(head)), **layout)
        axes.text(-0.04, top + 0.5, f"Nk {keys}", size=style.SMALL, color=theme.muted, **layout)


def _bar(figure: Figure, bar: Axes, theme: Theme, ends: tuple[float, float], marks: list[float]) -> None:
    ticks = marks or [float(tick) for tick in np.linspace(*ends, 3)]
    style.key_of_colors(figure, bar, Normalize(*ends), colormaps[theme.sequential], ticks)
