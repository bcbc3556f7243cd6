"""Which components of a model stand in for each other: pairs found by curvature, verified by exact runs."""

import itertools
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.circuits.interactions import pair_effects, pair_scores
from mechdiff.circuits.score_agreement import Agreement, agreement
from mechdiff.core import keys
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import AnyArray, Images, PRNGKey
from mechdiff.interventions.components import Component
from mechdiff.models.denoiser import Denoiser


def verified_pairs(
    denoiser: Denoiser,
    images: Images,
    others: Float[AnyArray, "others height width channels"],
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    chosen: Sequence[Component],
    *,
    top: int = 20,
    audit: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Scores all pairs of `chosen`; runs the `top` of largest |score| and a random audit of the rest exactly.

    Scores are taken on `others`, so that which pairs are verified says nothing about the `images` that they
    are verified on: the family that p values are corrected for is that of the verified pairs alone.

    Args:
      images, others: in [-1, 1]; different pictures.
      level: of each interval.

    Returns:
      The variables of `pair_effects`; of every verified pair, in percent of the clean loss and as means over
      timesteps, its `score` and its exact `estimate` with `low` and `high` (BCa bootstrap over images), `p`
      (sign flips of images, corrected by Holm for all verified pairs), `single_a` and `single_b` (damage of
      each alone), and whether it was `audited`; `curvature` of all pairs, dims `t, left, right`.

    Raises:
      ConfigError: fewer than two components, or counts that are too small.
    """
    if len(chosen) < 2 or top < 1 or audit < 0:
        raise ConfigError(f"{len(chosen)} components, top={top}, audit={audit}: need two, 1 and 0 at least")
    scored = pair_scores(denoiser, others, timesteps, keys.stream(key, "pair scores"), chosen)
    score = (100 * scored.curvature / scored.clean_loss).mean("t").values
    every = sorted(itertools.combinations(range(len(chosen)), 2), key=lambda pair: -abs(score[pair]))
    rest = np.random.default_rng(seed).permutation(len(every) - min(top, len(every)))[:audit] + top
    picked = [*every[:top], *(every[i] for i in rest)]
    exact = pair_effects(denoiser, images, timesteps, key, [(chosen[a], chosen[b]) for a, b in picked])
    clean, synergy = exact.clean_loss.values, exact.synergy.values
    weights = stats.bootstrap_weights(len(images), seed=seed)
    interval = stats.bootstrap(lambda w: 100 * (synergy @ w.T / (clean @ w.T)).mean(1), weights, confidence)
    each = 100 * (synergy / clean.mean(-1, keepdims=True)).mean(1)
    damage = lambda loss: 100 * (loss.mean("image") / exact.clean_loss.mean("image") - 1).mean("t").values
    found = {
        "score": [score[pair] for pair in picked],
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p": stats.holm(stats.permutation_test(each, seed=seed)),
        "single_a": damage(exact.without_a),
        "single_b": damage(exact.without_b),
        "audited": np.arange(len(picked)) >= top,
    }
    curvature = {"curvature": scored.curvature.rename(a="left", b="right")}
    return exact.assign({name: ("pair", np.asarray(values)) for name, values in found.items()} | curvature)


def pair_agreement(found: xr.Dataset, k: int = 10) -> dict[str, Agreement]:
    """How well scores say what exact synergies are, over what `verified_pairs` verified and over its audit.

    The audit is a random part of the pairs of small scores; all verified pairs are a choice by score. Recall
    is of the `k` largest, or of a third of the pairs where that is fewer.
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
    """`verified_pairs` as a table, the largest exact synergy first; percent of the clean loss."""
    head = f"{'pair':44}{'first':>9}{'second':>9}{'score':>10}{'synergy':>10}  {'interval':22}{'p (Holm)':>9}"
    rows = []
    for i in np.argsort(-np.abs(found.estimate.values), kind="stable"):
        one = found.isel(pair=i)
        values = [float(one[name]) for name in ("single_a", "single_b", "score", "estimate")]
        bounds = f"[{float(one.low):.3f}, {float(one.high):.3f}]"
        numbers = "".join(f"{value:{width}.3f}" for value, width in zip(values, (9, 9, 10, 10)))
        mark = "  audited" if one.audited else ""
        rows.append(f"{f'{one.a.item()} + {one.b.item()}':44}{numbers}  {bounds:22}{float(one.p):9.4f}{mark}")
    groups = [
        f"{name}: {one.n} pairs, rank correlation of sizes {one.spearman:.2f}, equal signs {one.sign:.0%}, "
        f"{one.recall:.0%} of the {one.k} largest among the {one.k} best scores"
        for name, one in pair_agreement(found).items()
    ]
    return [head, *rows, *groups]
