"""Figures and a table over networks of several training seeds and data sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechdiff.analysis import network_divergence
from mechdiff.analysis.roles import matching
from mechdiff.circuits import scorecards
from mechdiff.circuits.scorecards import Scorecard
from mechdiff.report import inline, style
from mechdiff.report.style import Theme
from mechdiff.stats import Interval
from mechdiff.study.claims import across_seeds
from mechdiff.study.examined_model import ExaminedModel
from mechdiff.study.network_results import NetworkResults

PAPER_RATIO = (1.084 - 0.008, 1.084 + 0.008)  # complexity, abstract of arXiv 2506.17237
PAPER_DIVERGENCE = (0.015, 0.166)  # nats, the same
SHOWN = 18  # components in the figure of relative loss increase
SIDES = {  # name of data -> label of its networks, component type whose color they take, marker
    "celeba": ("CelebA", "head", "o"),
    "tfds": ("CelebA", "head", "o"),
    "synthetic": ("synthetic faces", "res", "s"),
}
MARKS = "os^DvPX<>*d"  # of the training seeds of one data set; of more, the next are hollow
OTHERS = ("other images", "skip", "^")


@dataclass(frozen=True)
class Row:
    """One network in the table of all.

    Attributes:
      effective: effective number of components of relative loss increase.
      largest: ablation -> the component with the largest pooled |ΔL/L|, and its ΔL/L in %.
      circuits: ablation -> scorecard of its circuit.
      roles: role -> heads that have it; None if roles were not examined.
    """

    model: ExaminedModel
    effective: float
    largest: dict[str, tuple[str, float]]
    circuits: dict[str, Scorecard]
    roles: dict[str, list[str]] | None


def rows(models: Sequence[ExaminedModel]) -> list[Row]:
    """The rows of the table over all networks."""
    return [_row(model) for model in models]


def _row(model: ExaminedModel) -> Row:
    network, largest, roles = model.results, {}, None
    for ablation in map(str, network.sweep["ablation"].values):
        increase = across_seeds.relative_increases(network.sweep, ablation)
        index = np.abs(increase).argmax()
        largest[ablation] = str(network.sweep["component"].values[index]), float(increase[index])
    if network.roles is not None:
        roles = {}
        for head, role in zip(network.roles["component"].values, network.roles["role"].values, strict=True):
            if role != matching.UNASSIGNED:
                roles.setdefault(str(role), []).append(str(head))
    circuits = {ablation: scorecards.measure(runs) for ablation, runs in network.circuits.items()}
    effective = across_seeds.effective_number(network.sweep, across_seeds.lead_ablation(network.sweep))
    return Row(model, effective, largest, circuits, roles)


def draw_ratios(theme: Theme, ratios: dict[str, Interval]) -> Figure:
    """Ratios of complexity by every measure: networks of CelebA over those of synthetic faces."""
    height = 1.05 + 0.26 * len(ratios)
    figure = style.figure(6.4, height)
    axes = figure.add_axes((0.40, 0.55 / height, 0.58, (height - 0.95) / height))
    axes.axvspan(*PAPER_RATIO, color=theme.muted, alpha=0.25, lw=0)
    axes.text(
        np.mean(PAPER_RATIO),
        -0.75,
        "the paper",
        size=style.SMALL,
        ha="center",
        va="bottom",
        color=theme.muted,
    )
    for y, (name, ratio) in enumerate(ratios.items()):
        color = theme.muted if name.startswith("untrained") else theme.type_color("head")
        axes.plot([ratio.low, ratio.high], [y, y], color=color, lw=1.4, solid_capstyle="butt")
        axes.plot(ratio.estimate, y, "o", ms=4.6, color=color)
    axes.axvline(1, color=theme.ink, lw=0.8)
    axes.set(
        ylim=(len(ratios) - 0.4, -0.7),
        xlabel="CelebA / synthetic faces, with 95 % interval",
    )
    axes.set_yticks(range(len(ratios)), list(ratios), color=theme.ink, size=style.SMALL)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure


def _shape(rank: int) -> dict:
    """Matplotlib's settings of a mark: no two alike among the first twice as many as there are `MARKS`."""
    hollow = rank // len(MARKS) % 2
    filling = {"mfc": "none", "mew": 1.0} if hollow else {"mew": 0}
    return {"marker": MARKS[rank % len(MARKS)], **filling}


