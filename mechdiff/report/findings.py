"""Sentences made from numbers; every one carries its interval, images and seeds. HTML, names escaped."""

import numpy as np
from markupsafe import Markup

from mechdiff.analysis import precision
from mechdiff.analysis.effects import Effects
from mechdiff.core.text_table import counted
from mechdiff.report import numbers
from mechdiff.report.numbers import Agreement, Extent, Value
from mechdiff.report.ranking import PAPER
from mechdiff.report.style import PLURALS, Number, number
from mechdiff.stats import few_images
from mechdiff.study.examined_model import ExaminedModel


def between(value: Value, unit: str = "") -> Markup:
    """An estimate and its interval: `12.3 % [10.1, 14.9]`."""
    interval = f"{precise(value.estimate)}{unit} [{precise(value.low)}, {precise(value.high)}]"
    return Markup('<span class="n">{}</span>').format(interval)


def precise(value: Number) -> str:
    """A number for a sentence or table: three significant digits, thousands separated, a true minus sign."""
    size = abs(value)
    if size == float("inf"):
        text = "\N{INFINITY}"
    elif size >= 999.5:
        text = f"{size:,.0f}"
    elif size >= 99.5:
        text = f"{size:.0f}"
    else:
        text = f"{size:.1f}" if size >= 9.95 else f"{size:.2f}" if size >= 0.995 else f"{size:.3f}"
    zero = not any(digit in text for digit in "\N{INFINITY}123456789")
    return ("−" if value < 0 and not zero else "") + text


def images(model: ExaminedModel) -> str:
    """Numbers of images and people that one model was examined on."""
    images_total, people = model.results.images_total, model.results.people
    text = f"{model.images} images"
    if images_total > model.images:
        text += f" at each timestep, {images_total:,} in all"
    if people:
        text += f" of {people} people"
    return text


def intervals_over(model: ExaminedModel) -> str:
    """What intervals of one model are over: what is resampled."""
    return "people" if model.results.people else "images"


def sample(model: ExaminedModel, seeds: dict[str, int]) -> str:
    """Numbers of images, people and training seeds of one model; whether they are too few."""
    others = seeds[model.data] - 1
    few = few_images(model.results.units.count, model.results.units.effective)
    text = f"n = {images(model)}, n = 1 trained seed{few}"
    if others:
        text += f" ({counted(others, 'other seed')} of this data examined too)"
    return text


def about(model: ExaminedModel) -> list[Markup]:
    """The findings on one model, a sentence each."""
    grids = map(_grid, model.increases.values())
    spreads = _spread(model), _hidden(model), _attention(model)
    sentences = [_largest(model), _parts(model), *grids, *spreads, *_precision(model)]
    return [sentence for sentence in sentences if sentence]


def _largest(model: ExaminedModel) -> Markup | None:
    phrases = []
    for increase in model.increases.values():
        index = numbers.largest(increase)
        if index is not None:
            sentence = Markup("under {} ablation <code>{}</code>, pooled ΔL/L = {}")
            pooled = between(numbers.value(increase.pooled, index), " %")
            phrases.append(sentence.format(increase.ablation, increase.components[index], pooled))
    if not phrases:
        return Markup("No ablation changed any prediction: nothing was tested.")
    words = "<b>Largest effect of a single component,</b> of either sign: {}; intervals are of it alone."
    return Markup(words).format(Markup("; ").join(phrases))


def _parts(model: ExaminedModel) -> Markup | None:
    means = numbers.component_type_means(model, model.lead.ablation)
    if not means:
        return None
    items = [
        Markup("{} {} (n = {})").format(
            PLURALS.get(component_type, component_type), between(mean, " %"), count
        )
        for component_type, (count, mean) in means.items()
    ]
    sentence = Markup("<b>By component type:</b> mean pooled ΔL/L under {} ablation: {}.")
    return sentence.format(model.lead.ablation, Markup("; ").join(items))


def _precision(model: ExaminedModel) -> list[Markup]:
    """Numerical error next to sampling error, where matrix products were not in full precision."""
    lines = [
        precision.statement(model.sweep, increase.pooled, increase.precision_error)
        for increase in model.increases.values()
    ]
    sentence = Markup("<b>Precision</b> under {} ablation: {}.")
    return [sentence.format(name, line) for name, line in zip(model.increases, lines, strict=True) if line]


def _grid(increase: Effects) -> Markup:
    raised, lowered = numbers.significant_cells(increase)
    sentence = (
        "<b>Map, {} ablation:</b> {} of {} component × timestep cells are significant (max-T, p < {:g} in "
        "the family of {}): {} raise the loss, {} lower it. {}"
    )
    idle = int(increase.idle.sum())
    tail = (
        f"Of {counted(len(increase.idle), 'component')}, ablating {idle} changed no prediction."
        if idle
        else ""
    )
    significant, family = raised + lowered, increase.p.size
    return Markup(sentence).format(
        increase.ablation, significant, family, numbers.ALPHA, family, raised, lowered, tail
    )


