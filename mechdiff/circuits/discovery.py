"""Finds a small circuit that does what the network does.

Components are ranked by the damage of leaving each out, or by gradient scores of which the largest are
verified. The shortest beginning of that ranking that is as close to the network as asked (see
`CircuitEvaluator.faithfulness_match`) is pruned: members whose loss leaves it close enough are dropped, the
most dispensable first, until each one that is left is needed. Where two components do the same, neither is
missed in the whole network; once pruning has dropped one, the other is. `backup_components` names those that
could take a member's place.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from mechdiff.circuits import screening
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.core.errors import ConfigError, unknown

RANKINGS = ("exact", "screen")
Close = Callable[[np.ndarray], np.ndarray]  # circuits [m, component] -> closeness [m]
Set = Bool[np.ndarray, " component"]


@dataclasses.dataclass(frozen=True)
class Circuit:
    """A set of components that together do what the network does; everything else is ablated.

    Attributes:
      subject, kind: whose, and under which kind of ablation.
      tau: closeness that was asked for,
      every_level: and whether at every timestep, see `Trials`.
      ranking: `exact` or `screen`.
      components: names of all components, in the order of `effect` and `marginal`.
      members: names, the most needed first.
      order: names of all: the members, those that pruning dropped (the last first), the others by rank. Its
        beginnings are nested circuits of every size.
      effect: Deg% of leaving each out of the network, as ranked by.
      marginal: Deg% of leaving each member out of the circuit, at each timestep; 0 for the others.
      faithfulness: of the circuit, on the images that it was found on.
      prefix: length of the beginning that was pruned.
      rounds: of pruning.
      evaluated: circuits that were run.
    """

    denoiser: str
    ablation: str
    tau: float
    every_level: bool
    ranking: str
    components: tuple[str, ...]
    members: tuple[str, ...]
    order: tuple[str, ...]
    effect: Float[np.ndarray, " component"]
    marginal: Float[np.ndarray, "component t"]
    faithfulness: float
    prefix: int
    rounds: int
    evaluated: int


def discover(
    evaluator: CircuitEvaluator, tau: float = 0.9, ranking: str = "exact", screen: dict | None = None
) -> Circuit:
    """The circuit of a network on the images of `trials`.

    Args:
      tau: closeness to the network, in (0, 1), that the circuit must have and would lose with any member.
      ranking: `exact`, one run per component; or `screen`, see `screening.screen_and_verify`: a few runs
        for thousands of components.
      screen: arguments of that function.

    Raises:
      ConfigError: tau or ranking out of range, or a screen without a folder.
    """
    if not 0 < tau < 1:
        raise ConfigError(f"tau={tau} must lie between 0 and 1; 0.9 is usual")
    if ranking not in RANKINGS:
        raise ConfigError(unknown("ranking", ranking, RANKINGS))
    effect = effects(evaluator) if ranking == "exact" else _screened(evaluator, screen or {})
    found = select(close_to(evaluator), effect, tau)
    kept = np.flatnonzero(found.members)
    loss = evaluator.losses(np.stack([evaluator.ends[1], found.members, *_without(found.members, kept)]))
    whole, own, *without = loss.mean(axis=2, dtype=np.float64)
    marginal = np.zeros((len(effect), len(whole)))
    marginal[kept] = 100 * (np.array(without) - own) / whole
    # By the loss summed over timesteps, as faithfulness is.
    need = np.abs(marginal @ whole)
    kept = kept[np.argsort(-need[kept], kind="stable")]
    others = [i for i in np.argsort(-np.abs(effect), kind="stable") if i not in {*kept, *found.dropped}]
    named = lambda which: tuple(evaluator.names[i] for i in which)
    return Circuit(
        denoiser=evaluator.denoiser.name,
        ablation=evaluator.ablation,
        tau=tau,
        every_level=evaluator.every_level,
        ranking=ranking,
        components=evaluator.names,
        members=named(kept),
        order=named([*kept, *found.dropped[::-1], *others]),
        effect=effect,
        marginal=marginal,
        faithfulness=float(evaluator.faithfulness(found.members[None])[0, 0]),
        prefix=found.prefix,
        rounds=found.rounds,
        evaluated=evaluator.evaluated,
    )


def effects(
    evaluator: CircuitEvaluator, weights: Float[np.ndarray, "1 image"] | None = None
) -> Float[np.ndarray, " component"]:
    """Deg% of leaving out each component: 100 (L(do) - L) / L, losses averaged over timesteps first."""
    every = np.arange(len(evaluator.chosen))
    whole, *without = evaluator.pooled(np.stack([evaluator.ends[1], *_without(evaluator.ends[1], every)]))
    weights = evaluator.even if weights is None else weights
    return 100 * ((np.array(without) @ weights[0]) / (whole @ weights[0]) - 1)


def as_members(circuit: Circuit, names: tuple[str, ...]) -> Set:
    """The circuit as a set over components called `names`, which may be those of another network.

    Raises:
      ConfigError: a component that is not among them.
    """
    if {*circuit.components} != {*names}:
        odd = sorted({*circuit.components} ^ {*names})
        raise ConfigError(f"circuit of {circuit.denoiser}: component {odd[0]!r} is not in both networks")
    return np.isin(names, circuit.members)


def backup_components(
    evaluator: CircuitEvaluator, circuit: Circuit, count: int | None = None
) -> dict[str, tuple[str, ...]]:
    """For members, without which the circuit is not close enough: outsiders with which it is, again.

    Args:
      count: of members that are asked about, the most needed first; None: all. Each takes as many runs as
        there are outsiders.
    """
    members, asked = as_members(circuit, evaluator.names), circuit.members[:count]
    swaps = list(itertools.product(map(evaluator.names.index, asked), np.flatnonzero(~members)))
    if not swaps:
        return dict.fromkeys(asked, ())
    tried = np.tile(members, (len(swaps), 1))
    for row, (member, outsider) in zip(tried, swaps):
        row[[member, outsider]] = False, True
    good = close_to(evaluator)(tried) >= circuit.tau
    found = [swap for swap, fits in zip(swaps, good) if fits]
    name = evaluator.names
    return {own: tuple(name[u] for c, u in found if name[c] == own) for own in asked}


def shuffled(rng: np.random.Generator, members: Set, parts: Sequence[str]) -> Set:
    """A random circuit with as many members of each part."""
    new, parts = np.array(members), np.asarray(parts)
    for part in np.unique(parts):
        new[parts == part] = rng.permutation(new[parts == part])
    return new


@dataclasses.dataclass(frozen=True)
class Selection:
    """What `select` found: the set, what pruning dropped and in which order, and how it went."""

    members: Set
    dropped: list[int]
    prefix: int
    rounds: int


def select(close: Close, effect: Float[np.ndarray, " component"], tau: float) -> Selection:
    """The shortest beginning of the ranking that is close, pruned until every member is needed."""
    order = np.argsort(-np.abs(effect), kind="stable")
    ranks = np.argsort(order)
    first = lambda sizes: ranks < sizes[:, None]
    prefix = _smallest(lambda sizes: close(first(sizes)) >= tau, 0, len(order))
    members, dropped = ranks < prefix, []
    for rounds in itertools.count(1):
        inside = np.flatnonzero(members)
        left = close(_without(members, inside))
        spare = inside[left >= tau][np.argsort(-left[left >= tau], kind="stable")]
        if not len(spare):
            return Selection(members, dropped, prefix, rounds)
        fails = lambda counts: close(_shorn(members, spare, counts)) < tau  # noqa: B023
        fits = len(spare) == 1 or not fails(np.array([len(spare)]))[0]
        count = len(spare) if fits else _smallest(fails, 1, len(spare)) - 1
        members = _shorn(members, spare, np.array([count]))[0]
        dropped += spare[:count].tolist()
    raise AssertionError


def _smallest(good: Callable[[Int[np.ndarray, " m"]], np.ndarray], low: int, high: int, grid: int = 8) -> int:
    """The smallest number in (low, high] that is good, as far as ever finer grids can see.

    `high` is good and `low` is not; between them goodness need not be monotone.
    """
    while high - low > 1:
        tried = np.unique(np.linspace(low, high, min(grid, high - low) + 1).astype(int))[1:-1]
        fits = np.flatnonzero(good(tried))
        place = fits[0] if len(fits) else len(tried)
        low, high = [low, *tried, high][place : place + 2]
    return int(high)


def close_to(evaluator: CircuitEvaluator, weights: Float[np.ndarray, "1 image"] | None = None) -> Close:
    """Closeness of circuits to the network of `trials`, images being weighted."""
    return lambda members: evaluator.faithfulness_match(members, weights)[:, 0]


def _without(members: Set, which: Int[np.ndarray, " m"]) -> Bool[np.ndarray, "m component"]:
    """The set without each of `which` in turn."""
    fewer = np.tile(members, (len(which), 1))
    fewer[np.arange(len(which)), which] = False
    return fewer


def _shorn(
    members: Set, spare: Int[np.ndarray, " n"], counts: Int[np.ndarray, " m"]
) -> Bool[np.ndarray, "m component"]:
    """The set without the first few of `spare`, for every one of `counts`."""
    fewer = np.tile(members, (len(counts), 1))
    for row, count in zip(fewer, counts):
        row[spare[:count]] = False
    return fewer


def _screened(evaluator: CircuitEvaluator, options: dict) -> Float[np.ndarray, " component"]:
    """Pooled Deg% of all components: exact where the screen verified it, else as it was scored."""
    if evaluator.folder is None:
        raise ConfigError("a screen keeps its exact runs in a folder, but these trials have none")
    seen = (
        evaluator.denoiser,
        evaluator.images,
        evaluator.timesteps,
        evaluator.key,
        evaluator.folder / "screen",
    )
    given = {
        "chosen": evaluator.chosen,
        "ablation": evaluator.ablation,
        "replacements": evaluator.replacements,
        "point": "either",
    }
    found = screening.screen_and_verify(*seen, **given | options)
    return np.where(np.isnan(found.effect), found.score, found.effect)
