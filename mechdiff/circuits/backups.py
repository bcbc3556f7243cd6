"""Backup components: exact interactions of all pairs of a few candidates.

Ablating one component at a time does not show what another one repairs. With L the clean loss, a pair's
interaction is L(without both) - L(without a) - L(without b) + L (`interactions`). If it is positive, ablating
both costs more than the sum of ablating each: one backs up the other, fully or in part. If negative, the two
need each other. Candidates are ranked by gradients on other images than the pairs are run on; integrated
gradients also find components that hide each other at the identity. A pair is named if the interval of its
interaction lies beyond `MIN_INTERACTION`, and, of fewer than `stats.MIN_RELIABLE` images or people, if its
p is .05 at most too; a group if any one of its components can be ablated but no two (`groups`).

The rule about p is of 2026-11-30. Intervals of few units are too narrow: of simulated pairs without any
interaction 24 to 40 % were named from 2 images, 3 to 10 % from 4 and 0.1 to 3 % from 8, by how interactions
scatter over images. The p is exact whatever their number, so that from fewer than 6 no pair can be named.
From 8 on the interval and its margin suffice, and pairs of studies keep their names. Intervals are of one
pair each: where all of 28 pairs interacted by exactly `MIN_INTERACTION`, some pair was named in .43 of 150
simulated tables of 16 images, .02 of pairs; where none interacted, none was.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.circuits.attribution import gate_scores
from mechdiff.circuits.integrated_gradients import integrated_gradients
from mechdiff.circuits.interactions import pair_effects
from mechdiff.circuits.strengths import strength_interval
from mechdiff.core.errors import ConfigError
from mechdiff.core.text_table import text_table
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable

MIN_INTERACTION = 1.0  # % of the clean loss
BACKUP, COMMON = "backup", "common"  # what pairs are called: positive and negative interactions


def candidates(
    denoiser: Examinable,
    eval_set: EvalSet,
    chosen: Sequence[Component],
    count: int,
    folder: Path | None = None,
) -> tuple[Component, ...]:
    """The `count` components of `chosen` with the best rank by integrated gradients or at the identity.

    Args:
      folder: as of `verified_backups`.

    Returns:
      Components, the best first; the two rankings alternate, integrated gradients first.
    """
    path = integrated_gradients(denoiser, eval_set, chosen=chosen, folder=folder)
    point = gate_scores(denoiser, eval_set, chosen=chosen, folder=folder)
    clean = point.clean_loss.mean("image")
    sizes = [np.abs((scores.score.mean("image") / clean).mean("t").values) for scores in (path, point)]
    ranks = np.stack([scipy.stats.rankdata(-size, method="ordinal") for size in sizes])
    order = np.lexsort((ranks.argmin(axis=0), ranks.min(axis=0)))
    return tuple(chosen[i] for i in order[:count])


def verified_backups(
    denoiser: Examinable,
    eval_set: EvalSet,
    others: EvalSet,
    chosen: Sequence[Component],
    *,
    count: int = 8,
    seed: int = 0,
    people: Int[np.ndarray, " image"] | None = None,
    folder: Path | None = None,
) -> xr.Dataset:
    """Runs all pairs of the `count` best candidates of `chosen` under zero ablation.

    Args:
      eval_set: images on which pairs are run.
      others: images on which candidates are chosen; other ones, so that the choice does not bias p.
      people: number of the person in each image of `eval_set`; then people are resampled and flipped.
      folder: what is measured is kept here too, so that an interrupted run can go on; None: nothing is kept
        on disk.

    Returns:
      The variables of `pair_effects` and `interaction_table`.

    Raises:
      ConfigError: fewer than two components or candidates.

    Example:
      >>> pairs = verified_backups(denoiser, eval_set, others, denoiser.components())  # doctest: +SKIP
      >>> print("\\n".join(lines(pairs)))  # doctest: +SKIP
    """
    if min(len(chosen), count) < 2:
        raise ConfigError(f"{len(chosen)} components, count={count}: a pair takes two; give 2 or more")
    picked = candidates(denoiser, others, chosen, count, folder)
    exact = pair_effects(denoiser, eval_set, list(itertools.combinations(picked, 2)), folder)
    return interaction_table(exact, people, seed)


def interaction_table(
    exact: xr.Dataset,
    people: Int[np.ndarray, " image"] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Pairs of `pair_effects` with their interactions in percent of the clean loss, means over timesteps.

    Returns:
      `exact` with variables of dim `pair`: `estimate`, `low`, `high` of the interaction (%; BCa bootstrap
      over images or people); `p` (sign flips of these, max-T over pairs); `single_a`, `single_b`, `joint`,
      relative loss increases (%) without one or both; `strength`, `strength_low`, `strength_high` (see
      `circuits.strengths`); and `named`: `backup` if `low` is above `MIN_INTERACTION`, `common` if `high` is
      below -`MIN_INTERACTION`, else empty; empty as well where `p` is above .05 and the units count as fewer
      than `stats.MIN_RELIABLE`. Attributes `n`: units, images or people; `effective`: what these count as.
    """
    clean, interaction = exact.clean_loss.values, exact.interaction.values
    units = stats.units_from(people, exact.sizes["image"])

    def in_percent(weights):
        return 100 * (interaction @ weights.T / (clean @ weights.T)).mean(1)

    interval = stats.bootstrap_units(in_percent, units, seed=seed, confidence=confidence, student=True)

    def costs(weights):
        """Relative loss increases (%) without the first, the second and both, `[3, pair, m]`."""
        raised = [exact[f"without_{which}"].values - clean for which in ("a", "b", "both")]
        return 100 * (np.stack(raised) @ weights.T / (clean @ weights.T)).mean(2)

    strength = strength_interval(costs, units, confidence)

    def increase(loss):
        at_t = stats.percent_increase(loss.mean("image"), exact.clean_loss.mean("image"))
        return at_t.mean("t").values

    singles = np.stack([increase(exact.without_a), increase(exact.without_b)])
    joint = increase(exact.without_both)
    p = stats.max_t(by_unit(exact, units), seed=seed)
    sure = (p <= stats.ALPHA) | (units.effective >= stats.MIN_RELIABLE)
    named = np.where(
        interval.low > MIN_INTERACTION, BACKUP, np.where(interval.high < -MIN_INTERACTION, COMMON, "")
    )
    per_pair = {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p": p,
        "single_a": singles[0],
        "single_b": singles[1],
        "joint": joint,
        "strength": strength.estimate,
        "strength_low": strength.low,
        "strength_high": strength.high,
        "named": np.where(sure, named, ""),
    }
    table = exact.assign({name: ("pair", np.asarray(values)) for name, values in per_pair.items()})
    return table.assign_attrs(n=units.count, effective=units.effective)


