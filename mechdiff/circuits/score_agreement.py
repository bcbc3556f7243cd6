"""How well scores say what exact effects are: ranks, signs, and whether the largest are found."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from mechdiff.interventions.components import Component


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well scores say what exact effects are, over `n` components.

    Attributes:
      spearman: rank correlation of |score| and |effect|; NaN below 3 components.
      sign: share with equal signs.
      recall: share of the `k` largest |effect| among the `k` largest |score|.
      listed: the same among the `2 k` largest |score|, a shortlist that would be verified exactly.
    """

    n: int
    k: int
    spearman: float
    sign: float
    recall: float
    listed: float


@dataclasses.dataclass(frozen=True)
class ScoreAgreement:
    """Agreement of pooled Deg%, the same within each kind of component, and of Deg%_t at each timestep."""

    overall: Agreement
    by_part: dict[str, Agreement]
    by_t: dict[int, Agreement]


def agreement(score: Float[np.ndarray, " n"], effect: Float[np.ndarray, " n"], k: int) -> Agreement:
    """Compares scores with exact effects; `k` is cut to their number."""
    k = min(k, len(score))
    top = lambda values, k: set(np.argsort(-np.abs(values), kind="stable")[:k].tolist())
    enough = len(score) > 2 and np.ptp(np.abs(score)) > 0 and np.ptp(np.abs(effect)) > 0
    return Agreement(
        n=len(score),
        k=k,
        spearman=float(spearmanr(np.abs(score), np.abs(effect))[0]) if enough else float("nan"),
        sign=float((np.sign(score) == np.sign(effect)).mean()),
        recall=len(top(score, k) & top(effect, k)) / k,
        listed=len(top(score, 2 * k) & top(effect, k)) / k,
    )


def score_agreement(
    score: Float[np.ndarray, "component t"],
    effect: Float[np.ndarray, "component t"],
    chosen: Sequence[Component],
    timesteps: Sequence[int] | Int[np.ndarray, " levels"],
    k: int,
) -> ScoreAgreement:
    """`agreement` of Deg%_t and its mean over t; components with NaN effects are left out."""
    done = np.isfinite(effect).all(1)
    score, effect = score[done], effect[done]
    ablations = np.array([component.component_type for component in chosen])[done]
    compare = lambda which: agreement(score[which].mean(1), effect[which].mean(1), k)
    return ScoreAgreement(
        compare(slice(None)),
        {str(part): compare(ablations == part) for part in sorted(set(ablations))},
        {int(t): agreement(score[:, i], effect[:, i], k) for i, t in enumerate(timesteps)},
    )


def summary(found: Collection[Mapping[str, ScoreAgreement]]) -> list[str]:
    """A table over networks: medians and worst of them, for every point of expansion, part and timestep.

    Args:
      found: for each network, fidelity by point of expansion.
    """
    heads = (f"{what:>9}{'worst':>8}" for what in ("Spearman", "signs", "recall", "listed"))
    rows = [f"{'median over networks':28}{''.join(heads)}"]
    for point in next(iter(found)):
        groups: dict[str, list[Agreement]] = {}
        for one in (each[point] for each in found):
            parts = {f"t = {t}": at for t, at in sorted(one.by_t.items())}
            for name, at in {"all": one.overall, **one.by_part, **parts}.items():
                groups.setdefault(name, []).append(at)
        for name, some in groups.items():
            values = np.array([[at.spearman, at.sign, at.recall, at.listed] for at in some]).T
            defined = [v[~np.isnan(v)] if not np.isnan(v).all() else v for v in values]
            cells = "".join(f"{np.median(v):9.2f}{v.min():8.2f}" for v in defined)
            rows.append(f"{f'{point}: {name}':28}{cells}")
    return rows
