"""Claims, results of their tests, and verdicts by rules that were set beforehand.

The unit of replication is the training seed, one network each. Where an estimate can be recomputed on
resampled images (or people, where known), its interval and p also include their sampling error
(`stats.small_samples`). The p values of all claims of one evaluation are one family, adjusted by Holm.
Verdicts:
  supported            the adjusted p is below 0.05 and the 95 % interval lies on the claimed side; for exact
                       tests and tests on held-out networks (`Finding.p_alone`) p alone decides
  not supported        the 95 % interval excludes the claimed side, or the effect was shown to lie within the
                       margin stated beforehand
  undecided            neither, or no p: too few seeds for a test, or networks that do not differ at all
  not testable here    required results are missing, or the measure failed its positive control; see `because`
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechdiff import stats
from mechdiff.core.errors import NotTestable
from mechdiff.core.text_table import text_table
from mechdiff.stats import ALPHA
from mechdiff.stats.small_samples import MIN_SEEDS
from mechdiff.storage.run_log import progress
from mechdiff.study.network_results import NetworkResults


@dataclass(frozen=True)
class Claim:
    """A claim and its verdict.

    Attributes:
      estimand: what is estimated, ours.
      paper_value: what the paper reports, for a reader; its estimand is not known.
      estimate, interval: NaN where there are none; 95 %.
      p, p_adjusted: of no effect on the claimed side; adjusted over the claims of one evaluation.
      n_images: different images per network that the test used; n_seeds: replicate networks.
      n_people: number of people in the images, in networks for which it is known; 0: in none.
    """

    id: str
    statement: str
    estimand: str
    paper_value: str
    estimate: float
    interval: tuple[float, float]
    p: float
    p_adjusted: float
    n_images: int
    n_seeds: int
    verdict: str
    because: str
    n_people: int = 0


@dataclass(frozen=True)
class Finding:
    """The result of a test, before p values are adjusted.

    Attributes:
      p: one-sided, of `null` against the claimed side; NaN where seeds are too few.
      null, above: the claim is that the estimate is above `null`, or below it.
      negligible: the effect was shown to lie within the margin of no effect.
      p_alone: p is exact, or of networks other than those that selected what is tested; it decides alone.
      images, people: that the test used, where these are fewer than the sweep's; None: as many.
    """

    estimate: float
    interval: tuple[float, float]
    p: float
    n_seeds: int
    because: str
    null: float = 0.0
    above: bool = True
    negligible: bool = False
    p_alone: bool = False
    images: int | None = None
    people: int | None = None


@dataclass(frozen=True)
class Question:
    """A claim before it is tested; fields as in `Claim`."""

    id: str
    statement: str
    estimand: str
    paper_value: str
    test: Callable[[Sequence[NetworkResults]], Finding]


def decide(questions: Sequence[Question], networks: Sequence[NetworkResults]) -> list[Claim]:
    """Tests every question on the networks, adjusts p by Holm, and decides."""
    findings: list[Finding | str] = []
    with progress(len(questions), desc="testing", unit="claim") as bar:
        for question in questions:
            try:
                findings.append(question.test(networks))
            except NotTestable as reason:
                findings.append(str(reason))
            bar.update()
    p = np.array([finding.p if isinstance(finding, Finding) else np.nan for finding in findings])
    adjusted = np.full(len(p), np.nan)
    adjusted[~np.isnan(p)] = stats.holm(p[~np.isnan(p)])
    images = min((network.images_total for network in networks), default=0)
    people = min((network.people for network in networks if network.people), default=0)
    return [
        _claim(question, finding, p_adjusted, (images, people))
        for question, finding, p_adjusted in zip(questions, findings, adjusted, strict=True)
    ]


def verdict(finding: Finding, p_adjusted: float) -> str:
    """The verdict by the rules of the module; `p_adjusted` NaN: there is no test, as of too few seeds."""
    sign = 1 if finding.above else -1
    above = [sign * (end - finding.null) for end in finding.interval]  # NaN: neither side
    if p_adjusted < ALPHA and (finding.p_alone or min(above) > 0):
        return "supported"
    against = max(above) < 0 and not finding.p_alone and not np.isnan(p_adjusted)
    return "not supported" if against or finding.negligible else "undecided"


def _claim(question: Question, finding: Finding | str, p_adjusted: float, counts: tuple[int, int]) -> Claim:
    texts = {name: getattr(question, name) for name in ("id", "statement", "estimand", "paper_value")}
    images, people = counts
    if isinstance(finding, str):
        empty = {"estimate": np.nan, "interval": (np.nan, np.nan), "p": np.nan, "n_seeds": 0}
        facts = empty | {"verdict": "not testable here", "because": finding}
    else:
        names = ("estimate", "interval", "p", "n_seeds", "because")
        facts = {name: getattr(finding, name) for name in names} | {"verdict": verdict(finding, p_adjusted)}
        if finding.n_seeds < MIN_SEEDS:  # exact tests may do with two
            facts["because"] += f"; n = {finding.n_seeds} " + (
                f"decides nothing: a test takes {MIN_SEEDS} training seeds"
                if facts["verdict"] == "undecided"
                else f"of a data set is enough for an exact test; an interval takes {MIN_SEEDS} seeds"
            )
        images = images if finding.images is None else finding.images
        people = people if finding.people is None else finding.people
    return Claim(**texts, **facts, n_images=images, n_people=people, p_adjusted=float(p_adjusted))


def table(claims: Sequence[Claim]) -> str:
    """Claims as text, a line of numbers and one of reasons each."""
    heads = ("claim", "verdict", "estimate", "95 % interval", "p (Holm)", "seeds", "images", "people")
    rows = []
    for claim in claims:
        interval = " to ".join(_short(end) for end in claim.interval)
        numbers = (_short(claim.estimate), interval, _short(claim.p_adjusted))
        counts = (str(claim.n_seeds), str(claim.n_images), str(claim.n_people or "-"))
        rows.append((claim.id, claim.verdict, *numbers, *counts))
    head, *lines = text_table(heads, rows)
    reasons = [f"    {claim.because}" for claim in claims]
    return "\n".join([head, *(f"{line}\n{reason}" for line, reason in zip(lines, reasons, strict=True))])


def _short(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"
