"""Sentences on components that make up for each other, or that cost nothing twice, see `circuits.backups`."""

import itertools

import xarray as xr
from markupsafe import Markup

from mechdiff.circuits import backups
from mechdiff.report.findings import between, precise
from mechdiff.report.numbers import Value
from mechdiff.study.examined_model import ExaminedModel

SHOWN = 5  # pairs that a sentence names besides its groups, those of the largest interactions


def about(model: ExaminedModel) -> Markup:
    """What was measured of the pairs of one model."""
    return sentence(model.results.pairs)


def sentence(table: xr.Dataset | None) -> Markup:
    """What a table of `backups.interaction_table` shows; None: not examined, as in older results."""
    if table is None:
        return Markup("<b>Pairs of components</b> (one makes up for the other's removal): not examined.")
    sentence = (
        "<b>Pairs of components,</b> zero ablation: all {} pairs of the {} likeliest candidates by gradients "
        "were run, on {} images{}. {}"
    )
    candidates = {*table.a.values.tolist(), *table.b.values.tolist()}
    pairs, images = table.sizes["pair"], table.sizes["image"]
    return Markup(sentence).format(pairs, len(candidates), images, backups.few(table), _listed(table))


def _listed(table: xr.Dataset) -> Markup:
    """The groups, and the largest of the pairs that lie in none."""
    groups = backups.groups(table)
    inside = {pair for members in groups for pair in itertools.permutations(members, 2)}
    named = backups.named_pairs(table)
    names = zip(named.a.values.tolist(), named.b.values.tolist(), strict=True)
    left = [i for i, pair in enumerate(names) if pair not in inside]
    if not (groups or left):
        return Markup("No pair interacts by more than {:g} % of the loss by its own 95 % interval.").format(
            backups.MIN_INTERACTION
        )
    items = [_group(members, table) for members in groups]
    items += [_item(named.isel(pair=i)) for i in left[:SHOWN]]
    more = f"; and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    sentence = "Pairs that interact by more than {:g} % of the loss, each by its own 95 % interval: {}{}."
    return Markup(sentence).format(backups.MIN_INTERACTION, Markup("; ").join(items), more)


def _group(members: tuple[str, ...], table: xr.Dataset) -> Markup:
    codes = [Markup("<code>{}</code>").format(name) for name in members]
    inside = table.a.isin(members) & table.b.isin(members)
    costs = table.joint.values[inside.values]
    sentence = (
        "of {} and {} any one may go and no two: each alone costs less than {:g} %, two together {} to {} %"
    )
    first = Markup(", ").join(codes[:-1])
    least, most = precise(costs.min()), precise(costs.max())
    return Markup(sentence).format(first, codes[-1], backups.MIN_INTERACTION, least, most)


def _item(pair: xr.Dataset) -> Markup:
    interaction = Value(*(float(pair[end]) for end in ("estimate", "low", "high")))
    names = pair.a.item(), pair.b.item()
    share = least = 100 * float(pair.strength)
    shown = precise(share)
    if "strength_low" in pair:  # results from before 2026-12-01 have no interval of it
        least, most = (100 * float(pair[end]) for end in ("strength_low", "strength_high"))
        shown = f"{shown} [{precise(least)}, {precise(most)}]"
    if pair.named.item() == backups.BACKUP:
        costlier = float(pair.single_a) >= float(pair.single_b)
        first, second = names if costlier else names[::-1]
        sentence = "<code>{}</code> makes up for {} % of what ablating <code>{}</code> costs (interaction {})"
        return Markup(sentence).format(second, shown, first, between(interaction, " %"))
    less = Markup("the sum, by {} % of the smaller cost").format(shown)
    if least > 100:  # the loss of one makes the other's a gain
        less = Markup("ablating the costlier alone")
    sentence = "ablating <code>{}</code> and <code>{}</code> costs less than {} (interaction {})"
    return Markup(sentence).format(names[0], names[1], less, between(interaction, " %"))
