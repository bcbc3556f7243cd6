"""Redundant pairs of components: interactions ranked by curvature, verified by exact runs."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.circuits.backups import by_unit, interaction_table
from mechdiff.circuits.interactions import pair_effects, pair_scores
from mechdiff.circuits.score_agreement import Agreement, agreement
from mechdiff.core import keys
from mechdiff.core.errors import ConfigError
from mechdiff.core.text_table import counted, text_table
from mechdiff.core.types import AnyArray
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Examinable


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """Which pairs are run exactly, and how certain their intervals are.

    Attributes:
      top: pairs of the largest |score|, at least 1.
      audit: pairs of the rest, at random.
      seed: of the audit's draw, of the bootstrap and of the sign flips.
      confidence: of each interval.

    Raises:
      ConfigError: counts that are too small.
    """

    top: int = 20
    audit: int = 20
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self):
        if self.top < 1 or self.audit < 0:
            raise ConfigError(f"top={self.top}, audit={self.audit}: need 1 and 0 at least")


def verified_pairs(
    denoiser: Examinable,
    eval_set: EvalSet,
    others: EvalSet | Float[AnyArray, "others height width channels"],
    chosen: Sequence[Component],
    *,
    config: PairConfig | None = None,
    people: Int[np.ndarray, " image"] | None = None,
    folder: Path | None = None,
) -> xr.Dataset:
    """Scores all pairs of `chosen`; runs the largest |scores| and a random audit of the rest exactly.

    Scores are taken on `others`, so that the choice of pairs is independent of the images that they are
    verified on: p values need correction for the verified pairs alone.

    Args:
      eval_set: that pairs are verified on.
      others: images in [-1, 1] that pairs are scored on, different ones; an `EvalSet` where
        they have a condition.
      config: how many pairs are run, and the seed; None: `PairConfig()`.
      people: number of the person in each image of `eval_set`; then people are resampled and flipped.
      folder: what is measured is kept here too, so that an interrupted run can go on; None: nothing is kept
        on disk.

    Returns:
      The variables and attributes of `backups.interaction_table`, but `p` (sign flips) corrected by Holm for
      all verified pairs (`named` goes by that of max-T); of each its `score` (%) and whether it was
      `audited`; `curvature` of all pairs, dims `t, left, right`.

    Raises:
      ConfigError: fewer than two components.
    """
    config = config or PairConfig()
    if len(chosen) < 2:
        raise ConfigError(f"{len(chosen)} components: a pair needs two")
    score_set = others
    if not isinstance(others, EvalSet):
        score_set = EvalSet(others, eval_set.timesteps, keys.stream(eval_set.key, "pair scores"))
    scored = pair_scores(denoiser, score_set, chosen, folder=folder)
    score = (100 * scored.curvature / scored.clean_loss).mean("t").values
    ranked = sorted(itertools.combinations(range(len(chosen)), 2), key=lambda pair: -abs(score[pair]))
    top, left = ranked[: config.top], ranked[config.top :]
    audited = np.random.default_rng(config.seed).permutation(len(left))[: config.audit]
    picked = [*top, *(left[i] for i in audited)]
    exact = pair_effects(denoiser, eval_set, [(chosen[a], chosen[b]) for a, b in picked], folder)
    table = interaction_table(exact, people, config.seed, config.confidence)
    tested = by_unit(exact, stats.units_from(people, eval_set.count))
    per_pair = {
        "score": [score[pair] for pair in picked],
        "p": stats.holm(stats.permutation_test(tested, seed=config.seed)),
        "audited": np.arange(len(picked)) >= config.top,
    }
    curvature = {"curvature": scored.curvature.rename(a="left", b="right")}
    return table.assign({name: ("pair", np.asarray(values)) for name, values in per_pair.items()} | curvature)


def pair_agreement(pairs: xr.Dataset, k: int = 10) -> dict[str, Agreement]:
    """Agreement of scores with exact interactions, over all pairs of `verified_pairs` and over its audit.

    The audit is a random sample of the pairs of small scores; all verified pairs are a choice by score.
    Recall is of the `k` largest, or of a third of the pairs where that is fewer.
    """
    groups = {"verified": np.ones(pairs.sizes["pair"], bool), "audited": pairs.audited.values}
    return {
        name: agreement(
            pairs.score.values[which], pairs.estimate.values[which], min(k, int(np.ceil(which.sum() / 3)))
        )
        for name, which in groups.items()
        if which.any()
    }


def pair_lines(pairs: xr.Dataset) -> list[str]:
    """`verified_pairs` as a table, the largest exact interaction first; percent of the clean loss."""
    heads = ("pair", "first", "second", "score", "interaction", "interval", "p (Holm)", "")
    rows = []
    for i in np.argsort(-np.abs(pairs.estimate.values), kind="stable"):
        pair = pairs.isel(pair=i)
        names = f"{pair.a.item()} + {pair.b.item()}"
        values = [f"{float(pair[name]):.3f}" for name in ("single_a", "single_b", "score", "estimate")]
        bounds = f"[{float(pair.low):.3f}, {float(pair.high):.3f}]"
        rows.append([names, *values, bounds, f"{float(pair.p):.4f}", "audited" if pair.audited else ""])
    groups = [agreement_line(name, group) for name, group in pair_agreement(pairs).items()]
    return [*text_table(heads, rows), *groups]


def agreement_line(name: str, group: Agreement) -> str:
    """How well scores of some pairs agree with their exact interactions, as far as so many pairs can say.

    Args:
      name: of the pairs, as `pair_agreement` calls them.
    """
    phrases = [f"{name}: {counted(group.n, 'pair')}"]
    if np.isfinite(group.spearman):
        phrases.append(f"rank correlation of sizes {group.spearman:.2f}")
    phrases.append(f"equal signs {group.sign:.0%}")
    if group.k > 1:
        recall = f"{group.recall:.0%} ({group.by_chance[0]:.0%} by chance)"
        phrases.append(f"{recall} of the {group.k} largest among the {group.k} best scores")
    elif group.n > 1:
        phrases.append(f"the largest {'has' if group.recall else 'does not have'} the best score")
    return ", ".join(phrases)
