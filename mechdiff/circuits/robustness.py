"""Stability of circuits under resampling of images or people, and their transfer to other networks."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.circuits.discovery import Circuit, as_members, effects, match_function, shuffled
from mechdiff.circuits.faithfulness import CircuitEvaluator, faithfulness
from mechdiff.circuits.pruning import Set, select
from mechdiff.core.text_table import text_table

SHUFFLES = 50  # random circuits for each resample


@dataclasses.dataclass(frozen=True)
class Stability:
    """How much a circuit changes if it is discovered again on resamples of the images.

    Attributes:
      repeats: number of resamples.
      sizes: of the circuits, one per resample.
      frequency: share of resamples whose circuit holds each component, in the order of `Circuit.components`.
      to_circuit: mean Jaccard index |A and B| / |A or B| of a resample's circuit with that of all images.
      spread: 5th and 95th percentile of these indices.
      pairwise: mean Jaccard index of two resamples' circuits.
      chance: mean Jaccard index of the circuit of all images with random ones, which have as many members of
        each component type as those of the resamples.
    """

    repeats: int
    sizes: tuple[int, ...]
    frequency: Float[np.ndarray, " component"]
    to_circuit: float
    spread: tuple[float, float]
    pairwise: float
    chance: float


def stability(evaluator: CircuitEvaluator, circuit: Circuit, repeats: int = 10, seed: int = 0) -> Stability:
    """Discovers the circuit again on bootstrap resamples of the images, or of the people in them.

    Only circuits not yet run are run. Components are ranked again on each resample if the ranking is `exact`;
    the ranking of a screen is kept.

    Args:
      evaluator: that with which `circuit` was discovered.
      repeats: number of resamples, at least 2.
    """
    resampled = []
    exact = circuit.ranking == "exact"
    for weights in evaluator.units.resamples(repeats, seed)[:, None]:
        effect = effects(evaluator, weights) if exact else circuit.effect
        resampled.append(select(match_function(evaluator, weights), effect, circuit.tau).members)
    resampled, members = np.array(resampled), as_members(circuit, evaluator.names)
    overlaps = np.array([jaccard(members, other) for other in resampled])
    rng = np.random.default_rng(seed)
    types = [component.component_type for component in evaluator.chosen]
    chance = [jaccard(members, shuffled(rng, other, types)) for other in resampled for _ in range(SHUFFLES)]
    return Stability(
        repeats=repeats,
        sizes=tuple(int(size) for size in resampled.sum(axis=1)),
        frequency=resampled.mean(axis=0),
        to_circuit=float(overlaps.mean()),
        spread=(float(np.quantile(overlaps, 0.05)), float(np.quantile(overlaps, 0.95))),
        pairwise=float(np.mean([jaccard(a, b) for a, b in itertools.combinations(resampled, 2)])),
        chance=float(np.mean(chance)),
    )


def jaccard(a: Set, b: Set) -> float:
    """|A and B| / |A or B|; 1 for two empty sets."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def transfer(circuits: Mapping[str, Circuit], evaluators: Mapping[str, CircuitEvaluator]) -> xr.Dataset:
    """Faithfulness of each circuit in each network, on that network's images.

    Args:
      circuits, evaluators: network -> its circuit, and what runs circuits in it; the same names in both.
        Networks of one architecture, under one ablation; other images than those that the circuits were
        discovered on.

    Returns:
      Dataset with f of circuit A in network B, `estimate, low, high`, and how far it lies below f of B's own
      circuit, `drop_estimate, drop_low, drop_high`; dims `circuit, network`; Student's intervals over images
      or people.

    Raises:
      ConfigError: components of one network that another lacks.
    """
    names = list(circuits)
    columns: dict[str, list[stats.Interval]] = {"": [], "drop_": []}  # prefix of variables -> by network
    for own, network in enumerate(names):
        evaluator = evaluators[network]
        members = np.stack([as_members(circuits[name], evaluator.names) for name in names])
        losses = evaluator.pooled(np.concatenate([evaluator.ends, members]))
        f, drop = _faithfulness_and_drop(losses, own, evaluator.units)
        columns[""].append(f)
        columns["drop_"].append(drop)
    variables = {
        prefix + end: (("circuit", "network"), np.stack([getattr(cell, end) for cell in intervals], 1))
        for prefix, intervals in columns.items()
        for end in ("estimate", "low", "high")
    }
    return xr.Dataset(variables, coords={"circuit": names, "network": names})


def _faithfulness_and_drop(
    losses: Float[np.ndarray, "circuit image"], own: int, units: stats.Units
) -> tuple[stats.Interval, stats.Interval]:
    """Intervals of f of each circuit in one network, and of how far f lies below that of circuit `own`.

    Args:
      losses: of the empty circuit, of the whole network, then of each circuit.
    """
    empty_loss, full_loss, *circuit_losses = losses

    def f(weights):
        return faithfulness(np.array(circuit_losses), empty_loss, full_loss, weights)

    def drop(weights):
        return f(weights)[own] - f(weights)

    return stats.jackknife_interval(f, units), stats.jackknife_interval(drop, units)


def lines(stability: Stability) -> list[str]:
    """Stability as text."""
    low, high = stability.spread
    return [
        f"  discovered again on {stability.repeats} resamples of the images: {min(stability.sizes)} to "
        f"{max(stability.sizes)} members, Jaccard {stability.to_circuit:.2f} with the circuit (5 to 95 % of "
        f"resamples {low:.2f} to {high:.2f}), {stability.pairwise:.2f} with each other, "
        f"{stability.chance:.2f} by chance"
    ]


def transfer_lines(transferred: xr.Dataset, ablation: str) -> list[str]:
    """The result of `transfer` as text: f of the circuit of each row in the network of each column."""
    names = [str(name) for name in transferred["circuit"].values]

    def cell(circuit, network):
        entry = transferred.sel(circuit=circuit, network=network)
        return f"{float(entry['estimate']):.3f} [{float(entry['low']):.3f}, {float(entry['high']):.3f}]"

    return [
        f"faithfulness of the circuit of (row) in the network of (column), {ablation} ablation",
        *text_table(("", *names), [(a, *(cell(a, b) for b in names)) for a in names]),
    ]
