"""One promise of a statistical rule, and how it was kept over many made-up data sets."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from scipy import special
from scipy.stats import binomtest, kstest

from mechdiff import stats

ALPHA = 0.05  # of tests and families
LEVEL = 0.95  # of intervals
SURE = 0.999  # a check fails where chance would fail it less often than once in a thousand


@dataclasses.dataclass(frozen=True)
class Check:
    """One promise and what became of it.

    Attributes:
      name: what was checked.
      promise: `uniform`, `covers`, `errs at most` (a null) or `finds at least` (a positive control).
      nominal: coverage or rate promised; NaN for `uniform`.
      found: coverage or rate found; for `uniform` the share of p values at or below `ALPHA`.
      low, high: its 95 % Clopper-Pearson interval over repetitions.
      p: of the Kolmogorov-Smirnov test, or of the binomial test against breaking the promise.
      n: repetitions.
    """

    name: str
    promise: str
    nominal: float
    found: float
    low: float
    high: float
    p: float
    n: int

    @property
    def holds(self) -> bool:
        """Whether the promise was not seen to be broken."""
        return self.p > 1 - SURE


def uniform(name: str, p: Float[np.ndarray, " repeat"]) -> Check:
    """p values under a null that is exactly true."""
    small = binomtest(int((p <= ALPHA).sum()), len(p))
    return Check(name, "uniform", np.nan, *_share(small), float(kstest(p, "uniform").pvalue), len(p))


def covers(name: str, covered: Bool[np.ndarray, " repeat"], level: float = LEVEL) -> Check:
    """Whether intervals held the truth."""
    found = binomtest(int(covered.sum()), len(covered), level, alternative="less")
    return Check(name, "covers", level, *_share(binomtest(found.k, found.n)), float(found.pvalue), found.n)


def errs(name: str, wrong: Bool[np.ndarray, " repeat"], most: float = ALPHA) -> Check:
    """How often a rule says what is not so."""
    found = binomtest(int(wrong.sum()), len(wrong), most, alternative="greater")
    return Check(
        name, "errs at most", most, *_share(binomtest(found.k, found.n)), float(found.pvalue), found.n
    )


def finds(name: str, right: Bool[np.ndarray, " repeat"], least: float) -> Check:
    """How often a rule says what is so: a positive control, of which `least` was asked."""
    found = binomtest(int(right.sum()), len(right), least, alternative="less")
    return Check(
        name, "finds at least", least, *_share(binomtest(found.k, found.n)), float(found.pvalue), found.n
    )


def mean_error(name: str, rate: Float[np.ndarray, " repeat"]) -> Check:
    """A mean of rates in [0, 1] against `ALPHA`: Student, as shares are no counts."""
    interval = stats.student_mean(rate, LEVEL)
    error = max(float(rate.std(ddof=1)) / np.sqrt(len(rate)), 1e-12)
    ends = float(interval.estimate), float(interval.low), float(interval.high)
    p = float(special.ndtr((ALPHA - ends[0]) / error))
    return Check(name, "errs at most", ALPHA, *ends, p, len(rate))


def table(checks: list[Check]) -> str:
    """Checks as text, one a line."""
    lines = [f"{'check':70}{'promise':16}{'nominal':>8}  {'found':24}{'p':>8}{'n':>6}"]
    for check in checks:
        nominal = "" if np.isnan(check.nominal) else f"{check.nominal:.2f}"
        found = f"{check.found:.3f} [{check.low:.3f}, {check.high:.3f}]"
        verdict = "" if check.holds else "  BROKEN"
        lines.append(
            f"{check.name:70}{check.promise:16}{nominal:>8}  {found:24}{check.p:8.3f}{check.n:6}{verdict}"
        )
    return "\n".join(lines)


def _share(test) -> tuple[float, float, float]:
    interval = test.proportion_ci(0.95)
    return float(test.statistic), float(interval.low), float(interval.high)