def _spread(model: ExaminedModel) -> Markup:
    increase = model.lead
    sentence = (
        "<b>Concentration:</b> under {} ablation, the effective number of components (exp of the entropy of "
        "their shares of pooled |ΔL/L|) is {}, of {} whose ablation changed a prediction."
    )
    active = int((~increase.idle).sum())
    return Markup(sentence).format(increase.ablation, between(numbers.value(increase.effective)), active)


def _hidden(model: ExaminedModel) -> Markup | None:
    """Effects that the mean over timesteps and images hides: of both signs, or on few images."""
    increase = model.lead
    active = np.flatnonzero(~increase.idle)
    if not len(active):
        return None
    varied = active[(increase.rms.estimate - np.abs(increase.pooled.estimate))[active].argmax()]
    quantiles = increase.quantiles.estimate
    rare = active[(quantiles[:, -1] - quantiles[:, 1])[active].argmax()]
    sentence = (
        "<b>Variation,</b> {} ablation: <code>{}</code> varies most over timesteps, root mean square of ΔL/L "
        "{} at a mean of {}; <code>{}</code> most over images: the loss rises on {} of them; median "
        "{}, 95 % quantile {}."
    )
    median, highest = (between(numbers.value(increase.quantiles, rare, i), " %") for i in (1, -1))
    rms = between(numbers.value(increase.rms, varied), " %")
    mean = between(numbers.value(increase.pooled, varied), " %")
    names = [increase.components[i] for i in (varied, rare)]
    hurt = numbers.value(increase.hurt, rare)
    raised = Markup('<span class="n">{:.0f} % [{:.0f}, {:.0f}]</span>').format(
        *(100 * share for share in (hurt.estimate, hurt.low, hurt.high))
    )
    return Markup(sentence).format(increase.ablation, names[0], rms, mean, names[1], raised, median, highest)


def _attention(model: ExaminedModel) -> Markup | None:
    data = model.attention
    if not data.sizes["head"]:
        return None
    heads = numbers.attention_extremes(data)
    clean, noisy = numbers.attention_ends(data)
    sentence = (
        "<b>Attention:</b> averaged over heads, H / ln Nk is {} at the least noisy timestep and {} at the "
        "most noisy; over all timesteps the most focused head is <code>{}</code> ({}), the most diffuse "
        "<code>{}</code> ({})."
    )
    sides = [between(clean), between(noisy)]
    for word in ("focused", "diffuse"):
        sides += [heads[word][0], between(heads[word][1])]
    return Markup(sentence).format(*sides)


def agreements(pairs: list[Agreement], ablation: str) -> list[Markup]:
    """Agreement of the rankings of components between models."""
    sentence = (
        "<b>{} and {}</b> ({}): the rank correlation of pooled ΔL/L over components is Spearman ρ = {} under "
        "{} ablation, over {} components; {} of the top {} are the same (n ≥ {} images, or people where they "
        "are known, n = 1 seed a side)."
    )
    return [
        Markup(sentence).format(
            item.first, item.second, item.relation, between(item.value), ablation,
            item.components, item.shared, min(numbers.TOP, item.components), item.n,
        )
        for item in pairs
    ]  # fmt: skip


def ranges(spans: list[Extent], paper: bool) -> list[Markup]:
    """The ranges of pooled ΔL/L over components; with `paper` also that of the paper's abstract."""
    sentence = (
        "<b>Range over components, {} ({} ablation):</b> pooled ΔL/L from {} (<code>{}</code>) to {} "
        "(<code>{}</code>); n = {} images, n = 1 seed."
    )
    sentences = [
        Markup(sentence).format(
            item.model.name,
            item.increase.ablation,
            between(item.low, " %"),
            item.least,
            between(item.high, " %"),
            item.most,
            item.increase.n,
        )
        for item in spans
    ]
    of_paper = (
        "The abstract of the paper names a degradation of {:g} % to {:g} %, for an estimand that is not "
        "known: the ranges are shown side by side, but do not measure the same quantity."
    )
    return [*sentences, Markup(of_paper).format(*PAPER)] if paper else sentences


def memorization(model: ExaminedModel) -> str:
    """Distances of samples and of held-out images to the training images."""
    record = model.record.get("memorization")
    if not record:
        return "No memorization figures were saved with this model."
    samples, held_out = number(record["samples_nearest"]), number(record["held_out_nearest"])
    copies = f"{100 * record['copies']:.1f} %"
    if "copies_low" in record:  # since 2026-11-30
        copies += f" [{100 * record['copies_low']:.1f}, {100 * record['copies_high']:.1f}]"
    ratio, expected = number(record["ratio"]), "1"
    if record.get("ratio_low") is not None:  # since 2026-12-01
        ratio += f" [{number(record['ratio_low'])}, {number(record['ratio_high'])}]"
        expected = f"{100 * record['copies_expected']:.1f}"
    return (
        f"Median RMS distance to the nearest training image: samples {samples}, held-out images {held_out} "
        f"(pixels in [−1, 1]; ratio {ratio}, far below 1 if images were memorized). "
        f"{copies} of samples are closer to a training image than the 1st percentile "
        f"of held-out images; {expected} % is expected without memorization."
    )
