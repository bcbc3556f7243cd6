"""Selection of a circuit: the shortest prefix of a ranking that is faithful enough, and its pruning."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

MatchFunction = Callable[[np.ndarray], np.ndarray]  # circuits [m, component] -> faithfulness match [m]
Set = Bool[np.ndarray, " component"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Result of `select`.

    Attributes:
      members: of the circuit.
      dropped: indices of the components that pruning dropped, in that order.
      prefix: length of the ranking's prefix that was pruned.
      rounds: of pruning.
    """

    members: Set
    dropped: list[int]
    prefix: int
    rounds: int


def select(match_of: MatchFunction, effect: Float[np.ndarray, " component"], tau: float) -> Selection:
    """The shortest prefix of the ranking by |effect| that reaches tau, pruned until every member is needed.

    Every round of pruning runs the set without each of its members. Members without which tau is still
    reached are dispensable; as many of them as possible are dropped together, the most dispensable first.

    Args:
      match_of: faithfulness match of sets, `[m, component]` to `[m]`.
      effect: relative loss increase of ablating each component.
    """
    order = np.argsort(-np.abs(effect), kind="stable")
    ranks = np.argsort(order)
    prefix = _smallest(lambda sizes: match_of(ranks < sizes[:, None]) >= tau, 0, len(order))
    members, dropped = ranks < prefix, []
    for rounds in itertools.count(1):
        inside = np.flatnonzero(members)
        match = match_of(each_left_out(members, inside))
        reaches = match >= tau
        dispensable = inside[reaches][np.argsort(-match[reaches], kind="stable")]
        if not len(dispensable):
            return Selection(members, dropped, prefix, rounds)
        fails = functools.partial(_fails, match_of, tau, members, dispensable)
        all_fit = len(dispensable) == 1 or not fails(np.array([len(dispensable)]))[0]
        count = len(dispensable) if all_fit else _smallest(fails, 1, len(dispensable)) - 1
        members = _without_first(members, dispensable, np.array([count]))[0]
        dropped += dispensable[:count].tolist()
    raise AssertionError


def each_left_out(members: Set, which: Int[np.ndarray, " m"]) -> Bool[np.ndarray, "m component"]:
    """`members` without each of the components `which` in turn, one set each."""
    fewer = np.tile(members, (len(which), 1))
    fewer[np.arange(len(which)), which] = False
    return fewer


def _fails(
    match_of: MatchFunction, tau: float, members: Set, dispensable: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Whether `members` without the first `count` of `dispensable` fall below tau, for each of `counts`."""
    return match_of(_without_first(members, dispensable, counts)) < tau


def _smallest(good: Callable[[Int[np.ndarray, " m"]], np.ndarray], low: int, high: int) -> int:
    """The smallest number in (low, high] that is good, by a search on grids that are refined.

    `high` is good and `low` is not; exact if goodness is monotone between them.
    """
    while high - low > 1:
        candidates = np.unique(np.linspace(low, high, min(8, high - low) + 1).astype(int))[1:-1]
        fits = np.flatnonzero(good(candidates))
        i = fits[0] if len(fits) else len(candidates)
        low, high = [low, *candidates, high][i : i + 2]
    return int(high)


def _without_first(
    members: Set, dispensable: Int[np.ndarray, " n"], counts: Int[np.ndarray, " m"]
) -> Bool[np.ndarray, "m component"]:
    """`members` without the first `count` of `dispensable`, for each of `counts`."""
    fewer = np.tile(members, (len(counts), 1))
    for row, count in zip(fewer, counts, strict=True):
        row[dispensable[:count]] = False
    return fewer
