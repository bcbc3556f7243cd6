"""Tables of a finished screen: what was verified, with intervals, and how far the scores can be trusted."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mechdiff import stats
from mechdiff.circuits.screening import VerifiedScreen
from mechdiff.core.text_table import text_table


def effect_intervals(screen: VerifiedScreen, units: stats.Units) -> stats.Interval:
    """95 % intervals of the effects (%) of the components that were verified; NaN for the rest.

    They are of each component alone, on the images that the ranking saw too, and wider at both ends by the
    error of reduced precision.

    Args:
      units: what is resampled, images or people.
    """
    done = ~np.isnan(screen.effect)
    loss = screen.loss[done]

    def increase(weights: np.ndarray) -> np.ndarray:
        means = stats.weighted_mean(loss, weights), stats.weighted_mean(screen.clean_loss, weights)
        return stats.percent_increase(*means).mean(axis=1)

    verified = stats.bootstrap_units(increase, units, student=True)
    low, high = np.full((2, len(done)), np.nan)
    low[done] = verified.low - screen.precision_error[done]
    high[done] = verified.high + screen.precision_error[done]
    return dataclasses.replace(verified, estimate=screen.effect, low=low, high=high)


def top(
    screen: VerifiedScreen, names: Sequence[str], effects: stats.Interval, count: int = 10
) -> list[dict[str, object]]:
    """The verified components of the largest effects, of either sign: component, score and exact effect with
    its 95 % interval, %.

    Args:
      names: of all components, in their order.
      effects: their intervals.
    """
    sizes = np.where(np.isnan(screen.effect), -1.0, np.abs(screen.effect))
    order = np.argsort(-sizes, kind="stable")[:count]
    return [
        {
            "component": names[i],
            "score, %": float(screen.score[i]),
            "exact, %": float(screen.effect[i]),
            "95 % interval": (float(effects.low[i]), float(effects.high[i])),
            "n": effects.n,
        }
        for i in order
        if sizes[i] >= 0
    ]


def lines(screen: VerifiedScreen, names: Sequence[str]) -> list[str]:
    """A screen as a table: what was verified, by size, and how far the scores can be trusted."""
    row_of = {name: i for i, name in enumerate(names)}
    done = [row_of[name] for name in (*screen.shortlist, *screen.audited)]
    done.sort(key=lambda i: -abs(screen.effect[i]))
    error = float(np.max(screen.precision_error[done], initial=0.0))
    precise = [f"precision {error:.2g} points, of scores {screen.score_error:.2g}"] if error else []
    groups = {"all": screen.fidelity.overall, **screen.fidelity.by_part}
    groups |= {f"t = {t}": agreement for t, agreement in screen.fidelity.by_t.items()}
    low, high = screen.miss_interval
    scores = [(names[i], f"{screen.score[i]:.3f} %", f"{screen.effect[i]:.3f} %") for i in done]
    agreements = [
        (
            name,
            f"{group.n}",
            f"{group.spearman:.2f}",
            *(f"{x:.0%}" for x in (group.sign, group.recall, group.by_chance[0])),
            *(f"{x:.0%}" for x in (group.listed, group.by_chance[1])),
        )
        for name, group in groups.items()
    ]
    heads = ("of those verified", "n", "Spearman", "signs", "recall", "by chance", "listed", "by chance")
    return [
        *text_table(("component", "score", "exact"), scores),
        *text_table(heads, agreements),
        f"{len(done):,} of {len(names):,} verified; of those not on the shortlist {screen.miss_rate:.1%} "
        f"[{low:.1%}, {high:.1%}] are missed ({len(screen.audited)} audited, audit {screen.looks})",
        *precise,
    ]
