"""How many components are verified: the shortlist grows until an audit of the rest misses little.

Stopping at the first audit that looks good favors lucky audits. So the 5 % by which intervals may err are
split evenly over all audits that there could be, whose number is known beforehand.
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
      k: largest effects that the screen should not miss, at least 1.
      shortlist: components verified first, at least `k`.
      audit: components of the rest that are verified, drawn at random, at least 1.
      miss_bound: in (0, 1]; the shortlist doubles while the upper end of the miss rate's interval is above
        this. With a clean audit of n of a large rest, and room for m doublings, that end is about
        ln(40 (m + 1)) / n.
      probes: random vectors of the scores, see `attribution.Expansion`.
      point: of expansion that the ranking is by, see `screen_scores.score_all`.
      seed: of the audit's draw.
      precision: of products, see `core.devices`; any that acts here measures its own error.

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
    probes: int = 4
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
    """How an audit ended.

    Attributes:
      size: of the shortlist.
      audited: indices of the components that were drawn last.
      looks: audits that were made.
      missed: misses among `audited`.
      interval: of the share of misses in all that are not on the shortlist.
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
    """Doubles the shortlist until the share of the rest that it misses is surely below `config.miss_bound`.

    A miss is larger than the `k`-th largest of the shortlist, the first of `order`. Audits are fresh draws,
    so each interval is exact for its own shortlist; as one of them is chosen by its outcome, each is given
    its part of 1 - `confidence` (Bonferroni over the sizes that there could be).

    Args:
      order: indices of components, the largest |score| first.
      verify: indices of components -> |exact effects|.
      config: sizes of the first shortlist and of each audit, and the bound.
      rng: what the audits are drawn by.
      error: indices of components that were verified -> by how much their effects may be off: a miss is what
        may be one.
      confidence: of the last interval.
    """
    size = min(config.shortlist, len(order))
    possible = 1 + int(np.ceil(np.log2(len(order) / size)))  # the last of them verifies everything
    audit_confidence = 1 - (1 - confidence) / max(possible - 1, 1)
    looks = 1
    while True:
        listed, rest = order[:size], order[size:]
        bar = np.sort(verify(listed) - error(listed))[::-1][min(config.k, len(listed)) - 1]
        audited = rng.permutation(rest)[: config.audit]
        missed = int((verify(audited) + error(audited) > bar).sum())
        interval = finite_population_interval(missed, len(audited), len(rest), audit_confidence)
        if interval[1] <= config.miss_bound or looks == possible:
            return Audit(size, audited, looks, missed, interval)
        size, looks = min(2 * size, len(order)), looks + 1
