"""Sentences made from numbers; every one carries its interval, images and seeds. HTML, names escaped."""

import numpy as np
from markupsafe import Markup

from mechdiff.analysis.effects import Effects
from mechdiff.report import numbers
from mechdiff.report.numbers import Agreement, Extent, Value
from mechdiff.report.ranking import PAPER
from mechdiff.report.style import WORDS, Number, number
from mechdiff.study.records import ExaminedModel


def between(found: Value, unit: str = "") -> Markup:
    """An estimate and its interval: `12.3 % [10.1, 14.9]`."""
    words = f"{precise(found.estimate)}{unit} [{precise(found.low)}, {precise(found.high)}]"
    return Markup('<span class="n">{}</span>').format(words)


def precise(value: Number) -> str:
    """A number for a sentence or table: three significant digits, thousands separated, a true minus sign."""
    size = abs(value)
    if size >= 999.5:
        text = f"{size:,.0f}"
    elif size >= 99.5:
        text = f"{size:.0f}"
    else:
        text = f"{size:.1f}" if size >= 9.95 else f"{size:.2f}" if size >= 0.995 else f"{size:.3f}"
    return ("−" if value < 0 and float(text.replace(",", "")) else "") + text


def sample(model: ExaminedModel, seeds: dict[str, int]) -> str:
    """How much data stands behind a statement about one subject."""
    others = seeds[model.data] - 1
    more = f" ({_count(others, 'other seed')} of this data examined beside it)" if others else ""
    each = f" at each level, {model.network.images_total:,} in all" * (
        model.network.images_total > model.images
    )
    people = f" of {model.network.people} people" * (model.network.people > 0)
    return f"n = {model.images} images{each}{people}, n = 1 trained seed{more}"


def about(model: ExaminedModel) -> list[Markup]:
    """What was found on one subject."""
    grids = map(_grid, model.damages.values())
    spreads = _spread(model), _hidden(model), _attention(model)
    found = [_worst(model), _parts(model), *grids, *spreads]
    return [sentence for sentence in found if sentence]


def _worst(model: ExaminedModel) -> Markup | None:
    parts = []
    for damage in model.damages.values():
        span = numbers.extent(model, damage)
        if span is not None:
            words = Markup("under {} ablation <code>{}</code>, pooled Deg% = {}")
            parts.append(words.format(damage.ablation, span.most, between(span.high, " %")))
    if not parts:
        return Markup("No component changed any prediction: nothing was tested.")
    return Markup("<b>Costliest single component:</b> {}.").format(Markup("; ").join(parts))


def _parts(model: ExaminedModel) -> Markup | None:
    found = numbers.part_means(model, model.lead.ablation)
    if not found:
        return None
    item = Markup("{} {} ({} of them)").format
    parts = [item(WORDS.get(part, part), between(mean, " %"), count) for part, (count, mean) in found.items()]
    words = Markup("<b>Which kinds of components:</b> mean pooled Deg% under {} ablation: {}.")
    return words.format(model.lead.ablation, Markup("; ").join(parts))


def _grid(damage: Effects) -> Markup:
    worse, better = numbers.told_apart(damage)
    words = (
        "<b>Map, {} ablation:</b> {} of {} component × level cells differ from no change (max-T, p < {:g} "
        "for the whole family of {}): {} raise the loss, {} lower it. {}"
    )
    idle = int(damage.idle.sum())
    tail = f"{_count(idle, 'component')} of {len(damage.idle)} changed nothing at all." if idle else ""
    sure, family = worse + better, damage.p.size
    return Markup(words).format(damage.ablation, sure, family, numbers.ALPHA, family, worse, better, tail)


def _spread(model: ExaminedModel) -> Markup:
    damage = model.lead
    words = (
        "<b>Concentration:</b> under {} ablation, damage is spread over an effective {} of {} components "
        "that it can see (exp of the entropy of their shares)."
    )
    seen = int((~damage.idle).sum())
    return Markup(words).format(damage.ablation, between(numbers.value(damage.effective)), seen)


