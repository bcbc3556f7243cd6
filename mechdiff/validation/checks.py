"""Checks of statistical rules: a promised rate against the rate measured over many simulated data sets."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from scipy import special
from scipy.stats import binomtest, kstest

from mechdiff import stats
from mechdiff.core.text_table import text_table
from mechdiff.stats import ALPHA, Interval

CONFIDENCE = 0.95  # of intervals
SURE = 0.999  # a check that holds fails with probability 0.001


@dataclasses.dataclass(frozen=True)
class Check:
    """A promised rate and the measured one.

    Attributes:
      name: what was checked.
      promise: `uniform`, `covers`, `errs at most` (a null) or `finds at least` (a positive control).
      nominal: coverage or rate promised; NaN for `uniform`.
      found: coverage or rate measured; for `uniform` the share of p values at or below `ALPHA`.
      low, high: its 95 % Clopper-Pearson interval over repetitions (Student's for `mean_error`).
      p: of the measured rate if the promise holds: Kolmogorov-Smirnov, binomial, or Student.
      n: repetitions.
      before: rate of the rule that this one replaced, on the same data (`old_rules`) or as an outside audit
        measured it on its own; NaN where there was none.
      before_by: `old rule` or `audit`; empty where there was none.
    """

    name: str
    promise: str
    nominal: float
    found: float
    low: float
    high: float
    p: float
    n: int
    before: float = float("nan")
    before_by: str = ""

    @property
    def holds(self) -> bool:
        """Whether the data do not reject the promise, at p <= 0.001."""
        return self.p > 1 - SURE


def uniform(name: str, p: Float[np.ndarray, " repeat"]) -> Check:
    """p values under a null that is exactly true."""
    small = binomtest(int((p <= ALPHA).sum()), len(p))
    return Check(name, "uniform", np.nan, *_share(small), float(kstest(p, "uniform").pvalue), len(p))


def covers(name: str, covered: Bool[np.ndarray, " repeat"], confidence: float = CONFIDENCE) -> Check:
    """Coverage of intervals against the nominal `confidence`."""
    test = binomtest(int(covered.sum()), len(covered), confidence, alternative="less")
    return Check(name, "covers", confidence, *_share(binomtest(test.k, test.n)), float(test.pvalue), test.n)


def inside(interval: Interval, truth: float | Float[np.ndarray, "*#cells"]) -> Bool[np.ndarray, "*cells"]:
    """Which intervals cover the truth."""
    return np.asarray((interval.low <= truth) & (truth <= interval.high))


def errs(name: str, wrong: Bool[np.ndarray, " repeat"], most: float = ALPHA) -> Check:
    """Error rate of a rule under a null, promised to be at most `most`."""
    test = binomtest(int(wrong.sum()), len(wrong), most, alternative="greater")
    return Check(name, "errs at most", most, *_share(binomtest(test.k, test.n)), float(test.pvalue), test.n)


def finds(name: str, right: Bool[np.ndarray, " repeat"], least: float) -> Check:
    """Power of a rule on a positive control, promised to be at least `least`."""
    test = binomtest(int(right.sum()), len(right), least, alternative="less")
    return Check(
        name, "finds at least", least, *_share(binomtest(test.k, test.n)), float(test.pvalue), test.n
    )


def replacing(check: Check, old: Bool[np.ndarray, " repeat"] | float) -> Check:
    """The check with the rate of the rule that it replaced: outcomes on the same data, or an audit's rate."""
    before_by = "audit" if isinstance(old, float) else "old rule"
    return dataclasses.replace(check, before=float(np.mean(old)), before_by=before_by)


def mean_error(name: str, rate: Float[np.ndarray, " repeat"]) -> Check:
    """A mean of rates in [0, 1], promised to be at most `ALPHA`; Student, since rates are not counts."""
    interval = stats.student_mean(rate, CONFIDENCE)
    error = max(float(rate.std(ddof=1)) / np.sqrt(len(rate)), 1e-12)
    mean, low, high = float(interval.estimate), float(interval.low), float(interval.high)
    p = float(special.ndtr((ALPHA - mean) / error))
    return Check(name, "errs at most", ALPHA, found=mean, low=low, high=high, p=p, n=len(rate))


def table(checks: list[Check]) -> str:
    """Checks as text, one per line."""
    heads = ("check", "promise", "nominal", "measured", "p", "n", "before", "")
    rows = []
    for check in checks:
        nominal = "" if np.isnan(check.nominal) else f"{check.nominal:.2f}"
        measured = f"{check.found:.3f} [{check.low:.3f}, {check.high:.3f}]"
        before = f"{check.before:.3f} {check.before_by}" if check.before_by else ""
        numbers = (nominal, measured, f"{check.p:.3f}", str(check.n), before)
        rows.append((check.name, check.promise, *numbers, "" if check.holds else "VIOLATED"))
    return "\n".join(text_table(heads, rows))


def _share(test) -> tuple[float, float, float]:
    """Observed share and the ends of its 95 % Clopper-Pearson interval."""
    interval = test.proportion_ci(0.95)
    return float(test.statistic), float(interval.low), float(interval.high)
