"""Whether a circuit is found again: on other draws of the images, and in other networks."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechdiff import stats
from mechdiff.circuits.discovery import Circuit, as_members, close_to, effects, select, shuffled
from mechdiff.circuits.faithfulness import CircuitEvaluator, faithfulness

Set = Bool[np.ndarray, " component"]
SHUFFLES = 50  # random circuits for each found on a resample


@dataclasses.dataclass(frozen=True)
class Stability:
    """Circuits found anew on resamples of the images.

    Attributes:
      repeats: resamples.
      sizes: of the circuits found.
      frequency: share of them that each component is in, in the order of `Circuit.components`.
      to_circuit: mean Jaccard index |A and B| / |A or B| with the circuit found on all images.
      spread: 5th and 95th percentile of these.
      pairwise: mean Jaccard index of two resamples.
      chance: mean Jaccard index of the circuit with random ones that have as many members of each part as
        the resampled ones.
    """

    repeats: int
    sizes: tuple[int, ...]
    frequency: Float[np.ndarray, " component"]
    to_circuit: float
    spread: tuple[float, float]
    pairwise: float
    chance: float


def stability(evaluator: CircuitEvaluator, circuit: Circuit, repeats: int = 10, seed: int = 0) -> Stability:
    """Finds the circuit anew on bootstrap resamples of the images; only circuits not yet run are run.

    Each resample ranks anew too, but not with a screen: then the ranking stays.
    """
    found = []
    for weights in stats.bootstrap_weights(evaluator.eval_set.count, repeats, seed)[:, None]:
        exact = circuit.ranking == "exact"
        effect = effects(evaluator, weights) if exact else circuit.effect
        found.append(select(close_to(evaluator, weights), effect, circuit.tau).members)
    found, own = np.array(found), as_members(circuit, evaluator.names)
    near = np.array([jaccard(own, other) for other in found])
    rng = np.random.default_rng(seed)
    parts = [component.component_type for component in evaluator.chosen]
    chance = [jaccard(own, shuffled(rng, other, parts)) for other in found for _ in range(SHUFFLES)]
    return Stability(
        repeats=repeats,
        sizes=tuple(int(size) for size in found.sum(axis=1)),
        frequency=found.mean(axis=0),
        to_circuit=float(near.mean()),
        spread=(float(np.quantile(near, 0.05)), float(np.quantile(near, 0.95))),
        pairwise=float(np.mean([jaccard(a, b) for a, b in itertools.combinations(found, 2)])),
        chance=float(np.mean(chance)),
    )


def jaccard(a: Set, b: Set) -> float:
    """|A and B| / |A or B|; 1 for two empty sets."""
    return float((a & b).sum() / max((a | b).sum(), 1)) if (a | b).any() else 1.0


def transfer(circuits: Mapping[str, Circuit], evaluator: Mapping[str, CircuitEvaluator]) -> xr.Dataset:
    """How faithful each circuit is in each network, on each network's own images.

    Args:
      circuits, trials: by the same names; networks of one architecture, under one kind of ablation; images
        other than those that the circuits were found on.
    Returns:
      Dataset with f of circuit A in network B, `estimate, low, high`, and how far it drops against B's own
      circuit, `drop_estimate, drop_low, drop_high`, dims `circuit, network`; Student's intervals over images.
    Raises:
      ConfigError: components of one network that another lacks.
    """
    names = list(circuits)
    columns = []
    for place, network in enumerate(names):
        here = evaluator[network]
        members = np.stack([as_members(circuits[name], here.names) for name in names])
        nothing, whole, *loss = here.pooled(np.concatenate([here.ends, members]))
        units = stats.Units(np.arange(len(whole)), len(whole), False)
        f = lambda w: faithfulness(np.array(loss), nothing, whole, w)  # noqa: B023
        drop = lambda w: f(w)[place] - f(w)  # noqa: B023
        columns.append([stats.jackknife_interval(statistic, units) for statistic in (f, drop)])
    variables = {
        prefix + end: (("circuit", "network"), np.stack([getattr(pair[i], end) for pair in columns], 1))
        for i, prefix in enumerate(("", "drop_"))
        for end in ("estimate", "low", "high")
    }
    return xr.Dataset(variables, coords={"circuit": names, "network": names})


def lines(found: Stability) -> list[str]:
    """Stability as text."""
    low, high = found.spread
    return [
        f"  found anew on {found.repeats} resamples of the images: {min(found.sizes)} to {max(found.sizes)} "
        f"members, Jaccard {found.to_circuit:.2f} [{low:.2f}, {high:.2f}] with the circuit, "
        f"{found.pairwise:.2f} with each other, {found.chance:.2f} by chance"
    ]


def moved_lines(moved: xr.Dataset, ablation: str) -> list[str]:
    """What `transfer` returned as text: f of the circuit of each row in the network of each column."""
    names, width = moved["circuit"].values, max(24, *(len(str(name)) + 2 for name in moved["circuit"].values))
    cell = lambda a, b: "{:.3f} [{:.3f}, {:.3f}]".format(
        *(float(moved[end].sel(circuit=a, network=b)) for end in ("estimate", "low", "high"))
    )
    return [
        f"faithfulness of the circuit of (row) in the network of (column), {ablation} ablation",
        " " * width + "".join(f"{name:>{width}}" for name in names),
        *(f"{a:{width}}" + "".join(f"{cell(a, b):>{width}}" for b in names) for a in names),
    ]
