"""Finds a small circuit that does what the network does.

Components are ranked by the relative loss increase of ablating each, or by gradient scores of which the
largest are verified exactly. The shortest prefix of that ranking whose faithfulness match
(`CircuitEvaluator.faithfulness_match`) reaches tau is pruned: members whose removal leaves the match at tau
or above are dropped, the most dispensable first, until every member left is needed. Of two redundant
components neither is needed in the complete network; once pruning has dropped one, the other is.
`backup_components` names the components that could replace a member.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.circuits import screening
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.circuits.pruning import MatchFunction, Set, each_left_out, select
from mechdiff.circuits.screening import ScreenConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.interventions.describe import listed

RANKINGS = ("exact", "screen")


@dataclasses.dataclass(frozen=True)
class Circuit:
    """A set of components that together do what the network does; everything else is ablated.

    Attributes:
      denoiser, ablation: name of the network, and the ablation of everything outside the circuit.
      tau: faithfulness match that the circuit had to reach.
      every_timestep: whether it had to reach it at every timestep, see `CircuitEvaluator`.
      ranking: `exact` or `screen`.
      components: names of all components, in the order of `effect` and `marginal`.
      members: names, the most needed first.
      order: names of all: the members, those that pruning dropped (the last first), the others by rank. Its
        prefixes are nested circuits of every size.
      effect: relative loss increase (%) of ablating each component in the network, the ranking's criterion.
      marginal: relative loss increase (%) of removing each member from the circuit, at each timestep, in
        percent of the clean loss; 0 for the others.
      faithfulness: of the circuit, on the images that it was discovered on.
      prefix: length of the ranking's prefix that was pruned.
      rounds: of pruning.
      evaluated: number of circuits whose losses were taken.

    Example:
      >>> import jax
      >>> from mechdiff.diffusion.eval_set import EvalSet
      >>> from mechdiff.models.toy import toy_denoiser
      >>> eval_set = EvalSet(np.zeros((4, 2, 2, 3), np.float32), [30, 90], jax.random.key(0))
      >>> circuit = discover(CircuitEvaluator(toy_denoiser(), eval_set))
      >>> len(circuit.members), circuit.order[-1], circuit.faithfulness > circuit.tau
      (2, 'idle.mlp', True)
    """

    denoiser: str
    ablation: str
    tau: float
    every_timestep: bool
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

    def __repr__(self) -> str:
        size = f"{len(self.members)} of {len(self.components)} components"
        reached = f"faithfulness {self.faithfulness:.3f} (tau {self.tau:g}) under {self.ablation} ablation"
        return f"Circuit({self.denoiser}: {size}, {reached}: {listed(self.members)})"


def discover(
    evaluator: CircuitEvaluator, tau: float = 0.9, ranking: str = "exact", screen: ScreenConfig | None = None
) -> Circuit:
    """The circuit of a network on the images of `evaluator`.

    Args:
      evaluator: runs circuits and keeps their losses.
      tau: faithfulness match, in (0, 1), that the circuit reaches, and would not reach without any member.
      ranking: `exact`, one run per component; or `screen`, see `screening.screen_and_verify`: a few runs
        for thousands of components.
      screen: its settings; None: `ScreenConfig(point="either")`.

    Raises:
      ConfigError: tau or ranking out of range, or a screen without a folder.

    Example (`python -m experiments.circuits` also scores it):
      >>> import jax
      >>> from mechdiff.diffusion.eval_set import EvalSet
      >>> from mechdiff.models.toy import toy_denoiser
      >>> eval_set = EvalSet(np.zeros((4, 2, 2, 3), np.float32), [30, 90], jax.random.key(0))
      >>> discover(CircuitEvaluator(toy_denoiser(), eval_set), tau=0.9).members
      ('large.mlp', 'small.mlp')
    """
    if not 0 < tau < 1:
        raise ConfigError(f"tau={tau} must lie between 0 and 1; 0.9 is usual")
    if ranking not in RANKINGS:
        raise ConfigError(unknown("ranking", ranking, RANKINGS))
    effect = effects(evaluator) if ranking == "exact" else _screened(evaluator, screen)
    selection = select(match_function(evaluator), effect, tau)
    kept, dropped = np.flatnonzero(selection.members), selection.dropped
    circuits = [evaluator.ends[1], selection.members, *each_left_out(selection.members, kept)]
    losses = evaluator.losses(np.stack(circuits))
    clean, circuit_loss, *without = losses.mean(axis=2, dtype=np.float64)
    marginal = np.zeros((len(effect), len(clean)))
    marginal[kept] = 100 * (np.array(without) - circuit_loss) / clean
    # By the loss summed over timesteps, as faithfulness is.
    need = np.abs(marginal @ clean)
    kept = kept[np.argsort(-need[kept], kind="stable")]
    others = [i for i in np.argsort(-np.abs(effect), kind="stable") if i not in {*kept, *dropped}]
    return Circuit(
        denoiser=evaluator.denoiser.name,
        ablation=evaluator.ablation,
        tau=tau,
        every_timestep=evaluator.every_timestep,
        ranking=ranking,
        components=evaluator.names,
        members=_named(evaluator, kept),
        order=_named(evaluator, np.array([*kept, *dropped[::-1], *others], int)),
        effect=effect,
        marginal=marginal,
        faithfulness=float(evaluator.faithfulness(selection.members[None])[0, 0]),
        prefix=selection.prefix,
        rounds=selection.rounds,
        evaluated=evaluator.evaluated,
    )


def effects(
    evaluator: CircuitEvaluator, weights: Float[np.ndarray, "1 image"] | None = None
) -> Float[np.ndarray, " component"]:
    """Relative loss increase (%) of ablating each component, 100 (L(do) - L) / L, L averaged over timesteps.

    Args:
      weights: of the images; None: even.
    """
    everything = evaluator.ends[1]
    ablated = each_left_out(everything, np.arange(len(evaluator.chosen)))
    clean, *without = evaluator.pooled(np.stack([everything, *ablated]))
    weights = evaluator.even if weights is None else weights
    return stats.percent_increase(np.array(without) @ weights[0], clean @ weights[0])


def as_members(circuit: Circuit, names: tuple[str, ...]) -> Set:
    """The circuit as a set over components called `names`, which may be those of another network.

    Raises:
      ConfigError: a component that is not among them.
    """
    if {*circuit.components} != {*names}:
        unshared = sorted({*circuit.components} ^ {*names})
        raise ConfigError(f"circuit of {circuit.denoiser}: component {unshared[0]!r} is not in both networks")
    return np.isin(names, circuit.members)


def backup_components(
    evaluator: CircuitEvaluator, circuit: Circuit, count: int | None = None
) -> dict[str, tuple[str, ...]]:
    """Member -> non-members that can replace it: with one in its place the circuit reaches tau again.

    Args:
      count: of members to examine, the most needed first; None: all. Each takes as many runs as there are
        non-members.
    """
    members, examined = as_members(circuit, evaluator.names), circuit.members[:count]
    swaps = list(itertools.product(map(evaluator.names.index, examined), np.flatnonzero(~members)))
    if not swaps:
        return dict.fromkeys(examined, ())
    circuits = np.tile(members, (len(swaps), 1))
    for row, (member, outsider) in zip(circuits, swaps, strict=True):
        row[member] = False
        row[outsider] = True
    reaches = match_function(evaluator)(circuits) >= circuit.tau
    backups: dict[str, list[str]] = {name: [] for name in examined}
    for (member, outsider), reached in zip(swaps, reaches, strict=True):
        if reached:
            backups[evaluator.names[member]].append(evaluator.names[outsider])
    return {name: tuple(names) for name, names in backups.items()}


def shuffled(rng: np.random.Generator, members: Set, component_types: Sequence[str]) -> Set:
    """A random circuit with as many members of each component type."""
    new, component_types = np.array(members), np.asarray(component_types)
    for component_type in np.unique(component_types):
        same_type = component_types == component_type
        new[same_type] = rng.permutation(new[same_type])
    return new


def match_function(
    evaluator: CircuitEvaluator, weights: Float[np.ndarray, "1 image"] | None = None
) -> MatchFunction:
    """Faithfulness match of circuits as a function of their members, under one weighting of the images."""
    return lambda members: evaluator.faithfulness_match(members, weights)[:, 0]


def _screened(evaluator: CircuitEvaluator, config: ScreenConfig | None) -> Float[np.ndarray, " component"]:
    """Pooled relative loss increase (%) of all components: exact where it was verified, else the score."""
    if evaluator.folder is None:
        raise ConfigError(
            "a screen keeps its exact runs in a folder, but this CircuitEvaluator has none; give it folder="
        )
    screen = screening.screen_and_verify(
        evaluator.denoiser,
        evaluator.eval_set,
        evaluator.folder / "screen",
        chosen=evaluator.chosen,
        ablation=evaluator.ablation,
        replacements=evaluator.replacements,
        config=config or ScreenConfig(point="either"),
    )
    return np.where(np.isnan(screen.effect), screen.score, screen.effect)


def _named(evaluator: CircuitEvaluator, indices: Int[np.ndarray, " n"]) -> tuple[str, ...]:
    return tuple(evaluator.names[i] for i in indices)
