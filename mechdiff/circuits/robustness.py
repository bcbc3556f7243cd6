"""Stability of circuits under resampling of images or people, and their transfer to other networks."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.circuits.discovery import Circuit, as_members, close_to, effects, shuffled
from mechdiff.circuits.faithfulness import CircuitEvaluator, faithfulness
from mechdiff.circuits.pruning import Set, select
from mechdiff.core.text_table import text_table

SHUFFLES = 50  # random circuits for each resample


@dataclasses.dataclass(frozen=True)
class Stability:
    """Circuits discovered anew on resamples of the images.

    Attributes:
      repeats: resamples.
      sizes: of the circuits, one per resample.
      frequency: share of resamples whose circuit holds each component, in the order of `Circuit.components`.
      to_circuit: mean Jaccard index |A and B| / |A or B| with the circuit of all images.
      spread: 5th and 95th percentile of these.
      pairwise: mean Jaccard index of two resamples.
      chance: mean Jaccard index of the circuit with random ones that have as many members of each
        component type as the resampled ones.
    """

    repeats: int
    sizes: tuple[int, ...]
    frequency: Float[np.ndarray, " component"]
    to_circuit: float
    spread: tuple[float, float]
    pairwise: float
    chance: float


def stability(evaluator: CircuitEvaluator, circuit: Circuit, repeats: int = 10, seed: int = 0) -> Stability:
    """Discovers the circuit anew on bootstrap resamples of the images, or of the people on them.

    Only circuits not yet run are run. Components are ranked anew on each resample if the ranking is `exact`;
    that of a screen is kept.
    """
    resampled = []
    for weights in evaluator.units.resamples(repeats, seed)[:, None]:
        exact = circuit.ranking == "exact"
        effect = effects(evaluator, weights) if exact else circuit.effect
        resampled.append(select(close_to(evaluator, weights), effect, circuit.tau).members)
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
    return float((a & b).sum() / max((a | b).sum(), 1)) if (a | b).any() else 1.0


def transfer(circuits: Mapping[str, Circuit], evaluator: Mapping[str, CircuitEvaluator]) -> xr.Dataset:
    """Faithfulness of each circuit in each network, on that network's images.

    Args:
      circuits, evaluator: by the same names; networks of one architecture, under one ablation; images other
        than those that the circuits were discovered on.

    Returns:
      Dataset with f of circuit A in network B, `estimate, low, high`, and how far it drops against B's own
      circuit, `drop_estimate, drop_low, drop_high`, dims `circuit, network`; Student's intervals over
      images or people.

    Raises:
      ConfigError: components of one network that another lacks.
    """
    names = list(circuits)
    columns = []
    for place, network in enumerate(names):
        runner = evaluator[network]
        members = np.stack([as_members(circuits[name], runner.names) for name in names])
        losses = runner.pooled(np.concatenate([runner.ends, members]))
        columns.append(_faithfulness_and_drop(losses, place, runner.units))
    variables = {
        prefix + end: (("circuit", "network"), np.stack([getattr(pair[i], end) for pair in columns], 1))
        for i, prefix in enumerate(("", "drop_"))
        for end in ("estimate", "low", "high")
    }
    return xr.Dataset(variables, coords={"circuit": names, "network": names})


def _faithfulness_and_drop(losses, place: int, units: stats.Units) -> list[stats.Interval]:
    """Intervals of f of each circuit in one network, and of how far f lies below that of circuit `place`.

    `losses` are those of the empty circuit, of the whole network and of each circuit, per image.
    """
    empty_loss, full_loss, *circuit_losses = losses

    def f(weights):
        return faithfulness(np.array(circuit_losses), empty_loss, full_loss, weights)

    def drop(weights):
        return f(weights)[place] - f(weights)

    return [stats.jackknife_interval(statistic, units) for statistic in (f, drop)]


def lines(stability: Stability) -> list[str]:
    """Stability as text."""
    low, high = stability.spread
    return [
        f"  discovered anew on {stability.repeats} resamples of the images: {min(stability.sizes)} to "
        f"{max(stability.sizes)} members, Jaccard {stability.to_circuit:.2f} [{low:.2f}, {high:.2f}] with "
        f"the circuit, {stability.pairwise:.2f} with each other, {stability.chance:.2f} by chance"
    ]


def moved_lines(moved: xr.Dataset, ablation: str) -> list[str]:
    """The result of `transfer` as text: f of the circuit of each row in the network of each column."""
    names = [str(name) for name in moved["circuit"].values]

    def cell(circuit, network):
        entry = moved.sel(circuit=circuit, network=network)
        return f"{float(entry['estimate']):.3f} [{float(entry['low']):.3f}, {float(entry['high']):.3f}]"

    return [
        f"faithfulness of the circuit of (row) in the network of (column), {ablation} ablation",
        *text_table(("", *names), [(a, *(cell(a, b) for b in names)) for a in names]),
    ]
