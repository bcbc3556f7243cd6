"""Effects over training: what each component came to do, from several snapshots of one run."""

import json
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from mechdiff.core.config import to_dict
from mechdiff.report import findings, style
from mechdiff.report.style import Theme
from mechdiff.study.claims import across_seeds
from mechdiff.study.examined_model import ExaminedModel

SHOWN = 6  # components with a color and a name; the others are gray
LOG_SPAN = 8  # the axis of steps is logarithmic if the last step is at least so many times the first


@dataclass(frozen=True)
class Training:
    """Pooled relative loss increases of one run's snapshots, in %, with 95 % intervals over images.

    Attributes:
      name: of the run.
      ablation: under which they were measured.
      steps: of training, ascending.
      components, component_type: their names and types.
      estimate, low, high: `[step, component]`.
      counted: numbers of images and people in words, see `findings.images`; by step where they differ.
    """

    name: str
    ablation: str
    steps: Int[np.ndarray, " steps"]
    components: tuple[str, ...]
    component_type: tuple[str, ...]
    estimate: Float[np.ndarray, "steps components"]
    low: Float[np.ndarray, "steps components"]
    high: Float[np.ndarray, "steps components"]
    counted: str

    @property
    def largest(self) -> Int[np.ndarray, " shown"]:
        """The components that ever had the largest increases, by the largest of each."""
        return np.argsort(-self.estimate.max(0), kind="stable")[:SHOWN]


def trainings(models: list[ExaminedModel], shown: list[ExaminedModel] | None = None) -> list[Training]:
    """Each run of which several snapshots were examined, under the same ablation and on the same images.

    Args:
      shown: only runs of which one of these models is a snapshot; None: all.
    """
    runs: dict[str, list[ExaminedModel]] = {}
    for model in models:
        if model.record.get("steps"):
            runs.setdefault(_run(model), []).append(model)
    shown = models if shown is None else shown
    chosen = [run for run in runs.values() if any(model is other for model in run for other in shown)]
    return [_training(_by_step(run)) for run in chosen if len(_by_step(run)) > 1]


def draw(theme: Theme, training: Training) -> Figure:
    """Pooled ΔL/L by training step: the largest with intervals, colored by their type, the others gray."""
    figure = style.figure(7.4, 3.1)
    axes = figure.add_axes((0.085, 0.155, 0.66, 0.755))
    largest = training.largest
    for component in np.setdiff1d(np.arange(len(training.components)), largest):
        axes.plot(training.steps, training.estimate[:, component], color=theme.muted, lw=0.6, alpha=0.35)
    for rank, component in enumerate(largest):
        color = theme.type_color(training.component_type[component])
        look = {"color": color, "ls": ("-", "--", ":")[rank % 3], "lw": 1.3, "ms": 3.4}
        marker = style.MARKERS.get(training.component_type[component], "o")
        name = training.components[component]
        axes.plot(training.steps, training.estimate[:, component], marker=marker, label=name, **look)
        low, high = training.low[:, component], training.high[:, component]
        axes.fill_between(training.steps, low, high, color=color, alpha=0.13, lw=0)
    low = min(-0.3, 1.2 * float(training.low.min()))
    style.symlog((axes, "y"), low, max(1.5, 1.25 * float(training.high.max())))
    if training.steps[-1] >= LOG_SPAN * training.steps[0]:
        axes.set_xscale("log")
    axes.set_xticks(training.steps, [style.number(step) for step in training.steps])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training step", title=f"pooled ΔL/L, %, {training.ablation} ablation")
    axes.axhline(0, color=theme.muted, lw=0.8)
    axes.grid(axis="y")
    layout = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend(fontsize=style.SMALL, labelcolor=theme.ink, handlelength=2.4, **layout)
    return figure


def _run(model: ExaminedModel) -> str:
    """What is equal in all snapshots of a run that were examined alike."""
    config = to_dict(model.config)
    kept = {name: config[name] for name in ("seed", "data", "unet", "diffusion")}
    train = {name: value for name, value in config["train"].items() if name not in ("steps", "keep")}
    components = [str(name) for name in model.sweep["component"].values]
    examined = [model.examined_on, model.seed, across_seeds.lead_ablation(model.sweep), components]
    return json.dumps([kept, train, examined], sort_keys=True)


def _by_step(run: list[ExaminedModel]) -> dict[int, ExaminedModel]:
    return {
        int(model.record["steps"]): model for model in sorted(run, key=lambda model: model.record["steps"])
    }


def _training(snapshots: dict[int, ExaminedModel]) -> Training:
    last = list(snapshots.values())[-1]
    pooled = [model.lead.pooled for model in snapshots.values()]
    return Training(
        name=last.name.partition("@")[0],
        ablation=last.lead.ablation,
        steps=np.array(list(snapshots)),
        components=tuple(map(str, last.lead.components)),
        component_type=tuple(map(str, last.lead.component_type)),
        estimate=np.array([interval.estimate for interval in pooled]),
        low=np.array([interval.low for interval in pooled]),
        high=np.array([interval.high for interval in pooled]),
        counted=_counted(snapshots),
    )


def _counted(snapshots: dict[int, ExaminedModel]) -> str:
    steps: dict[str, list[str]] = {}
    for step, model in snapshots.items():
        steps.setdefault(findings.images(model), []).append(f"{step:,}")
    if len(steps) == 1:
        return f"{next(iter(steps))}, with the same noise"
    return "; ".join(f"{images} (at step {' and '.join(at)})" for images, at in steps.items())
