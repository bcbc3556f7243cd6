"""The share of a finite population that has a property, estimated from a random sample without
replacement."""

import numpy as np
import scipy

from mechdiff.core.errors import ConfigError


def finite_population_interval(
    count: int, drawn: int, population: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Exact interval of the share of a population that has a property.

    Clopper & Pearson's (1934) inversion of two one-sided tests, with the hypergeometric in place of the
    binomial distribution: the share's own value once all are drawn, [0, 1] while none is.

    Args:
      count: of the `drawn` (without replacement) have it.
      confidence: coverage, at least, whatever the share.

    Raises:
      ConfigError: counts that contradict each other, or a confidence outside (0, 1).
    """
    if not 0 <= count <= drawn <= population or not 0 < confidence < 1:
        raise ConfigError(
            f"count={count}, drawn={drawn}, population={population}, confidence={confidence}: "
            "need 0 <= count <= drawn <= population and 0 < confidence < 1"
        )
    if population == 0:
        return 0.0, 0.0
    having = np.arange(count, population - drawn + count + 1)  # what the population may hold
    tail = (1 - confidence) / 2
    # Never empty: one more in the population moves the count by at most one, so no step skips both tests.
    inside = (scipy.stats.hypergeom.cdf(count, population, having, drawn) > tail) & (
        scipy.stats.hypergeom.sf(count - 1, population, having, drawn) > tail
    )
    return float(having[inside][0] / population), float(having[inside][-1] / population)
