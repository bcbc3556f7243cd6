"""Screen all components by their scores, verify the best exactly, and estimate what was missed.

The shortlist holds the components with the largest |score|; a random audit of the rest, verified too, tells
how often the screen misses. While that could be more often than is allowed, the shortlist doubles. What was
verified once is never computed again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from scipy.stats import binomtest, spearmanr

from mechdiff.attribution import gate_scores
from mechdiff.config import SweepConfig
from mechdiff.errors import ConfigError
from mechdiff.interventions import Component
from mechdiff.sweep import Subject, teacher_forced
from mechdiff.types import Images, PRNGKey, PyTree
from mechdiff.unet import components


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well scores say what exact effects are, over `n` components.

    Attributes:
      spearman: rank correlation of |score| and |effect|; NaN below 3 components.
      sign: share with equal signs.
      recall: share of the `k` largest |effect| among the `k` largest |score|.
    """

    n: int
    k: int
    spearman: float
    sign: float
    recall: float


@dataclasses.dataclass(frozen=True)
class VerifiedScreen:
    """What a screen found, and how far it can be trusted.

    Attributes:
      scores: of `attribution.gate_scores`, for all components.
      score: pooled score in Deg%, for all components, in their order.
      effect: pooled exact Deg% of those verified, NaN for the rest.
      shortlist, audited: names.
      k: how many of the largest effects the screen is asked to find.
      miss_rate: share of the audit with an |effect| above the k-th largest of the shortlist.
      miss_interval: its 95 % Clopper-Pearson interval.
      overall: agreement over all verified components; `by_part` and `by_t` split it.
    """

    scores: xr.Dataset
    score: Float[np.ndarray, " component"]
    effect: Float[np.ndarray, " component"]
    shortlist: tuple[str, ...]
    audited: tuple[str, ...]
    k: int
    miss_rate: float
    miss_interval: tuple[float, float]
    overall: Agreement
    by_part: dict[str, Agreement]
    by_t: dict[int, Agreement]


def agreement(score: Float[np.ndarray, " n"], effect: Float[np.ndarray, " n"], k: int) -> Agreement:
    """Compares scores with exact effects; `k` is cut to their number."""
    k = min(k, len(score))
    top = lambda values: set(np.argsort(-np.abs(values), kind="stable")[:k].tolist())  # noqa: E731
    enough = len(score) > 2 and np.ptp(np.abs(score)) > 0 and np.ptp(np.abs(effect)) > 0
    return Agreement(
        n=len(score),
        k=k,
        spearman=float(spearmanr(np.abs(score), np.abs(effect))[0]) if enough else float("nan"),
        sign=float((np.sign(score) == np.sign(effect)).mean()),
        recall=len(top(score) & top(effect)) / k,
    )


def screen_and_verify(
    subject: Subject,
    images: Images,
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    key: PRNGKey,
    folder: Path,
    *,
    chosen: Sequence[Component] | None = None,
    kind: str = "zero",
    fills: PyTree = None,
    probes: int = 4,
    k: int = 10,
    shortlist: int = 20,
    audit: int = 20,
    miss_bound: float = 0.2,
    seed: int = 0,
) -> VerifiedScreen:
    """Finds the components with the `k` largest pooled |Deg%| without running all of them.

    Args:
      images: in [-1, 1]; scores and exact runs see the same images, noise and timesteps.
      folder: exact runs are kept here, see `sweep.teacher_forced`.
      chosen: components to screen, thousands if wished; all of the network if None.
      shortlist: components verified first, at least `k`.
      audit: components of the rest that are verified, drawn at random.
      miss_bound: the shortlist doubles while the upper end of the miss rate's interval is above this. With a
        clean audit of n that end is about 3.7 / n.
      seed: of the audit's draw.

    Raises:
      ConfigError: a shortlist below `k`, an audit below 1, or a bound outside (0, 1].
    """
    if shortlist < k or k < 1 or audit < 1 or not 0 < miss_bound <= 1:
        raise ConfigError(
            f"shortlist={shortlist}, k={k}, audit={audit}, miss_bound={miss_bound}: "
            "need shortlist >= k >= 1, audit >= 1 and 0 < miss_bound <= 1"
        )
    chosen = tuple(chosen or components(subject.unet))
    scores = gate_scores(
        subject, images, timesteps, key, chosen=chosen, kind=kind, fills=fills, probes=probes
    )
    score = _pooled(scores.score.values, scores.clean_loss.values)
    order = np.argsort(-np.abs(score), kind="stable")
    exact = np.full(scores.score.shape[:2], np.nan)  # Deg% per component and t

    def verify(which: np.ndarray) -> None:
        new = which[np.isnan(exact[which, 0])]
        if len(new):
            parts = [chosen[i] for i in new]
            config = SweepConfig(kinds=(kind,), image_block=len(images))
            given = None if kind == "zero" else {kind: fills}
            found = teacher_forced(
                subject, images, timesteps, key, folder, config=config, fills=given, chosen=parts
            ).isel(kind=0)
            exact[new] = 100 * (found.loss.mean("image") / found.clean_loss.mean("image") - 1).values

    rng = np.random.default_rng(seed)
    size = min(shortlist, len(chosen))
    while True:
        listed, rest = order[:size], order[size:]
        verify(listed)
        audited = rng.permutation(rest)[: min(audit, len(rest))]
        verify(audited)
        effect = exact.mean(1)
        bar = np.sort(np.abs(effect[listed]))[::-1][min(k, size) - 1]
        missed = int((np.abs(effect[audited]) > bar).sum())
        low, high = _proportion(missed, len(audited))
        if high <= miss_bound or len(rest) == 0:
            break
        size = min(2 * size, len(chosen))
    done = np.flatnonzero(~np.isnan(effect))
    by_level = 100 * scores.score.mean("image").values / scores.clean_loss.mean("image").values
    kinds = np.array([component.kind for component in chosen])
    named = lambda which: tuple(chosen[i].name for i in which)  # noqa: E731
    return VerifiedScreen(
        scores,
        score,
        effect,
        named(listed),
        named(audited),
        k,
        missed / max(len(audited), 1),
        (low, high),
        agreement(score[done], effect[done], k),
        {
            part: agreement(score[done[kinds[done] == part]], effect[done[kinds[done] == part]], k)
            for part in sorted(set(kinds[done]))
        },
        {int(t): agreement(by_level[done, i], exact[done, i], k) for i, t in enumerate(scores.t.values)},
    )


def _pooled(score: np.ndarray, clean: np.ndarray) -> Float[np.ndarray, " component"]:
    """Mean over t of 100 score / clean loss, as `effects` pools exact damage."""
    return 100 * (score.mean(-1) / clean.mean(-1)).mean(-1)


def _proportion(count: int, n: int) -> tuple[float, float]:
    if n == 0:
        return 0.0, 0.0
    interval = binomtest(count, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)
