"""Agreement of scores with exact effects: rank correlation, signs, recall of the largest.

These numbers have no interval: components are no sample of others, and both sides are of the same images.
What they are worth shows beside what scores in random order would give (`Agreement.by_chance`): .91 of the 10
largest of 11 components. Of components that were not run a screen tells its miss rate, with an interval
(`audits`).
"""

import dataclasses
import itertools
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

    @property
    def by_chance(self) -> tuple[float, float]:
        """What `recall` and `listed` are on average where scores are in random order.

        Example:
          >>> Agreement(n=40, k=10, spearman=0.9, sign=1.0, recall=0.8, listed=1.0).by_chance
          (0.25, 0.5)
        """
        return min(1.0, self.k / self.n), min(1.0, 2 * self.k / self.n)


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
    """Table of medians and worst over networks, for every point of expansion, component type and timestep;
    and of what recall would be by chance.

    Args:
      networks: for each, `score_agreement` by point of expansion.
    """
    heads = ["median over networks"]
    for measure in ("Spearman", "signs"):
        heads += [measure, "worst"]
    for measure in ("recall", "listed"):
        heads += [measure, "worst", "by chance"]
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
            cells = [[f"{np.median(v):.2f}", f"{v.min():.2f}"] for v in defined]
            chance = np.median([agreed.by_chance for agreed in group], axis=0)
            for shown, value in zip(cells[2:], chance, strict=True):
                shown.append(f"{value:.2f}")
            rows.append([f"{point}: {name}", *itertools.chain(*cells)])
    return text_table(heads, rows)