def by_unit(exact: xr.Dataset, units: stats.Units) -> Float[np.ndarray, "pair unit"]:
    """Interaction (%) on each image, or its sum over each person's images; means over timesteps."""
    clean = exact.clean_loss.values.mean(-1, keepdims=True)
    return units.sums(100 * exact.interaction.values / clean).mean(1)


def costs_alone_or_paired(table: xr.Dataset) -> dict[str, Float[np.ndarray, " t"]]:
    """Component -> its relative loss increase (%) at each timestep when ablated alone, or with one other
    component of the pairs ablated already, whichever is largest in size on average.

    Args:
      table: of `pair_effects`.
    """
    clean = table.clean_loss.mean("image").values
    first, second, both = (
        stats.percent_increase(table[name].mean("image").transpose("pair", "t").values, clean)
        for name in ("without_a", "without_b", "without_both")
    )
    options: dict[str, list[np.ndarray]] = {}
    for i, names in enumerate(zip(table.a.values.tolist(), table.b.values.tolist(), strict=True)):
        for name, alone, other in zip(names, (first[i], second[i]), (second[i], first[i]), strict=True):
            options.setdefault(name, []).extend([alone, both[i] - other])
    return {name: max(costs, key=lambda cost: abs(cost.mean())) for name, costs in options.items()}


def named_pairs(table: xr.Dataset) -> xr.Dataset:
    """The pairs that have a name, the largest interaction first."""
    which = np.flatnonzero(table.named.values != "")
    return table.isel(pair=which[np.argsort(-np.abs(table.estimate.values[which]), kind="stable")])


def groups(table: xr.Dataset) -> list[tuple[str, ...]]:
    """Groups of three or more components of which any one can be ablated but no two: each costs less than
    `MIN_INTERACTION` alone, and any two of them are named `BACKUP`.

    Pairs don't show groups of which two can be ablated but not three.

    Args:
      table: of `interaction_table`.

    Returns:
      The largest groups first, names in the table's order; none is part of another.
    """
    single: dict[str, float] = {}
    backed = set()
    for i, (a, b) in enumerate(zip(table.a.values.tolist(), table.b.values.tolist(), strict=True)):
        single[a], single[b] = float(table.single_a[i]), float(table.single_b[i])
        if table.named[i] == BACKUP:
            backed |= {(a, b), (b, a)}
    silent = [name for name, cost in single.items() if abs(cost) < MIN_INTERACTION]
    largest: list[tuple[str, ...]] = []
    for size in range(len(silent), 2, -1):
        for members in itertools.combinations(silent, size):
            is_new = not any(set(members) <= set(group) for group in largest)
            if is_new and backed.issuperset(itertools.combinations(members, 2)):
                largest.append(members)
    return largest


def few(table: xr.Dataset) -> str:
    """`stats.few_images` of a table of `interaction_table`, and whether any pair can be named."""
    n = int(table.attrs.get("n", table.sizes["image"]))  # results from before 2026-11-30 don't say it
    least = 2.0 ** (1 - n)  # of an exact p by sign flips
    none = f"; no pair can be named, take {stats.MIN_RELIABLE} or more" if least > stats.ALPHA else ""
    return stats.few_images(n, float(table.attrs.get("effective", n))) + none


def lines(table: xr.Dataset) -> list[str]:
    """The named pairs as a table, and `groups`; percent of the clean loss."""
    heads = (
        *("pair", "first", "second", "both", "interaction", "interval"),
        *("strength", "interval", "relation"),
    )
    rows = []
    named = named_pairs(table)
    for i in range(named.sizes["pair"]):
        pair = named.isel(pair=i)
        names = f"{pair.a.item()} + {pair.b.item()}"
        values = [f"{float(pair[name]):.2f}" for name in ("single_a", "single_b", "joint", "estimate")]
        bounds = f"[{float(pair.low):.2f}, {float(pair.high):.2f}]"
        relative = f"[{float(pair.strength_low):.2f}, {float(pair.strength_high):.2f}]"
        rows.append([names, *values, bounds, f"{float(pair.strength):.2f}", relative, pair.named.item()])
    count, total = named.sizes["pair"], table.sizes["pair"]
    return [
        *text_table(heads, rows),
        *(f"any one may go, no two: {', '.join(members)}" for members in groups(table)),
        f"{count} of {total} pairs interact by more than {MIN_INTERACTION:g} % of the loss, each by its own "
        f"95 % interval{few(table)}",
    ]
