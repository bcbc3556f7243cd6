"""Agreement of scores with exact effects: rank correlation, signs, recall of the largest."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import scipy
from jaxtyping import Float, Int

from mechdiff.core.text_table import text_table
from mechdiff.interventions.components import Component


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of scores with exact effects over `n` components.

    Attributes:
      spearman: rank correlation of |score| and |effect|; NaN below 3 components.
      sign: share with equal signs.
      recall: share of the `k` largest |effect| among the `k` largest |score|.
      listed: recall at 2k: the same among the `2 k` largest |score|.
    """

    n: int
    k: int
    spearman: float
    sign: float
    recall: float
    listed: float


@dataclasses.dataclass(frozen=True)
class ScoreAgreement:
    """Agreement of the pooled relative loss increase, overall and within each component type, and of that at
    each timestep."""

    overall: Agreement
    by_part: dict[str, Agreement]
    by_t: dict[int, Agreement]


def agreement(score: Float[np.ndarray, " n"], effect: Float[np.ndarray, " n"], k: int) -> Agreement:
    """Compares scores with exact effects; `k` is cut to their number."""
    k = min(k, len(score))

    def top(values, count):
        return set(np.argsort(-np.abs(values), kind="stable")[:count].tolist())

    enough = len(score) > 2 and np.ptp(np.abs(score)) > 0 and np.ptp(np.abs(effect)) > 0
    return Agreement(
        n=len(score),
        k=k,
        spearman=float(scipy.stats.spearmanr(np.abs(score), np.abs(effect))[0]) if enough else float("nan"),
        sign=float((np.sign(score) == np.sign(effect)).mean()),
        recall=len(top(score, k) & top(effect, k)) / k,
        listed=len(top(score, 2 * k) & top(effect, k)) / k,
    )


def score_agreement(
    score: Float[np.ndarray, "component t"],
    effect: Float[np.ndarray, "component t"],
    chosen: Sequence[Component],
    timesteps: Sequence[int] | Int[np.ndarray, " t"],
    k: int,
) -> ScoreAgreement:
    """`agreement` of relative loss increases at each t, and of their means over t.

    Components with NaN effects are left out.
    """
    done = np.isfinite(effect).all(1)
    score, effect = score[done], effect[done]
    types = np.array([component.component_type for component in chosen])[done]

    def compare(which):
        return agreement(score[which].mean(1), effect[which].mean(1), k)

    return ScoreAgreement(
        compare(slice(None)),
        {str(name): compare(types == name) for name in sorted(set(types))},
        {int(t): agreement(score[:, i], effect[:, i], k) for i, t in enumerate(timesteps)},
    )


def summary(networks: Collection[Mapping[str, ScoreAgreement]]) -> list[str]:
    """Table of medians and worst over networks, for every point of expansion, component type and timestep.

    Args:
      networks: for each, `score_agreement` by point of expansion.
    """
    heads = ["median over networks"]
    for measure in ("Spearman", "signs", "recall", "listed"):
        heads += [measure, "worst"]
    rows = []
    for point in next(iter(networks)):
        groups: dict[str, list[Agreement]] = {}
        for network in networks:
            fidelity = network[point]
            by_t = {f"t = {t}": agreed for t, agreed in sorted(fidelity.by_t.items())}
            for name, agreed in {"all": fidelity.overall, **fidelity.by_part, **by_t}.items():
                groups.setdefault(name, []).append(agreed)
        for name, group in groups.items():
            values = np.array(
                [[agreed.spearman, agreed.sign, agreed.recall, agreed.listed] for agreed in group]
            ).T
            defined = [v[~np.isnan(v)] if not np.isnan(v).all() else v for v in values]
            cells = [f"{value:.2f}" for v in defined for value in (np.median(v), v.min())]
            rows.append([f"{point}: {name}", *cells])
    return text_table(heads, rows)
