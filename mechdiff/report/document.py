"""The HTML document: figures and tables of a results folder put together by a template."""

import functools
from pathlib import Path

import numpy as np

from mechdiff.report import (
    across,
    attention,
    findings,
    maps,
    numbers,
    over_training,
    page_data,
    pages,
    ranking,
    style,
    trust,
    views,
)
from mechdiff.report.style import PageFigure
from mechdiff.stats import small_samples
from mechdiff.storage import files
from mechdiff.storage.run_log import progress
from mechdiff.study import claims
from mechdiff.study.claims import across_seeds, complexity_table
from mechdiff.study.examined_model import ExaminedModel
from mechdiff.study.network_results import STATISTICS, NetworkResults

FACTS = ("command", "started", "wall_seconds", "devices", "code", "commit", "packages", "python")
PAIRS_DRAWN = 3  # pairs of models with a scatter plot; the table has all
DETAILED = 4  # models with figures of their own; of more, the first training seed of each data set


def render(manifest: dict, models: list[ExaminedModel], folder: Path) -> str:
    """The page of a results folder; its figures are also written into `folder/figures`."""
    figures = files.ensure_writable(folder / "figures")
    facts = dict.fromkeys(FACTS) | {"config": {}} | manifest
    with progress(1, desc="verdicts, and figures of all networks", unit="part") as bar:
        content = _together(models, figures)
        bar.update()
    content |= _each(detailed(models), models, figures)
    content |= {
        "planted": trust.planted(folder),
        "calibration": trust.calibration(folder),
        "plants": trust.PLANTS,
        "methods": trust.METHODS,
    }
    content["data"] = page_data.page_data(detailed(models))
    of_last_run = manifest.get("models") or [model.name for model in models]
    content["earlier"] = [model.name for model in models if model.name not in of_last_run]
    content["noise_seeds"] = sorted({model.seed for model in models})
    return pages.render("report.html.j2", facts=facts, manifest=manifest, everyone=models, **content)


def detailed(models: list[ExaminedModel]) -> list[ExaminedModel]:
    """Models shown in detail: all if at most `DETAILED`, else the first training seed of each data set at the
    end of its training; of data sets that claims compare, these alone."""
    if len(models) <= DETAILED:
        return models
    sides = across_seeds.natural_and_simple(across_seeds.final_snapshots([model.results for model in models]))
    first = [side[0] for side in sides if side]
    if len(first) < 2:
        last = sorted(models, key=lambda model: (model.config.seed, -model.results.steps))
        first = list({model.data: model.results for model in reversed(last)}.values())
    return [model for model in models if any(model.results is network for network in first)]


def _together(models: list[ExaminedModel], figures: Path) -> dict:
    """Template variables of claims, and figures and tables over all networks."""
    networks = [model.results for model in models]
    trainings = over_training.trainings(models, detailed(models))
    groups: dict[tuple[str, str], list[ExaminedModel]] = {}
    for model in models:
        groups.setdefault((model.data, model.examined_on), []).append(model)
    answers = claims.evaluate(networks)
    return {
        "claims": answers,
        "tested": sum(not np.isnan(claim.p) for claim in answers),
        "both": _both(networks),
        "compared": len(_compared(networks)),
        "fewest": small_samples.MIN_SEEDS,
        "rows": across.rows(models),
        "together": _figures_of_all(networks, trainings, figures),
        "trainings": trainings,
        "complexity": complexity_table.lines(complexity_table.measure(networks)),
        "groups": groups,
        "training_seeds": numbers.training_seeds,
    }


def _both(networks: list[NetworkResults]) -> bool:
    """Whether there are networks of both data sets that the paper's claims compare."""
    return all(across_seeds.natural_and_simple(across_seeds.final_snapshots(networks)))


def _compared(networks: list[NetworkResults]) -> list[NetworkResults]:
    """The networks of the data sets that claims compare; all, where these are fewer than two."""
    natural, simple = across_seeds.natural_and_simple(across_seeds.final_snapshots(networks))
    return [*natural, *simple] if len(natural) + len(simple) > 1 else networks


