"""A claim, what a test of it found, and the verdict that follows by rules set beforehand.

The unit of replication is the training seed, one network each; where an estimate can be taken anew on
resampled images, its interval and p also hold over pictures (`over_seeds`). The p values of all claims of one
evaluation are one family, adjusted by Holm. Verdicts:
  supported            the adjusted p is below 0.05 and the 95 % interval lies on the side that is claimed
  not supported        the 95 % interval excludes that side, or lies within the margin of no effect
  undecided            neither, or seeds are too few for a test
  not testable here    what it takes is missing; `because` says what
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from mechdiff import stats

ALPHA = 0.05
FEWEST = 3  # training seeds that a test takes


@dataclass(frozen=True)
class Network:
    """One examined network: what it was trained on, its training seed, and its results.

    Attributes:
      data: `synthetic`, `celeba`, ...; `level`: rung of the ladder of synthetic faces.
      sweep, attention: of `sweep.teacher_forced` and `capture.attention_stats`.
      control, control_attention: the same of an untrained network, on some of the pictures.
      activity, roles, circuits: of `study`, circuits by kind of ablation; absent where not asked for.
    """

    name: str
    data: str
    level: int
    seed: int
    sweep: xr.Dataset
    attention: xr.Dataset
    control: xr.Dataset | None = None
    control_attention: xr.Dataset | None = None
    activity: xr.Dataset | None = None
    roles: xr.Dataset | None = None
    circuits: Mapping[str, xr.Dataset] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Images scored at every level: what is resampled."""
        return self.sweep.sizes["image"]

    @property
    def pictures(self) -> int:
        """Different pictures in all: more, where levels had their own."""
        return self.sweep.attrs.get("pictures", self.images)


@dataclass(frozen=True)
class Claim:
    """A claim and its verdict.

    Attributes:
      estimand: what is estimated, ours.
      paper_value: what the paper reports, for a reader; its estimand is not known.
      estimate, interval: NaN where there are none; 95 %.
      p, p_adjusted: of no effect on the claimed side; adjusted over the claims of one evaluation.
      n_images: different pictures shown to each network; n_seeds: networks that replicate.
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


@dataclass(frozen=True)
class Finding:
    """What a test came to, before p values are adjusted.

    Attributes:
      p: one-sided, of `null` against the claimed side; NaN where seeds are too few.
      null, above: the claim is that the estimate is above `null`, or below it.
      negligible: the interval lies within the margin of no effect.
    """

    estimate: float
    interval: tuple[float, float]
    p: float
    n_seeds: int
    because: str
    null: float = 0.0
    above: bool = True
    negligible: bool = False


class Missing(Exception):
    """Why a claim can't be tested with the networks at hand."""


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
        except Missing as reason:
            found.append(str(reason))
    p = np.array([one.p if isinstance(one, Finding) else np.nan for one in found])
    adjusted = np.full(len(p), np.nan)
    adjusted[~np.isnan(p)] = stats.holm(p[~np.isnan(p)])
    images = min((network.pictures for network in networks), default=0)
    return [_claim(*each, images) for each in zip(questions, found, adjusted)]


def verdict(found: Finding, p_adjusted: float) -> str:
    """By the rules of the module; `p_adjusted` NaN: seeds are too few for a test."""
    sign = 1 if found.above else -1
    above = [sign * (end - found.null) for end in found.interval]  # NaN: neither side
    if p_adjusted < ALPHA and min(above) > 0:
        return "supported"
    against = max(above) < 0
    return "not supported" if against or found.negligible else "undecided"


def _claim(question: Question, found: Finding | str, p_adjusted: float, images: int) -> Claim:
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
    return Claim(**words, **facts, p_adjusted=float(p_adjusted), n_images=images)


def over_seeds(
    values: Float[np.ndarray, " seed"],
    draws: Float[np.ndarray, "seed m"] | None = None,
    images: int = 0,
    above: bool = True,
    null: float = 0.0,
) -> tuple[float, tuple[float, float], float]:
    """Mean, Student's 95 % interval and one-sided p over training seeds; NaN where fewer than `FEWEST`.

    Every network of a data set sees the same pictures, so that how these were drawn moves all seeds together
    and can't be seen in their spread. With `draws` its variance is added: seeds and images are two crossed
    sources of error. What one seed makes of one image counts in both, so that intervals are rather too wide.

    Args:
      draws: the values in resamples of the images, each resample the same for all seeds.
      images: that were resampled.
    """
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < FEWEST:
        return mean, (np.nan, np.nan), np.nan
    parts = [(float(values.var(ddof=1)) / n, n - 1)]
    if draws is not None:
        parts.append(stats.resampled_variance(draws.mean(axis=0), images))
    error, freedom = stats.satterthwaite(*parts)
    half = float(stdtrit(freedom, 0.975)) * error
    p = float(stdtr(freedom, (null - mean if above else mean - null) / error)) if error else np.nan
    return mean, (mean - half, mean + half), p


def jackknife(
    statistic: Callable[[Sequence, Sequence], float],
    first: Sequence,
    second: Sequence,
    estimate: float,
    draws: Float[np.ndarray, " m"] | None = None,
    images: int = 0,
) -> tuple[float, float]:
    """95 % interval of a function of the networks of two data sets, by leaving out one network at a time
    (Efron & Tibshirani 1993, chapter 11); NaN where there are fewer than `FEWEST` of either.

    Args:
      draws, images: the function in resamples of the images, as in `over_seeds`.
    """
    n = min(len(first), len(second))
    if n < FEWEST:
        return (np.nan, np.nan)
    without = lambda items, index: [*items[:index], *items[index + 1 :]]
    left = [statistic(without(first, i), second) for i in range(len(first))]
    right = [statistic(first, without(second, i)) for i in range(len(second))]
    parts = [(float(sum((len(x) - 1) * np.var(x) for x in (left, right))), n - 1)]
    if draws is not None:
        parts.append(stats.resampled_variance(draws, images))
    error, freedom = stats.satterthwaite(*parts)
    half = float(stdtrit(freedom, 0.975)) * error
    return estimate - half, estimate + half


def table(claims: Sequence[Claim]) -> str:
    """Claims as text, a line of numbers and one of reasons each."""
    lines = [f"{'claim':14}{'verdict':20}{'estimate':>10}{'95 % interval':>22}{'p (Holm)':>10}{'seeds':>7}"]
    for claim in claims:
        low, high = claim.interval
        numbers = f"{_short(claim.estimate):>10}{f'{_short(low)} to {_short(high)}':>22}"
        lines.append(
            f"{claim.id:14}{claim.verdict:20}{numbers}{_short(claim.p_adjusted):>10}{claim.n_seeds:>7}"
        )
        lines.append(f"    {claim.because}")
    return "\n".join(lines)


def _short(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"
