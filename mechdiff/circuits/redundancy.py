"""Redundant pairs of components: interactions ranked by curvature, verified by exact runs."""

import itertools
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.circuits.backups import by_unit, interaction_table
from mechdiff.circuits.interactions import pair_effects, pair_scores
from mechdiff.circuits.score_agreement import Agreement, agreement
from mechdiff.core import keys
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable


def verified_pairs(
    denoiser: Examinable,
    eval_set: EvalSet,
    others: EvalSet | Float[AnyArray, "others height width channels"],
    chosen: Sequence[Component],
    *,
    top: int = 20,
    audit: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
    people: Int[np.ndarray, " image"] | None = None,
) -> xr.Dataset:
    """Scores all pairs of `chosen`; runs the `top` by |score| and a random audit of the rest exactly.

    Scores are taken on `others`, so that the choice of pairs is independent of the images that they are
    verified on: p values need correction for the verified pairs alone.

    Args:
      eval_set: that pairs are verified on.
      others: images in [-1, 1] that pairs are scored on, different ones; an `EvalSet` where
        they have a condition.
      confidence: of each interval.
      people: number of the person on each image of `eval_set`; then people are resampled and flipped.

    Returns:
      The variables of `backups.interaction_table`, but `p` (sign flips) corrected by Holm for all verified
      pairs; of each its `score` (%) and whether it was `audited`; `curvature` of all pairs, dims
      `t, left, right`.

    Raises:
      ConfigError: fewer than two components, or counts that are too small.
    """
    if len(chosen) < 2 or top < 1 or audit < 0:
        raise ConfigError(f"{len(chosen)} components, top={top}, audit={audit}: need two, 1 and 0 at least")
    score_set = others
    if not isinstance(others, EvalSet):
        score_set = EvalSet(others, eval_set.timesteps, keys.stream(eval_set.key, "pair scores"))
    scored = pair_scores(denoiser, score_set, chosen)
    score = (100 * scored.curvature / scored.clean_loss).mean("t").values
    every = sorted(itertools.combinations(range(len(chosen)), 2), key=lambda pair: -abs(score[pair]))
    rest = np.random.default_rng(seed).permutation(len(every) - min(top, len(every)))[:audit] + top
    picked = [*every[:top], *(every[i] for i in rest)]
    exact = pair_effects(denoiser, eval_set, [(chosen[a], chosen[b]) for a, b in picked])
    table = interaction_table(exact, people, seed, confidence)
    tested = stats.permutation_test(by_unit(exact, stats.units_from(people, eval_set.count)), seed=seed)
    per_pair = {
        "score": [score[pair] for pair in picked],
        "p": stats.holm(tested),
        "audited": np.arange(len(picked)) >= top,
    }
    curvature = {"curvature": scored.curvature.rename(a="left", b="right")}
    return table.assign({name: ("pair", np.asarray(values)) for name, values in per_pair.items()} | curvature)


def pair_agreement(found: xr.Dataset, k: int = 10) -> dict[str, Agreement]:
    """Agreement of scores with exact interactions, over all pairs of `verified_pairs` and over its audit.

    The audit is a random sample of the pairs of small scores; all verified pairs are a choice by score.
    Recall is of the `k` largest, or of a third of the pairs where that is fewer.
    """
    groups = {"verified": np.ones(found.sizes["pair"], bool), "audited": found.audited.values}
    return {
        name: agreement(
            found.score.values[which], found.estimate.values[which], min(k, int(np.ceil(which.sum() / 3)))
        )
        for name, which in groups.items()
        if which.any()
    }


def pair_lines(found: xr.Dataset) -> list[str]:
    """`verified_pairs` as a table, the largest exact interaction first; percent of the clean loss."""
    head = f"{'pair':44}{'first':>9}{'second':>9}{'score':>10}{'interaction':>12}"
    head += f"  {'interval':22}{'p (Holm)':>9}"
    rows = []
    for i in np.argsort(-np.abs(found.estimate.values), kind="stable"):
        pair = found.isel(pair=i)
        values = [float(pair[name]) for name in ("single_a", "single_b", "score", "estimate")]
        bounds = f"[{float(pair.low):.3f}, {float(pair.high):.3f}]"
        numbers = "".join(f"{value:{width}.3f}" for value, width in zip(values, (9, 9, 10, 12), strict=True))
        mark = "  audited" if pair.audited else ""
        names = f"{pair.a.item()} + {pair.b.item()}"
        rows.append(f"{names:44}{numbers}  {bounds:22}{float(pair.p):9.4f}{mark}")
    groups = [
        f"{name}: {group.n} pairs, rank correlation of sizes {group.spearman:.2f}, "
        f"equal signs {group.sign:.0%}, "
        f"{group.recall:.0%} of the {group.k} largest among the {group.k} best scores"
        for name, group in pair_agreement(found).items()
    ]
    return [head, *rows, *groups]