def draw_increases(theme: Theme, networks: Sequence[NetworkResults]) -> Figure:
    """Pooled ΔL/L of the components with the largest median: a mark for every network, each named in the key,
    and a line over those of one data set of several. Color: data set; shape: place among its seeds."""
    names = [str(name) for name in networks[0].sweep["component"].values]
    ablation = across_seeds.lead_ablation(networks[0].sweep)
    increase = np.array([across_seeds.relative_increases(network.sweep, ablation) for network in networks])
    order = np.argsort(-np.median(increase, axis=0), kind="stable")[:SHOWN]
    sides: dict[tuple[str, str, str], list[int]] = {}
    for i, network in enumerate(networks):
        sides.setdefault(SIDES.get(network.data, OTHERS), []).append(i)
    height = 1.05 + max(0.25 * len(order), 0.19 * (len(networks) + len(sides)))
    figure = style.figure(8.6, height)
    axes = figure.add_axes((0.21, 0.55 / height, 0.53, (height - 0.75) / height))
    for number, (side, members) in enumerate(sorted(sides.items())):
        shift = 0.34 * (number - (len(sides) - 1) / 2)
        if len(members) > 1:
            _seeds(axes, theme.type_color(side[1]), shift, increase[np.ix_(members, order)])
        for rank, i in enumerate(members):
            look = {"color": theme.type_color(side[1]), "ms": 4.4} | _shape(rank)
            axes.plot([], [], ls="", label=networks[i].name, **look)  # the key's entry
            for y, component in enumerate(order):
                value = float(increase[i, component])
                text = f"{networks[i].name}: pooled ΔL/L {style.number(value)} %, {ablation} ablation"
                gid = inline.told(names[component], text)
                axes.plot(value, y + shift, alpha=0.8, gid=gid, **look)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel=f"pooled ΔL/L, %, {ablation} ablation; a mark a network")
    axes.set_yticks(range(len(order)), [names[i] for i in order], color=theme.ink, size=style.SMALL)
    axes.tick_params(axis="y", length=0)
    shown = increase[:, order]
    style.symlog((axes, "x"), min(-0.3, 1.3 * float(shown.min())), max(1.5, 1.3 * float(shown.max())))
    axes.grid(axis="x")
    axes.grid(axis="y", alpha=0.5)
    axes.spines["left"].set_visible(False)
    layout = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0}
    axes.legend(fontsize=style.SMALL, labelcolor=theme.ink, handletextpad=0.3, labelspacing=0.35, **layout)
    return figure


def _seeds(axes: Axes, color: str, shift: float, increase: Float[np.ndarray, "network component"]) -> None:
    """For each component a line from the least to the largest network of one data set, and a tick at their
    mean."""
    rows = np.arange(increase.shape[1]) + shift
    axes.hlines(rows, increase.min(axis=0), increase.max(axis=0), color=color, lw=0.9, alpha=0.6)
    axes.vlines(increase.mean(axis=0), rows - 0.14, rows + 0.14, color=color, lw=1.4)


def draw_divergence(
    theme: Theme, natural: Sequence[NetworkResults], simple: Sequence[NetworkResults]
) -> Figure:
    """Entropy divergence by timestep: between data sets, and between training seeds of one."""
    profiles = [
        np.array(
            [network.attention["entropy"].mean("image").transpose("head", "t").values for network in side]
        )
        for side in (natural, simple)
    ]
    layers = matching.layers_of(natural[0].attention["head"].values)
    divergence = network_divergence.compare(profiles[0], profiles[1], layers)
    between, within, p = divergence.between, divergence.within, divergence.p_by_t
    x = natural[0].attention["log_snr"].values
    figure = style.figure(6.4, 3.1)
    axes = figure.add_axes((0.10, 0.16, 0.88, 0.73))
    axes.axhspan(*PAPER_DIVERGENCE, color=theme.muted, alpha=0.16, lw=0)
    axes.text(
        x.max(), PAPER_DIVERGENCE[1], " the paper's range ", size=style.SMALL, va="bottom", color=theme.muted
    )
    axes.plot(x, between, "o-", ms=3.6, lw=1.2, color=theme.type_color("head"), label="between data sets")
    axes.plot(
        x, within, "s-", ms=3.2, lw=1.2, color=theme.type_color("res"), label="between seeds of one data set"
    )
    significant = p < 0.05
    axes.plot(
        x[significant],
        between[significant],
        "o",
        ms=7,
        mfc="none",
        color=theme.ink,
        mew=0.8,
        label="relabeling p < 0.05",
    )
    axes.set(
        ylim=(0, None),
        xlabel="log-SNR (clean to the left)",
        ylabel="root mean square over matched heads, nats",
    )
    axes.invert_xaxis()
    axes.grid(axis="y")
    _key(axes, theme)
    return figure


def draw_ladder(theme: Theme, ladder: dict[int, list[float]]) -> Figure:
    """Effective number of components by complexity of synthetic faces, a mark for every training seed."""
    figure = style.figure(4.4, 2.9)
    axes = figure.add_axes((0.14, 0.17, 0.83, 0.74))
    for complexity, values in ladder.items():
        axes.plot(
            [complexity] * len(values), values, "o", ms=4.6, color=theme.type_color("res"), alpha=0.75, mew=0
        )
    means = [np.mean(values) for values in ladder.values()]
    axes.plot(list(ladder), means, color=theme.type_color("res"), lw=1)
    axes.set(xlabel="complexity of the synthetic faces", ylabel="effective components")
    axes.set_xticks(list(ladder))
    axes.grid(axis="y")
    return figure


def _key(axes: Axes, theme: Theme) -> None:
    layout = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3, "borderaxespad": 0}
    axes.legend(fontsize=style.SMALL, labelcolor=theme.ink, handletextpad=0.3, columnspacing=1.2, **layout)
