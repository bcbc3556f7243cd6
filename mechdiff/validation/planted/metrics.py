"""Agreement of scores of components with the planted truth, over instances.

A method gives each component a score, `[component, t]`, in % of the clean loss where it predicts a loss;
components are ranked by |mean over t|, of which values below `NOTHING` tie with 0. Measures:
  auroc      probability that a planted component outranks another one; ties count half
  precision  share of planted components among the first k, k being their number
  sign       share of planted components whose score has the planted sign (methods that predict a loss)
  window     Jaccard index of the planted timesteps and those with |score_t| >= a tenth of the largest
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from mechdiff import stats
from mechdiff.core.text_table import text_table

MEASURES = ("auroc", "precision", "sign", "window")
NOTHING = 0.01  # % of the clean loss: what float32 rounding can make
IN_WINDOW = 0.1  # of the largest |score| over timesteps


def compare(
    scores: Float[np.ndarray, "component t"],
    signs: np.ndarray,
    inside: Bool[np.ndarray, " t"] | None = None,
    signed: bool = True,
    nothing: float | None = None,
) -> dict[str, float]:
    """`MEASURES` of one method's scores; components with NaN are excluded.

    Args:
      signs: planted sign, 0 for components that are not planted.
      inside: timesteps of the planted window.
      signed: whether scores have the sign of a loss increase.
      nothing: sizes below this tie with 0; None: `NOTHING` of signed scores, else 0.
    """
    scored = ~np.isnan(scores).any(axis=1)
    scores, signs = scores[scored].astype(np.float64), signs[scored]
    size, matters = np.abs(scores.mean(axis=1)), signs != 0
    if nothing is None:
        nothing = NOTHING if signed else 0.0
    size = np.where(size < nothing, 0.0, size)
    k, others = int(matters.sum()), int((~matters).sum())
    if not k or not others:
        return dict.fromkeys(MEASURES, float("nan"))
    area = (rankdata(size)[matters].sum() - k * (k + 1) / 2) / (k * others)
    # Where scores tie at the k-th place, the expected share under a random order.
    cut = np.sort(size)[-k]
    above, tied = size > cut, size == cut
    hits = (above & matters).sum() + (k - above.sum()) * (tied & matters).sum() / tied.sum()
    result = {
        "auroc": float(area),
        "precision": float(hits / k),
        "sign": float("nan"),
        "window": float("nan"),
    }
    if signed:
        predicted = np.where(size > 0, np.sign(scores.mean(axis=1)), 0)
        result["sign"] = float((predicted == signs)[matters].mean())
    if inside is not None:
        by_timestep = np.abs(scores[matters])
        active = (by_timestep >= IN_WINDOW * by_timestep.max(axis=1, keepdims=True)) & (by_timestep > 0)
        result["window"] = float(((active & inside).sum(1) / (active | inside).sum(1)).mean())
    return result


def summarize(records: Iterable[dict], repeats: int = 2000) -> list[dict]:
    """Means by plant and method, with 95 % bootstrap intervals over instances and sizes.

    Returns:
      rows with `plant`, `method`, `n` and measure -> [mean, low, high], NaN where it applies to no instance.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        groups.setdefault((record["plant"], record["method"]), []).append(record)
    return [
        {"plant": plant, "method": method, "n": len(members)}
        | {measure: _mean([record[measure] for record in members], repeats) for measure in MEASURES}
        for (plant, method), members in groups.items()
    ]


def _mean(values: list[float], repeats: int) -> list[float]:
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return [float("nan")] * 3
    if len(values) == 1:
        return [values[0], float("nan"), float("nan")]
    interval = stats.bootstrap_mean(np.array(values), repeats=repeats, method="percentile")
    return [float(end) for end in (interval.estimate, interval.low, interval.high)]


def table(rows: Sequence[dict]) -> str:
    """Rows of `summarize` as text; a measure that does not apply is a dash."""
    cells = [
        (row["plant"], row["method"], str(row["n"]), *(_cell(*row[measure]) for measure in MEASURES))
        for row in rows
    ]
    return "\n".join(text_table(("plant", "method", "n", *MEASURES), cells))


def _cell(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.2f}" if np.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
