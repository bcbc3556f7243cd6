"""The report's numbers: pure functions from examined models to plain records, no drawing, no HTML."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mechdiff import stats
from mechdiff.analysis import agreement, effects, precision
from mechdiff.analysis.effects import Effects
from mechdiff.core.errors import ConfigError
from mechdiff.report.maps import ALPHA
from mechdiff.stats import Interval
from mechdiff.stats.intervals import Statistic
from mechdiff.study.examined_model import ExaminedModel
from mechdiff.study.network_results import STATISTICS

SHARES = ("normalized_entropy", "identity_mass")  # statistics of attention that lie within [0, 1]
TOP = 10  # highest-ranked components compared between models


@dataclass(frozen=True)
class Value:
    """An estimate with the ends of its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Extent:
    """Components with the smallest and the largest pooled relative loss increase (ΔL/L, in %) of one model
    under one ablation, among those whose ablation changed a prediction."""

    model: ExaminedModel
    increase: Effects
    least: str
    low: Value
    most: str
    high: Value
    losses: tuple[float, float]  # range of the ratio of pooled losses, %
    cells: tuple[float, float]  # range of ΔL/L of single components at single timesteps, %


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of pooled ΔL/L between two sides, and how many of the `TOP` they share."""

    first: str
    second: str
    relation: str
    value: Value
    components: int
    shared: int
    n: int


def value(interval: Interval, *index) -> Value:
    """One cell of an interval."""
    return Value(*(float(np.asarray(end)[index]) for end in (interval.estimate, interval.low, interval.high)))


def seeds(models: list[ExaminedModel]) -> dict[str, int]:
    """Data set -> number of distinct training seeds among the models."""
    pairs = {(model.data, model.config.seed) for model in models}
    return dict(Counter(data for data, _ in pairs))


def training_seeds(models: Sequence[ExaminedModel]) -> str:
    """Training seeds of several networks in words, each once; empty where a foreign file does not hold them.

    Example:
      >>> training_seeds(models)  # doctest: +SKIP
      'training seeds 0, 1'
    """
    if any(model.config.data.name == "unknown" for model in models):
        return ""
    distinct = sorted({model.config.seed for model in models})
    text = f"training {'seed' if len(distinct) == 1 else 'seeds'} {', '.join(map(str, distinct))}"
    if len(distinct) == len(models):
        return text
    return f"{text}: those of one seed are states of one training or variants, not replicates"


def largest(increase: Effects) -> int | None:
    """The index of the component with the largest pooled |ΔL/L|, among those whose ablation changed a
    prediction; None where none did."""
    active = np.flatnonzero(~increase.idle)
    return int(active[np.abs(increase.pooled.estimate[active]).argmax()]) if len(active) else None


def extent(model: ExaminedModel, increase: Effects) -> Extent | None:
    """The range of pooled ΔL/L over components; None where no ablation changed any prediction."""
    active = np.flatnonzero(~increase.idle)
    if not len(active):
        return None
    pooled = increase.pooled.estimate
    least, most = active[pooled[active].argmin()], active[pooled[active].argmax()]

    def span(values: np.ndarray) -> tuple[float, float]:
        return float(values[active].min()), float(values[active].max())

    return Extent(
        model=model,
        increase=increase,
        least=increase.components[least],
        low=value(increase.pooled, least),
        most=increase.components[most],
        high=value(increase.pooled, most),
        losses=span(increase.pooled_losses.estimate),
        cells=span(increase.cells.estimate),
    )


def between_ablations(model: ExaminedModel) -> list[Agreement]:
    """Agreement of every two ablations of one model."""
    agreements = []
    for first, second in itertools.combinations(model.increases.values(), 2):
        try:
            interval = agreement.of_ablations(model.sweep, first.ablation, second.ablation)
        except ConfigError:  # too few components in common
            continue
        agreements.append(_agreement(first, second, first.ablation, second.ablation, "ablation", interval))
    return agreements


def between_models(models: list[ExaminedModel], ablation: str) -> list[Agreement]:
    """Agreement of every two models under one ablation, where both have it."""
    agreements = []
    for first, second in itertools.combinations(models, 2):
        if ablation not in first.increases or ablation not in second.increases:
            continue
        try:
            interval = agreement.of_denoisers(first.sweep, second.sweep, ablation)
        except ConfigError:
            continue
        relation = _relation(first, second)
        effects_of_first, effects_of_second = first.increases[ablation], second.increases[ablation]
        agreements.append(
            _agreement(effects_of_first, effects_of_second, first.name, second.name, relation, interval)
        )
    return agreements


def _relation(first: ExaminedModel, second: ExaminedModel) -> str:
    """How two models' trainings differ, in words."""
    if "unknown" in (first.config.data.name, second.config.data.name):
        return "training not known"
    if first.data != second.data:
        return "other data"
    return f"same data, {'same' if first.config.seed == second.config.seed else 'other'} seed"


