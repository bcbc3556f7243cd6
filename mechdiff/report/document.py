"""The HTML document: figures and tables of a results folder put together by a template."""

import json
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np

from mechdiff.report import (
    across,
    attention,
    curves,
    findings,
    maps,
    numbers,
    ranking,
    schematic,
    style,
    trust,
)
from mechdiff.report.style import Picture
from mechdiff.stats import small_samples
from mechdiff.storage import files
from mechdiff.study import claims
from mechdiff.study.claims import across_seeds
from mechdiff.study.records import STATISTICS, ExaminedModel

FACTS = ("command", "started", "wall_seconds", "devices", "code", "commit", "packages", "python")
PAIRS_DRAWN = 3  # pairs of subjects with a scatter plot of their own; the table has all
DETAILED = 4  # subjects with figures of their own; of more, the first training seed of each data set


def render(manifest: dict, subjects: list[ExaminedModel], folder: Path) -> str:
    """The page of a results folder; its figures are also written into `folder/figures`."""
    figures = files.ensure_writable(folder / "figures")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mechdiff.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": style.number, "precise": findings.precise, "between": findings.between}
    environment.filters["level"] = style.level_label
    environment.filters["pretty"] = lambda data: json.dumps(data, indent=2, ensure_ascii=False)
    environment.filters["uri"] = lambda data: style.data_uri(data, "image/png")
    css = resources.files("mechdiff.report").joinpath("report.css").read_text("utf-8")
    page = environment.get_template("report.html.j2")
    facts = dict.fromkeys(FACTS) | {"config": {}} | manifest
    content = _together(subjects, figures) | _each(facts["config"], detailed(subjects), subjects, figures)
    content |= {
        "planted": trust.planted(folder),
        "calibration": trust.calibration(folder),
        "plants": trust.PLANTS,
    }
    return page.render(css=css, facts=facts, manifest=manifest, everyone=subjects, **content)


def detailed(subjects: list[ExaminedModel]) -> list[ExaminedModel]:
    """Those that the report shows one by one: all of a few, else the first training seed of each data set."""
    if len(subjects) <= DETAILED:
        return subjects
    first = {}
    for subject in sorted(subjects, key=lambda one: one.config.seed):
        first.setdefault(subject.data, subject)
    return [subject for subject in subjects if subject in first.values()]


def _together(subjects: list[ExaminedModel], figures: Path) -> dict:
    """What all networks say: the claims, and the evidence behind them."""
    networks = [subject.network for subject in subjects]
    natural, simple = across_seeds.sides(networks)
    drawn = {}

    def add(name: str, alt: str, draw) -> None:
        drawn[name] = style.picture(figures, name, alt, draw)

    alike = across_seeds.alike(networks)
    if alike:
        full = [*natural, *simple] or networks
        alt = "Pooled Deg% of single components in every network."
        add("seeds-damage", alt, lambda theme: across.draw_damage(theme, full))
    if alike and min(len(natural), len(simple)) > 1:
        ratios = across_seeds.ratios(networks)
        alt = "Ratios of complexity, CelebA over synthetic faces, by several measures."
        add("seeds-ratios", alt, lambda theme: across.draw_ratios(theme, ratios))
        alt = "Divergence of attention entropy by noise level, between data sets and between seeds."
        add("seeds-divergence", alt, lambda theme: across.draw_divergence(theme, natural, simple))
    ladder = across_seeds.ladder(networks)
    if alike and len(ladder) > 1:
        alt = "Effective components by complexity of the synthetic faces."
        add("seeds-ladder", alt, lambda theme: across.draw_ladder(theme, ladder))
    groups: dict[tuple[str, str], list[ExaminedModel]] = {}
    for subject in subjects:
        groups.setdefault((subject.data, subject.inputs), []).append(subject)
    return {
        "claims": claims.evaluate(networks),
        "fewest": small_samples.FEWEST,
        "rows": across.rows(subjects),
        "together": drawn,
        "groups": groups,
    }


def _each(config: dict, subjects: list[ExaminedModel], everyone: list[ExaminedModel], figures: Path) -> dict:
    """What the template shows of subjects one by one that isn't in the files as it stands."""
    spans = [
        span
        for subject in subjects
        for damage in subject.damages.values()
        if (span := numbers.extent(subject, damage)) is not None
    ]
    lead = subjects[0].lead.kind
    pairs = numbers.between_subjects(subjects, lead)
    counts = numbers.seeds(everyone)
    return {
        "subjects": subjects,
        "pictures": {subject.name: _pictures(subject, subjects, figures) for subject in subjects},
        "range_picture": _range(spans, subjects, figures),
        "agreement_pictures": _agreements(subjects, lead, figures),
        "spans": spans,
        "lead": lead,
        "pairs": pairs,
        "kind_pairs": {subject.name: numbers.between_kinds(subject) for subject in subjects},
        "attention_tables": {
            s.name: numbers.attention_intervals(s.attention) for s in subjects if s.attention.sizes["head"]
        },
        "statistics": {name: attention.PANELS[name] for name in STATISTICS},
        "findings": {subject.name: findings.about(subject) for subject in subjects},
        "cross": [*findings.agreements(pairs, lead), *findings.ranges(spans)],
        "sample": {subject.name: findings.sample(subject, counts) for subject in subjects},
        "memorisation": {subject.name: findings.memorisation(subject) for subject in subjects},
        "mean_images": config.get("sweep", {}).get("mean_images"),
        "alpha": maps.ALPHA,
        "paper": ranking.PAPER,
        "shown": ranking.SHOWN,
        "words": style.WORDS,
        "ceilings": sorted({int(k) for s in subjects for k in s.attention["tokens"].values}),
        "log": np.log,
        "idle": numbers.idle,
        "entries": lambda interval, *index: numbers.value(interval, *index),
    }


