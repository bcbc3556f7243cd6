"""Few row counts in a pass: interventions join earlier than they must, so that fewer stages change shape.

An accelerator chooses kernels again for every shape. Where rows join at every other stage, no two
convolutions are alike, and most of the time before the first result goes into compiling and trying kernels.
Rows that join early are copies of the clean ones until the stage that they change: the same numbers, for more
arithmetic.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from mechdiff.models.stages import Stage


def stage_costs(stages: Sequence[Stage]) -> list[float]:
    """About how much arithmetic each stage takes for a row; only proportions count."""
    return [float(stage.resolution**2 * stage.width**2) for stage in stages]


def few_row_counts(joins: Sequence[int], costs: Sequence[float], most: int) -> tuple[int, ...]:
    """`joins` moved to earlier stages so that rows join at `most` stages or fewer, at the least extra cost.

    Dynamic programming over the stages at which rows join: what joins at one of them is all that must join
    from there on and before the next.

    Args:
      joins: interventions that must have joined at each stage, see `shared_prefix.PassPlan`.
      costs: of each stage for one row.
      most: at least 1.

    Example:
      >>> few_row_counts((0, 1, 5, 0, 1), (1.0, 1.0, 1.0, 1.0, 1.0), 2)
      (0, 1, 6, 0, 0)
    """
    joined = [stage for stage, joining in enumerate(joins) if joining]
    if len(joined) <= most:
        return tuple(joins)
    depths = [sum(costs[:stage]) for stage in joined]
    starts = _cheapest_starts([joins[stage] for stage in joined], depths, most)
    merged = [0] * len(joins)
    for first, after in itertools.pairwise([*starts, len(joined)]):
        merged[joined[first]] = sum(joins[stage] for stage in joined[first:after])
    return tuple(merged)


def _cheapest_starts(weights: Sequence[int], depths: Sequence[float], most: int) -> list[int]:
    """The first members of at most `most` runs of consecutive stages that cost the least.

    A stage costs its weight times (its depth - the depth of the first stage of its run).
    """
    count = len(weights)
    extra = np.full((count, count + 1), np.inf)  # of one run, by its first stage and the stage after it
    for first in range(count):
        cost = np.multiply(weights[first:], np.subtract(depths[first:], depths[first]))
        extra[first, first + 1 :] = np.cumsum(cost)
    least = extra[:, count]  # of the stages from each on, in one run
    after = [[count] * count]
    for _ in range(most - 1):
        options = extra[:, :count] + least[None, :]
        best = options.argmin(axis=1)
        shorter = options.min(axis=1) < least
        after.append(np.where(shorter, best, count).tolist())
        least = np.where(shorter, options.min(axis=1), least)
    starts, start = [], 0
    for following in reversed(after):
        starts.append(start)
        start = following[start]
        if start == count:
            break
    return starts