def _agreement(
    first: Effects, second: Effects, name: str, other_name: str, relation: str, interval: Interval
) -> Agreement:
    common = active(first) & active(second)
    ranked = [[side.components[i] for i in side.order] for side in (first, second)]
    tops = [{*[name for name in names if name in common][:TOP]} for names in ranked]
    shared = len(tops[0] & tops[1])
    return Agreement(name, other_name, relation, value(interval), len(common), shared, interval.n)


def active(increase: Effects) -> set[str]:
    """Components whose ablation changed a prediction beyond rounding."""
    return set(increase.components) - set(idle(increase))


def idle(increase: Effects) -> list[str]:
    """Components whose ablation changed no prediction beyond rounding."""
    return [name for name, unchanged in zip(increase.components, increase.idle, strict=True) if unchanged]


def significant_cells(increase: Effects) -> tuple[int, int]:
    """Significant cells of the map (max-T): how many raise the loss, how many lower it."""
    significant = increase.p < ALPHA
    raised, lowered = increase.cells.estimate > 0, increase.cells.estimate < 0
    return int((significant & raised).sum()), int((significant & lowered).sum())


def component_type_means(model: ExaminedModel, ablation: str) -> dict[str, tuple[int, Value]]:
    """Component type -> number of components that are not idle, and the mean of their pooled ΔL/L."""
    increase = model.increases[ablation]
    clean, loss = effects.losses(model.sweep, ablation)
    units, means = stats.units_of(model.sweep), {}
    for component_type in dict.fromkeys(increase.component_type):
        same_type = [other == component_type for other in increase.component_type]
        rows = np.flatnonzero(np.array(same_type) & ~increase.idle)
        if len(rows):

            def mean(weights: np.ndarray, rows: np.ndarray = rows) -> np.ndarray:
                return effects.pooled_relative_increase(clean, loss[rows], weights).mean(axis=0)

            interval = stats.bootstrap_units(mean, units, student=True)
            interval = precision.possible(interval, increase.precision_error[rows].mean())
            means[component_type] = len(rows), value(interval)
    return dict(sorted(means.items(), key=lambda item: -item[1][1].estimate))


def attention_intervals(data: xr.Dataset) -> dict[str, Interval]:
    """Mean over images of each statistic with its bootstrap interval, `[head, t]`."""
    units = stats.units_of(data)
    cells = {name: data[name].transpose("head", "t", "image").values for name in STATISTICS}
    return {
        name: _of_attention(lambda w, values=values: stats.weighted_mean(values, w), units, name)
        for name, values in cells.items()
    }


def _of_attention(statistic: Statistic, units: stats.Units, name: str) -> Interval:
    """The interval of a mean of an attention statistic, at least as wide as Student's, within what is
    possible: 0 or more, and of shares 1 or less."""
    interval = stats.bootstrap_units(statistic, units, student=True)
    most = 1.0 if name in SHARES else np.inf
    low, high = (np.clip(end, 0, most) for end in (interval.low, interval.high))
    return dataclasses.replace(interval, low=low, high=high)


def attention_extremes(data: xr.Dataset) -> dict[str, tuple[str, Value]]:
    """The most focused and the most diffuse head, by normalized entropy H / ln Nk averaged over timesteps."""
    values = data["normalized_entropy"].transpose("head", "t", "image").values
    interval = _of_attention(
        lambda w: stats.weighted_mean(values, w).mean(axis=1), stats.units_of(data), "normalized_entropy"
    )
    heads = {"focused": interval.estimate.argmin(), "diffuse": interval.estimate.argmax()}
    return {word: (str(data["head"].values[i]), value(interval, i)) for word, i in heads.items()}


def attention_ends(data: xr.Dataset) -> tuple[Value, Value]:
    """H / ln Nk averaged over heads, at the least and at the most noisy timestep."""
    ordered = data.sortby("log_snr", ascending=False)
    values = ordered["normalized_entropy"].mean("head").transpose("t", "image").values
    interval = _of_attention(
        lambda w: stats.weighted_mean(values, w), stats.units_of(ordered), "normalized_entropy"
    )
    return value(interval, 0), value(interval, -1)