def _pictures(subject: ExaminedModel, subjects: list[ExaminedModel], figures: Path) -> dict:
    """Figures of one subject: name -> picture (None: nothing to draw) or a list, one per kind of ablation."""
    everything = [damage for other in subjects for damage in other.damages.values()]
    cell = max(float(np.abs(damage.cells.estimate).max()) for damage in everything)
    pooled = max(float(np.abs(damage.pooled.estimate).max()) for damage in everything)
    ends, scale = ranking.ends(everything), attention.limits([other.attention for other in subjects])
    damages, unet = list(subject.damages.values()), subject.config.unet
    first = [subject.lead, *(damage for damage in damages if damage is not subject.lead)]

    def picture(what: str, alt: str, draw) -> Picture:
        return style.picture(figures, f"{what}-{subject.name}", f"{alt} of {subject.name}.", draw)

    found = dict.fromkeys(("curves", "attention", "kinds")) | {
        "map": picture(
            "damage-map",
            f"Map of Deg% of {len(damages[0].components)} components at {len(damages[0].t)} noise levels",
            lambda theme: maps.draw(theme, damages, cell),
        ),
        "ranking": picture(
            "ranking",
            f"Forest plot of the {ranking.SHOWN} components with the largest pooled Deg%",
            lambda theme: ranking.draw(theme, subject.damages, ends),
        ),
        "schematics": [
            picture(
                f"schematic-{damage.kind}",
                f"The UNet, each component coloured by its pooled Deg% under {damage.kind} ablation,",
                lambda theme, damage=damage: schematic.draw(theme, unet, damage, pooled),
            )
            for damage in first
        ],
    }
    if subject.record.get("log"):
        found["curves"] = picture("curves", "Loss curves", lambda theme: curves.draw(theme, subject))
    if subject.attention.sizes["head"]:
        alt = f"Five attention statistics of {subject.attention.sizes['head']} heads by noise level"
        draw = lambda theme: attention.draw(theme, subject.attention, scale)
        found["attention"] = picture("attention", alt, draw)
    if len(first) > 1:
        names = tuple(f"pooled Deg%, {damage.kind} ablation" for damage in first[:2])
        found["kinds"] = picture(
            "kinds",
            f"Scatter plot of pooled Deg% under {first[0].kind} against {first[1].kind} ablation",
            lambda theme: ranking.draw_agreement(theme, first[0], first[1], names, ends),
        )
    return found


def _range(spans: list, subjects: list[ExaminedModel], figures: Path) -> Picture | None:
    if not spans:
        return None
    rows = []
    for span in spans:
        own = ", own samples" if span.subject.own_samples else ""
        rows.append(ranking.Row(f"{span.subject.name}\n{span.damage.kind} ablation{own}", span.damage))
    limits = ranking.ends([span.damage for span in spans])
    alt = "Pooled Deg% of all components, a row for each model and kind, beside the paper's range."
    return style.picture(figures, "range", alt, lambda theme: ranking.draw_range(theme, rows, limits))


def _agreements(subjects: list[ExaminedModel], kind: str, figures: Path) -> list[Picture]:
    """Scatter plots of the first pairs of subjects."""
    found = []
    holders = [subject for subject in subjects if kind in subject.damages]
    pairs = [(a, b) for i, a in enumerate(holders) for b in holders[i + 1 :]]
    for first, second in pairs[:PAIRS_DRAWN]:
        sides = first.damages[kind], second.damages[kind]
        if len(numbers.active(sides[0]) & numbers.active(sides[1])) < 3:
            continue
        names = tuple(f"pooled Deg%, {subject.name}" for subject in (first, second))
        name = f"agreement-{first.name}--{second.name}"
        alt = f"Scatter plot of pooled Deg% under {kind} ablation: {first.name} against {second.name}."
        limits = ranking.ends(list(sides))
        draw = lambda theme, s=sides, n=names, ends=limits: ranking.draw_agreement(theme, *s, n, ends)
        found.append(style.picture(figures, name, alt, draw))
    return found
