"""How many components a screen verifies: its shortlist grows until an audit of the rest finds few misses.

An audit verifies a random sample of the components that are not on the shortlist. Stopping at the first audit
that looks good favors lucky audits. So the 5 % of cases in which an interval may err are split evenly over
all audits that there could be, whose number is known beforehand.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mechdiff.core.config import Precision
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.stats import finite_population_interval

EXPANSIONS = ("identity", "ablated", "either")


@dataclasses.dataclass(frozen=True)
class ScreenConfig:
    """How components are screened, and how far the screen is checked.

    Attributes:
      k: the screen should not miss the `k` largest effects; at least 1.
      shortlist: number of components verified first, at least `k`.
      audit: number of components of the rest that an audit verifies, at least 1.
      miss_bound: in (0, 1]; the shortlist doubles while the upper end of the miss rate's interval is above
        this. If an audit of n components of a large rest finds no miss, and the shortlist could double m
        times, that end is about ln(40 m) / n.
      random_vectors: their number, for the scores, see `attribution.Expansion`.
      point: of expansion, whose scores rank the components; see `screen_scores.score_all`.
      seed: of the draws of audits.
      precision: of matrix products, see `core.devices`; the error of a reduced one is measured.

    Raises:
      ConfigError: a value out of its range, or an unknown point.

    Example:
      >>> ScreenConfig(k=3, shortlist=5).miss_bound
      0.2
    """

    k: int = 10
    shortlist: int = 20
    audit: int = 30
    miss_bound: float = 0.2
    random_vectors: int = 4
    point: str = "identity"
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self):
        if self.shortlist < self.k or self.k < 1 or self.audit < 1 or not 0 < self.miss_bound <= 1:
            raise ConfigError(
                f"shortlist={self.shortlist}, k={self.k}, audit={self.audit}, miss_bound={self.miss_bound}: "
                "need shortlist >= k >= 1, audit >= 1 and 0 < miss_bound <= 1"
            )
        if self.point not in EXPANSIONS:
            raise ConfigError(unknown("point of expansion", self.point, EXPANSIONS))


class Audit(NamedTuple):
    """How the last audit ended.

    Attributes:
      size: of the shortlist.
      audited: indices of the components that it drew.
      looks: number of audits that were made.
      missed: number of misses among `audited`.
      interval: of the share of misses among all components that are not on the shortlist.
    """

    size: int
    audited: Int[np.ndarray, " audited"]
    looks: int
    missed: int
    interval: tuple[float, float]


def audit_until(
    order: Int[np.ndarray, " component"],
    verify: Callable[[np.ndarray], np.ndarray],
    config: ScreenConfig,
    rng: np.random.Generator,
    *,
    error: Callable[[np.ndarray], np.ndarray] = np.zeros_like,
    confidence: float = 0.95,
) -> Audit:
    """Doubles the shortlist until the share of the rest that it misses lies below `config.miss_bound`, by the
    upper end of an interval.

    The shortlist is the beginning of `order`. A component of the rest is a miss if its effect is larger than
    the `k`-th largest of the shortlist. Every audit is a new draw, so each interval is exact for its own
    shortlist; since the outcomes decide which audit is the last, each is given an equal part of 1 -
    `confidence` (Bonferroni over the audits that there could be).

    Args:
      order: indices of components, the largest |score| first.
      verify: indices of components -> |exact effects|.
      config: sizes of the first shortlist and of each audit, and the bound.
      rng: draws the audits.
      error: indices of verified components -> largest error of their effects; what may be a miss counts as
        one.
      confidence: of the last interval, in (0, 1).
    """
    size = min(config.shortlist, len(order))
    possible = 1 + int(np.ceil(np.log2(len(order) / size)))
    fallible = max(possible - 1, 1)  # with the last shortlist, of all components, nothing can be missed
    audit_confidence = 1 - (1 - confidence) / fallible
    looks = 1
    while True:
        shortlist, rest = order[:size], order[size:]
        at_least, k = verify(shortlist) - error(shortlist), min(config.k, len(shortlist))
        threshold = np.sort(at_least)[-k]
        audited = rng.permutation(rest)[: config.audit]
        missed = int((verify(audited) + error(audited) > threshold).sum())
        interval = finite_population_interval(missed, len(audited), len(rest), audit_confidence)
        if interval[1] <= config.miss_bound or looks == possible:
            return Audit(size, audited, looks, missed, interval)
        size, looks = min(2 * size, len(order)), looks + 1