def _figures_of_all(
    networks: list[NetworkResults], trainings: list[over_training.Training], figures: Path
) -> dict[str, PageFigure]:
    """Figures over all networks, those for which there are enough."""
    finished = across_seeds.final_snapshots(networks)  # snapshots of one training are not separate seeds
    natural, simple = across_seeds.natural_and_simple(finished)
    drawn = {}

    def add(name: str, alt: str, draw) -> None:
        drawn[name] = style.page_figure(figures, name, alt, draw)

    alike = across_seeds.comparable(networks)
    full = _compared(networks)
    if alike:
        alt = "Pooled relative loss increase of single components in every network."
        add("seeds-increase", alt, lambda theme: across.draw_increases(theme, full))
    if alike and min(len(natural), len(simple)) > 1:
        ratios = across_seeds.complexity_ratios(finished)
        alt = "Ratios of complexity, CelebA over synthetic faces, by several measures."
        add("seeds-ratios", alt, lambda theme: across.draw_ratios(theme, ratios))
        alt = "Divergence of attention entropy by timestep, between data sets and between seeds."
        add("seeds-divergence", alt, lambda theme: across.draw_divergence(theme, natural, simple))
    ladder = across_seeds.ladder(finished)
    if alike and len(ladder) > 1:
        alt = "Effective components by complexity of the synthetic faces."
        add("seeds-ladder", alt, lambda theme: across.draw_ladder(theme, ladder))
    for training in trainings:
        alt = f"Pooled relative loss increase of the components of {training.name} by training step."
        draw = functools.partial(over_training.draw, training=training)
        add(f"over-training-{training.name}", alt, draw)
    return drawn


def _each(models: list[ExaminedModel], everyone: list[ExaminedModel], figures: Path) -> dict:
    """Template variables of single models: figures, sentences and numbers computed from saved results."""
    spans = [
        span
        for model in models
        for increase in model.increases.values()
        if (span := numbers.extent(model, increase)) is not None
    ]
    paper = _both([model.results for model in everyone])
    lead = models[0].lead.ablation
    between = numbers.between_models(models, lead)
    return {
        "models": models,
        "views": views.views(models, numbers.seeds(everyone), figures),
        "range_figure": _range(spans, figures, paper),
        "agreement_figures": _agreements(models, lead, figures),
        "spans": spans,
        "lead": lead,
        "pairs": between,
        "statistics": {name: attention.PANELS[name] for name in STATISTICS},
        "cross": [*findings.agreements(between, lead), *findings.ranges(spans, paper)],
        "reference_images": _reference_images(everyone),
        "swept": {ablation for model in everyone for ablation in model.increases},
        "alpha": maps.ALPHA,
        "paper": ranking.PAPER,
        "shown": ranking.SHOWN - ranking.VARIED,
        "varied": ranking.VARIED,
        "plurals": style.PLURALS,
        "ceilings": sorted({int(k) for s in models for k in s.attention["tokens"].values}),
        "log": np.log,
        "idle": numbers.idle,
        "entries": numbers.value,
    }


def _reference_images(models: list[ExaminedModel]) -> int | None:
    """Number of images over which means were taken; None: not known, or not the same for all models."""
    numbers_of = {model.reference_images for model in models if "mean" in model.increases}
    return numbers_of.pop() if len(numbers_of) == 1 else None


def _range(spans: list, figures: Path, paper: bool) -> PageFigure | None:
    if not spans:
        return None
    rows = []
    for span in spans:
        inputs = ", own samples" if span.model.own_samples else ""
        rows.append(
            ranking.Row(f"{span.model.name}\n{span.increase.ablation} ablation{inputs}", span.increase)
        )
    limits = ranking.ends([span.increase for span in spans])
    alt = "Pooled ΔL/L of all components, a row for each model and ablation"
    alt += ", and the paper's range." if paper else "."
    draw = functools.partial(ranking.draw_range, rows=rows, limits=limits, paper=paper)
    return style.page_figure(figures, "range", alt, draw)


def _agreements(models: list[ExaminedModel], ablation: str, figures: Path) -> list[PageFigure]:
    """Scatter plots of the first `PAIRS_DRAWN` pairs of models with at least 3 shared components."""
    drawn = []
    holders = [model for model in models if ablation in model.increases]
    of_models = [(a, b) for i, a in enumerate(holders) for b in holders[i + 1 :]]
    for first, second in of_models[:PAIRS_DRAWN]:
        sides = first.increases[ablation], second.increases[ablation]
        if len(numbers.active(sides[0]) & numbers.active(sides[1])) < 3:
            continue
        names = tuple(f"pooled ΔL/L, %, {model.name}" for model in (first, second))
        name = f"agreement-{first.name}--{second.name}"
        alt = f"Scatter plot of pooled ΔL/L under {ablation} ablation: {first.name} against {second.name}."
        limits = ranking.ends(list(sides))
        draw = functools.partial(
            ranking.draw_agreement, first=sides[0], second=sides[1], names=names, limits=limits
        )
        drawn.append(style.page_figure(figures, name, alt, draw))
    return drawn
