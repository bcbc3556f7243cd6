"""A claim, what a test of it found, and the verdict that follows by rules set beforehand.

The unit of replication is the training seed, one network each; where an estimate can be taken anew on
resampled images (people, where it is known who is on them), its interval and p also hold over these
(`stats.small_samples`). The p values of all claims of one evaluation are one family, adjusted by Holm.
Verdicts:
  supported            the adjusted p is below 0.05 and the 95 % interval lies on the side that is claimed; of
                       exact tests and those on held-out networks (`Finding.p_alone`) the p alone decides
  not supported        the 95 % interval excludes that side, or the effect was shown to lie within the margin
                       that was stated beforehand
  undecided            neither, or seeds are too few for a test
  not testable here    what it takes is missing, or the measure failed its positive control; `because` says
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechdiff import stats
from mechdiff.core.errors import NotTestable
from mechdiff.stats.small_samples import FEWEST
from mechdiff.study.records import Network

ALPHA = 0.05


@dataclass(frozen=True)
class Claim:
    """A claim and its verdict.

    Attributes:
      estimand: what is estimated, ours.
      paper_value: what the paper reports, for a reader; its estimand is not known.
      estimate, interval: NaN where there are none; 95 %.
      p, p_adjusted: of no effect on the claimed side; adjusted over the claims of one evaluation.
      n_images: different pictures shown to each network; n_seeds: networks that replicate.
      n_people: on the pictures of those networks that show known people; 0: there are none.
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
    """What a test came to, before p values are adjusted.

    Attributes:
      p: one-sided, of `null` against the claimed side; NaN where seeds are too few.
      null, above: the claim is that the estimate is above `null`, or below it.
      negligible: the effect was shown to lie within the margin of no effect.
      p_alone: p is exact, or of networks that did not choose what is tested: the interval has no say.
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


@dataclass(frozen=True)
class Question:
    """A claim before it is tested; fields as in `Claim`."""

    id: str
    statement: str
    estimand: str
    paper_value: str
    test: Callable[[Sequence[Network]], Finding]


def decide(questions: Sequence[Question], networks: Sequence[Network]) -> list[Claim]:
    """Every question tested on the networks."""
    found: list[Finding | str] = []
    for question in questions:
        try:
            found.append(question.test(networks))
        except NotTestable as reason:
            found.append(str(reason))
    p = np.array([one.p if isinstance(one, Finding) else np.nan for one in found])
    adjusted = np.full(len(p), np.nan)
    adjusted[~np.isnan(p)] = stats.holm(p[~np.isnan(p)])
    images = min((network.images_total for network in networks), default=0)
    people = min((network.people for network in networks if network.people), default=0)
    return [_claim(*each, (images, people)) for each in zip(questions, found, adjusted)]


def verdict(found: Finding, p_adjusted: float) -> str:
    """By the rules of the module; `p_adjusted` NaN: seeds are too few for a test."""
    sign = 1 if found.above else -1
    above = [sign * (end - found.null) for end in found.interval]  # NaN: neither side
    if p_adjusted < ALPHA and (found.p_alone or min(above) > 0):
        return "supported"
    against = max(above) < 0 and not found.p_alone
    return "not supported" if against or found.negligible else "undecided"


def _claim(question: Question, found: Finding | str, p_adjusted: float, shown: tuple[int, int]) -> Claim:
    words = {name: getattr(question, name) for name in ("id", "statement", "estimand", "paper_value")}
    if isinstance(found, str):
        nothing = {"estimate": np.nan, "interval": (np.nan, np.nan), "p": np.nan, "n_seeds": 0}
        facts = nothing | {"verdict": "not testable here", "because": found}
    else:
        names = ("estimate", "interval", "p", "n_seeds", "because")
        facts = {name: getattr(found, name) for name in names} | {"verdict": verdict(found, p_adjusted)}
        if found.n_seeds < FEWEST:
            facts["because"] += (
                f"; with n = {found.n_seeds} nothing is decided: it takes {FEWEST} training seeds"
            )
    counts = {"n_images": shown[0], "n_people": shown[1]}
    return Claim(**words, **facts, **counts, p_adjusted=float(p_adjusted))


def table(claims: Sequence[Claim]) -> str:
    """Claims as text, a line of numbers and one of reasons each."""
    head = f"{'claim':14}{'verdict':20}{'estimate':>10}{'95 % interval':>22}{'p (Holm)':>10}{'seeds':>7}"
    lines = [f"{head}{'pictures':>10}{'people':>8}"]
    for claim in claims:
        low, high = claim.interval
        numbers = f"{_short(claim.estimate):>10}{f'{_short(low)} to {_short(high)}':>22}"
        lines.append(
            f"{claim.id:14}{claim.verdict:20}{numbers}{_short(claim.p_adjusted):>10}{claim.n_seeds:>7}"
            f"{claim.n_images:>10}{claim.n_people or '-':>8}"
        )
        lines.append(f"    {claim.because}")
    return "\n".join(lines)


def _short(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"
