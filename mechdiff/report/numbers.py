"""What the report says in numbers: pure functions from subjects to plain records, no drawing, no HTML."""

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.analysis.effects import Effects
from mechdiff.core.errors import ConfigError
from mechdiff.report.maps import ALPHA
from mechdiff.stats import Interval
from mechdiff.study.records import STATISTICS, ExaminedModel

TOP = 10  # bottlenecks compared between subjects


@dataclass(frozen=True)
class Value:
    """An estimate with the ends of its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Extent:
    """Least and most damaging component of one subject under one kind, among those that changed anything."""

    model: ExaminedModel
    damage: Effects
    least: str
    low: Value
    most: str
    high: Value
    losses: tuple[float, float]  # the same extent for the ratio of pooled losses
    cells: tuple[float, float]  # and for Deg% of single components at single levels


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of pooled Deg% between two sides, and how many of the `TOP` they share."""

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
    """Data set -> number of distinct training seeds among the subjects."""
    pairs = {(model.data, model.config.seed) for model in models}
    return dict(Counter(data for data, _ in pairs))


def extent(model: ExaminedModel, damage: Effects) -> Extent | None:
    """The range of damage over components; None where no component changed anything."""
    active = np.flatnonzero(~damage.idle)
    if not len(active):
        return None
    pooled = damage.pooled.estimate
    least, most = active[pooled[active].argmin()], active[pooled[active].argmax()]
    span = lambda values: (float(values[active].min()), float(values[active].max()))
    return Extent(
        model,
        damage,
        damage.components[least],
        value(damage.pooled, least),
        damage.components[most],
        value(damage.pooled, most),
        span(damage.pooled_losses.estimate),
        span(damage.cells.estimate),
    )


def between_kinds(model: ExaminedModel) -> list[Agreement]:
    """Agreement of every two kinds of ablation of one subject."""
    found = []
    for first, second in itertools.combinations(model.damages.values(), 2):
        try:
            interval = effects.ablations_agreement(model.sweep, first.ablation, second.ablation)
        except ConfigError:  # too few components in common
            continue
        found.append(
            _agreement(first, second, first.ablation, second.ablation, "kinds of ablation", interval)
        )
    return found


def between_subjects(models: list[ExaminedModel], ablation: str) -> list[Agreement]:
    """Agreement of every two subjects under one kind of ablation, where both have it."""
    found = []
    for first, second in itertools.combinations(models, 2):
        if ablation not in first.damages or ablation not in second.damages:
            continue
        try:
            interval = effects.denoisers_agreement(first.sweep, second.sweep, ablation)
        except ConfigError:
            continue
        relation = "same data, other seed" if first.data == second.data else "other data"
        sides = first.damages[ablation], second.damages[ablation]
        found.append(_agreement(*sides, first.name, second.name, relation, interval))
    return found


def _agreement(
    first: Effects, second: Effects, one: str, other: str, relation: str, interval: Interval
) -> Agreement:
    common = active(first) & active(second)
    ranked = [[side.components[i] for i in side.order] for side in (first, second)]
    tops = [{*[name for name in names if name in common][:TOP]} for names in ranked]
    shared = len(tops[0] & tops[1])
    return Agreement(one, other, relation, value(interval), len(common), shared, interval.n)


def active(damage: Effects) -> set[str]:
    """Components whose ablation changed something."""
    return set(damage.components) - set(idle(damage))


def idle(damage: Effects) -> list[str]:
    """Components whose ablation changed nothing."""
    return [name for name, still in zip(damage.components, damage.idle) if still]


def told_apart(damage: Effects) -> tuple[int, int]:
    """Cells of the map that differ from no change (max-T): how many raise the loss, how many lower it."""
    sure = damage.p < ALPHA
    return int((sure & (damage.cells.estimate > 0)).sum()), int((sure & (damage.cells.estimate < 0)).sum())


def part_means(model: ExaminedModel, ablation: str) -> dict[str, tuple[int, Value]]:
    """Kind of component -> how many of them changed anything, and the mean of their pooled Deg%."""
    damage = model.damages[ablation]
    clean, loss = effects.losses(model.sweep, ablation)
    units, found = stats.units_of(model.sweep), {}
    for part in dict.fromkeys(damage.part):
        rows = [i for i, own in enumerate(damage.part) if own == part and not damage.idle[i]]
        if rows:
            mean = lambda w, rows=rows: effects.pooled_relative_increase(clean, loss[rows], w).mean(axis=0)
            found[part] = len(rows), value(stats.bootstrap_units(mean, units))
    return dict(sorted(found.items(), key=lambda item: -item[1][1].estimate))


def attention_intervals(data: xr.Dataset) -> dict[str, Interval]:
    """Mean over images of each statistic with its bootstrap interval, `[head, t]`."""
    units = stats.units_of(data)
    cells = {name: data[name].transpose("head", "t", "image").values for name in STATISTICS}
    mean = stats.weighted
    return {
        name: stats.bootstrap_units(lambda w, values=values: mean(values, w), units)
        for name, values in cells.items()
    }


def attention_extremes(data: xr.Dataset) -> dict[str, tuple[str, Value]]:
    """The most focused and the most diffuse head, by H / ln Nk averaged over levels."""
    values = data["normalized_entropy"].transpose("head", "t", "image").values
    interval = stats.bootstrap_units(lambda w: stats.weighted(values, w).mean(axis=1), stats.units_of(data))
    places = {"focused": interval.estimate.argmin(), "diffuse": interval.estimate.argmax()}
    return {word: (str(data["head"].values[i]), value(interval, i)) for word, i in places.items()}


def attention_ends(data: xr.Dataset) -> tuple[Value, Value]:
    """H / ln Nk averaged over heads, at the cleanest and at the noisiest level."""
    ordered = data.sortby("log_snr", ascending=False)
    values = ordered["normalized_entropy"].mean("head").transpose("t", "image").values
    interval = stats.bootstrap_units(lambda w: stats.weighted(values, w), stats.units_of(ordered))
    return value(interval, 0), value(interval, -1)
