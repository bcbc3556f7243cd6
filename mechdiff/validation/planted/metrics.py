"""How well scores of components agree with what was planted, over instances.

A method gives each component a score, `[component, t]`, in % of the clean loss where it predicts a loss;
components are ranked by |mean over t|, where less than `NOTHING` ties with 0. Measures:
  auroc      chance that a component that matters outranks one that does not; ties count half
  precision  share of the k first that matter, k being how many there are
  sign       share of those that matter whose score has the sign planted (methods that predict a loss)
  window     Jaccard index of the levels planted and of those with |score_t| >= a tenth of the largest
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from mechdiff import stats

MEASURES = ("auroc", "precision", "sign", "window")
NOTHING = 0.01  # % of the clean loss: what float32 rounding can make
IN_WINDOW = 0.1  # of the largest |score| over levels


def compare(
    scores: Float[np.ndarray, "component t"],
    signs: np.ndarray,
    inside: Bool[np.ndarray, " t"] | None = None,
    signed: bool = True,
) -> dict[str, float]:
    """`MEASURES` of one method's scores; components with NaN were not asked.

    Args:
      signs: 0 for components that don't matter.
      inside: levels planted.
      signed: whether scores are in % of the clean loss.
    """
    asked = ~np.isnan(scores).any(axis=1)
    scores, signs = scores[asked].astype(np.float64), signs[asked]
    size, matters = np.abs(scores.mean(axis=1)), signs != 0
    if signed:
        size = np.where(size < NOTHING, 0.0, size)
    k, others = int(matters.sum()), int((~matters).sum())
    if not k or not others:
        return dict.fromkeys(MEASURES, float("nan"))
    area = (rankdata(size)[matters].sum() - k * (k + 1) / 2) / (k * others)
    # Where scores tie at the k-th place, the share that chance would find.
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
        result["sign"] = float((np.sign(scores.mean(axis=1)) * (size > 0) == signs)[matters].mean())
    if inside is not None:
        course = np.abs(scores[matters])
        active = (course >= IN_WINDOW * course.max(axis=1, keepdims=True)) & (course > 0)
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
        {"plant": plant, "method": method, "n": len(found)}
        | {measure: _mean([record[measure] for record in found], repeats) for measure in MEASURES}
        for (plant, method), found in groups.items()
    ]


def _mean(values: list[float], repeats: int) -> list[float]:
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return [float("nan")] * 3
    if len(values) == 1:
        return [values[0], float("nan"), float("nan")]
    found = stats.bootstrap_mean(np.array(values), repeats=repeats, method="percentile")
    return [float(end) for end in (found.estimate, found.low, found.high)]


def table(rows: Sequence[dict]) -> str:
    """Rows of `summarize` as text; a measure that does not apply is a dash."""
    lines = [f"{'plant':12}{'method':26}{'n':>3}" + "".join(f"{measure:>21}" for measure in MEASURES)]
    for row in rows:
        cells = "".join(f"{_cell(*row[measure]):>21}" for measure in MEASURES)
        lines.append(f"{row['plant']:12}{row['method']:26}{row['n']:3}{cells}")
    return "\n".join(lines)


def _cell(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.2f}" if np.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