def _hidden(model: ExaminedModel) -> Markup | None:
    """What a mean over levels and pictures would hide: effects of both signs, and those on few pictures."""
    damage = model.lead
    active = np.flatnonzero(~damage.idle)
    if not len(active):
        return None
    varied = active[(damage.rms.estimate - np.abs(damage.pooled.estimate))[active].argmax()]
    rare = active[(damage.quantiles[:, -1] - damage.quantiles[:, 1])[active].argmax()]
    words = (
        "<b>Behind the means,</b> {} ablation: <code>{}</code> varies most over levels, root mean square {} "
        "at a mean of {}; <code>{}</code> most over pictures: it hurts {:.0f} % of them, the median by {} %, "
        "the worst twentieth by {} % or more."
    )
    middle, worst = (precise(damage.quantiles[rare, i]) for i in (1, -1))
    rms, mean = (between(numbers.value(each, varied), " %") for each in (damage.rms, damage.pooled))
    names = [damage.components[i] for i in (varied, rare)]
    hurt = 100 * damage.hurt.estimate[rare]
    return Markup(words).format(damage.ablation, names[0], rms, mean, names[1], hurt, middle, worst)


def _attention(model: ExaminedModel) -> Markup | None:
    data = model.attention
    if not data.sizes["head"]:
        return None
    heads = numbers.attention_extremes(data)
    clean, noisy = numbers.attention_ends(data)
    words = (
        "<b>Attention:</b> averaged over heads, H / ln Nk is {} at the cleanest level and {} at the "
        "noisiest; over all levels the most focused head is <code>{}</code> ({}), the most diffuse "
        "<code>{}</code> ({})."
    )
    sides = [between(clean), between(noisy)]
    for word in ("focused", "diffuse"):
        sides += [heads[word][0], between(heads[word][1])]
    return Markup(words).format(*sides)


def agreements(found: list[Agreement], ablation: str) -> list[Markup]:
    """How far subjects rank components alike."""
    words = (
        "<b>{} and {}</b> ({}): the rank correlation of their components’ damage is Spearman ρ = {} under {} "
        "ablation, over {} components; {} of the top {} are the same (n ≥ {} images and n = 1 seed a side)."
    )
    return [
        Markup(words).format(
            item.first, item.second, item.relation, between(item.value), ablation,
            item.components, item.shared, min(numbers.TOP, item.components), item.n,
        )
        for item in found
    ]  # fmt: skip


def ranges(found: list[Extent]) -> list[Markup]:
    """The ranges of degradation, and how they stand to the paper's."""
    words = (
        "<b>Range over components, {} ({} ablation):</b> pooled Deg% from {} (<code>{}</code>) to {} "
        "(<code>{}</code>); n = {} images, n = 1 seed."
    )
    sentences = [
        Markup(words).format(
            item.model.name,
            item.damage.ablation,
            *(between(item.low, " %"), item.least, between(item.high, " %"), item.most, item.damage.n),
        )
        for item in found
    ]
    beside = (
        "The abstract of the paper names a degradation of {:g} % to {:g} %, for an estimand that is not "
        "known: the ranges stand side by side (section 10), but are not measurements of the same thing."
    )
    return [*sentences, Markup(beside).format(*PAPER)]


def memorization(model: ExaminedModel) -> str:
    """Whether samples lie close to training pictures, in one sentence."""
    found = model.record.get("memorization")
    if not found:
        return "No memorization figures were saved with this model."
    ours, theirs = number(found["samples_nearest"]), number(found["held_out_nearest"])
    return (
        f"Median RMS distance to the nearest training picture: samples {ours}, held-out pictures {theirs} "
        f"(pixels in [−1, 1]; ratio {number(found['ratio'])}, far below 1 if pictures were remembered). "
        f"{100 * found['copies']:.1f} % of samples lie nearer to a training picture than 99 % of held-out "
        "pictures do; 1 % is expected without memorization."
    )


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
