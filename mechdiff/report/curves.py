"""Training curves: loss by training step, and by timestep (log-SNR)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mechdiff.report import style
from mechdiff.report.style import Theme
from mechdiff.study.examined_model import ExaminedModel


def draw(theme: Theme, model: ExaminedModel) -> Figure:
    """Left: loss by step. Right: held-out loss by log-SNR, from early to last evaluation."""
    figure = style.figure(6.4, 2.75)  # as wide as the space next to the samples on the page
    left = figure.add_axes((0.08, 0.175, 0.39, 0.71))
    right = figure.add_axes((0.595, 0.175, 0.39, 0.71))
    log = model.record.get("log") or []
    _steps(left, theme, [row for row in log if row.get("kind") == "train"], _evaluations(log))
    _levels(right, theme, model, _evaluations(log))
    return figure


def _evaluations(log: list[dict]) -> list[dict]:
    return [row for row in log if row.get("kind") == "eval"]


def _steps(axes: Axes, theme: Theme, train: list[dict], evaluated: list[dict]) -> None:
    steps = [row["step"] for row in train]
    loss = [_number(row["loss"]) for row in train]
    axes.plot(steps, loss, color=theme.type_color("res"), lw=0.9, alpha=0.55, label="training batches")
    steps = [row["step"] for row in evaluated]
    look = {"ms": 3.2, "lw": 1.1}
    train_loss = [_number(row["train_loss"]) for row in evaluated]
    test_loss = [_number(row["test_loss"]) for row in evaluated]
    axes.plot(steps, train_loss, "s-", color=theme.type_color("skip"), label="training images, EMA", **look)
    axes.plot(steps, test_loss, "o-", color=theme.type_color("head"), label="held-out images, EMA", **look)
    axes.set(yscale="log", xlabel="step", title="denoising loss by step")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: style.number(value))
    _plain_log(axes)
    axes.legend(fontsize=style.SMALL, labelcolor=theme.ink, handlelength=1.6)


def _levels(axes: Axes, theme: Theme, model: ExaminedModel, evaluated: list[dict]) -> None:
    """The last evaluation opaque, up to five earlier ones paler."""
    indices = np.unique(np.linspace(0, len(evaluated) - 1, 6).astype(int)) if evaluated else ()
    chosen = [evaluated[i] for i in indices]
    for k, row in enumerate(chosen):
        last = k == len(chosen) - 1
        x = model.log_snr[np.asarray(row["levels"], int)]
        look = {"color": theme.type_color("head"), "alpha": 1.0 if last else 0.2 + 0.4 * k / len(chosen)}
        test_loss = [_number(value) for value in row["test_loss_by_level"]]
        label = f"held-out, step {row['step']:,}" if last else "earlier evaluations" if k == 0 else None
        axes.plot(x, test_loss, "o-" if last else "-", ms=3.2, lw=1.2 if last else 0.9, label=label, **look)
        if last:
            train_loss = [_number(value) for value in row["train_loss_by_level"]]
            label = f"training images, step {row['step']:,}"
            axes.plot(x, train_loss, "s--", ms=3, lw=1, color=theme.type_color("skip"), label=label)
    axes.set(yscale="log", xlabel="log-SNR (clean to the left)", title="denoising loss by timestep")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.invert_xaxis()
    _plain_log(axes)
    if chosen:
        axes.legend(fontsize=style.SMALL, labelcolor=theme.ink, handlelength=1.6)


def _plain_log(axes: Axes) -> None:
    """A logarithmic axis labelled with plain numbers."""
    low, high = axes.get_ylim()
    ticks = [m * 10.0**k for k in range(-8, 4) for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    if len(ticks) > 7:
        ticks = [10.0**k for k in range(-8, 4) if low <= 10.0**k <= high]
    elif len(ticks) < 3:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:.6g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y")


def _number(value) -> float:
    """A logged number; one that was not finite was logged as null."""
    return np.nan if value is None else float(value)
