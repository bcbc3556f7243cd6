"""Are circuits for natural images more complex? Decided by a measure validated on synthetic faces.

The order of complexity of synthetic faces is known (complexity 0, 2 and 4, the ladder). Candidate measures,
in an order that was fixed before any was computed:
  excess       effective components of the loss increase relative to the excess over the least possible loss;
               only where that loss is recorded with the sweep (`floor`, by timestep)
  circuit      components of the circuit that reaches each faithfulness, by ablation
  loss         effective components of the relative loss increase
The first whose mean rises at each step of the ladder, p < 0.05 over seeds each, decides; if none does, the
claim is not testable here. Nor is it where noise of the images moves that measure by more than counts as none
(`margins.RATIO`, since 2026-12-01): where noise grew threefold from rung to rung, equal effects passed the
gate in .655 of simulations, now in .002 (`validation.attacks`).
Networks are then compared at matched loss: loss increase and faithfulness are
relative to the loss, so a network further from its floor looks simpler. Definitions are ours.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mechdiff.analysis import complexity, effects, margins, spread
from mechdiff.core.errors import ConfigError, NotTestable
from mechdiff.stats import small_samples
from mechdiff.study.claims import across_seeds
from mechdiff.study.claims.verdicts import ALPHA, Finding
from mechdiff.study.network_results import NetworkResults

RUNGS = (0, 2, 4)


class Values(NamedTuple):
    """A measure of the networks of one data set.

    Attributes:
      logs: of each network; draws: of the data set, in resamples of images; None where not recomputed.
      moved: by how much resamples of images move the log of the data set's value on average: noise makes
        small loss increases more alike, whatever the images show.
    """

    logs: Float[np.ndarray, " network"]
    draws: Float[np.ndarray, " m"] | None = None
    moved: float = 0.0


@dataclass(frozen=True)
class Measure:
    """A measure of complexity: log values of the networks of one data set, and log values of the data set in
    resamples of images.

    `of` gives None where the networks' results do not hold it; `pseudo`: values are jackknife pseudo-values;
    `sizes`: logs of whole numbers.
    """

    name: str
    of: Callable[[Sequence[NetworkResults]], Values | None]
    pseudo: bool = True
    sizes: bool = False


def examine(networks: Sequence[NetworkResults], controls: Sequence[NetworkResults] = ()) -> Finding:
    """The claim on all networks, including those of lower complexity and snapshots of trainings.

    Args:
      controls: networks of control data; the measure in them is reported with the claim and does not decide
        it.

    Raises:
      NotTestable: no ladder, no measure that rises on it, or no networks of matched loss.
    """
    final = across_seeds.final_snapshots(networks)
    across_seeds.seed_pairs(final)  # both data sets, or NotTestable
    if not across_seeds.comparable(networks):
        raise NotTestable(
            "networks of the ladder were swept at other timesteps or by another ablation, or have other "
            "components"
        )
    try:
        measure, because = _gate(final, controls)
    except NotTestable as closed:
        raise NotTestable(f"{closed}{_unmatched(networks)}") from closed
    natural, simple, ratio = _matched(networks)
    first, second = measure.of(natural), measure.of(simple)
    if first is None or second is None:
        raise NotTestable(f"{measure.name} is not known of all networks of matched loss")
    if noise := _noise([first, second]):
        raise NotTestable(f"{measure.name}{noise}")
    draws = None if first.draws is None or second.draws is None else first.draws - second.draws
    units = min(network.units.effective for network in [*natural, *simple])
    estimate, interval, p = small_samples.between_groups(
        first.logs, second.logs, draws, units, measure.pseudo, measure.sizes
    )
    sizes = [float(np.exp(side.logs.mean())) for side in (first, second)]
    because = (
        f"{measure.name}: {sizes[0]:.1f} in {len(natural)} networks of CelebA, {sizes[1]:.1f} in "
        f"{len(simple)} of synthetic faces, mean clean losses at a ratio of {ratio:.2f}; {because}"
        f"{_beside(measure, networks, controls)}"
    )
    ends = tuple(float(np.exp(end)) for end in interval)
    negligible = bool(np.abs(interval).max() < margins.RATIO)  # False for NaN
    n = min(len(natural), len(simple))
    return Finding(float(np.exp(estimate)), ends, p, n, because, null=1.0, negligible=negligible)


def _beside(measure: Measure, networks: Sequence[NetworkResults], controls: Sequence[NetworkResults]) -> str:
    """The measure in networks of control data, in words; empty where there are too few, or they are not
    comparable."""
    clauses = []
    for data in across_seeds.CONTROLS:
        side = [network for network in across_seeds.final_snapshots(controls) if network.data == data]
        if len(side) < small_samples.MIN_SEEDS or not across_seeds.comparable([networks[0], *side]):
            continue
        values = measure.of(side)
        if values is not None:
            clauses.append(f"{np.exp(values.logs.mean()):.1f} in {len(side)} networks of {data} images")
    return f"; beside the claim, {', '.join(clauses)}" if clauses else ""


def measures(networks: Sequence[NetworkResults]) -> list[Measure]:
    """Candidate measures, in their order."""
    ablations = sorted({ablation for network in networks for ablation in network.circuits})
    sizes = [
        Measure(
            f"circuit to {tau:g}, {ablation}",
            lambda side, ablation=ablation, i=i: _sizes(side, ablation, i),
            pseudo=False,
            sizes=True,
        )
        for ablation, (i, tau) in itertools.product(ablations, enumerate(complexity.TAUS))
    ]
    excess = Measure("effective components of loss increase over excess loss", _excess)
    return [excess, *sizes, Measure("effective components of relative loss increase", _relative)]


def _gate(networks: Sequence[NetworkResults], controls: Sequence[NetworkResults]) -> tuple[Measure, str]:
    """The first measure that rises on the ladder, and its values there in words.

    Raises:
      NotTestable: there is none; the reason names the values of all, in networks of control data too.
    """
    rungs = [[n for n in networks if n.data == "synthetic" and n.complexity == rung] for rung in RUNGS]
    if min(map(len, rungs)) < small_samples.MIN_SEEDS:
        counts = ", ".join(
            f"{len(members)} of complexity {rung}" for rung, members in zip(RUNGS, rungs, strict=True)
        )
        raise NotTestable(
            "a measure must first rise on the ladder of synthetic faces, which takes at least "
            f"{small_samples.MIN_SEEDS} networks of each complexity; there are {counts}"
        )
    clauses = []
    for measure in measures(networks):
        values = [value for rung in rungs if (value := measure.of(rung)) is not None]
        if len(values) < len(rungs):
            continue
        rises, p = spread.ordered([value.logs for value in values], measure.pseudo, measure.sizes)
        shown = ", ".join(f"{np.exp(value.logs.mean()):.1f}" for value in values)
        clauses.append(f"{measure.name} {shown} (p {p:.3f}{_beside(measure, networks, controls)})")
        if rises and p < ALPHA:
            if noise := _noise(values):  # nor does another one: a second try would be a second chance
                raise NotTestable(f"{measure.name} rises on the ladder ({shown}, p {p:.3f}){noise}")
            return measure, f"at complexity {_listed(RUNGS)} it is {shown} (p {p:.3f})"
    raise NotTestable(
        f"no measure rises on the ladder, complexity {_listed(RUNGS)}, as one of complexity must: "
        f"{'; '.join(clauses)}"
    )


def _noise(values: Sequence[Values]) -> str:
    """That noise of the images moves a measure by more than counts as none, in words; else empty."""
    moved = max(value.moved for value in values)
    if not moved >= margins.RATIO:
        return ""
    return (
        f", which noise of the images moves by {np.expm1(moved):.1%}, more than the "
        f"{np.expm1(margins.RATIO):.1%} that count as none; examine on more images (sweep.images)"
    )


def _matched(networks: Sequence[NetworkResults]) -> tuple[list[NetworkResults], list[NetworkResults], float]:
    """Networks of either data set at the training steps where mean losses match best; the ratio of losses."""
    sides = across_seeds.natural_and_simple(networks)
    options = [
        [[n for n in side if n.steps == steps] for steps in sorted({n.steps for n in side}, reverse=True)]
        for side in sides
    ]
    pairs = [
        (abs(np.log(mean_clean_loss(natural) / mean_clean_loss(simple))), i)
        for i, (natural, simple) in enumerate(itertools.product(*options))
    ]
    gap, best = min(pairs)
    natural, simple = list(itertools.product(*options))[best]
    ratio = mean_clean_loss(natural) / mean_clean_loss(simple)
    if gap > np.log(margins.LIKE_LOSSES):
        raise NotTestable(
            f"networks are not matched in loss: CelebA's is {ratio:.2f} times that of synthetic faces, at "
            "least; examine snapshots of shorter training too (--set=train.keep=STEP,STEP)"
        )
    return natural, simple, ratio


def _unmatched(networks: Sequence[NetworkResults]) -> str:
    """Where no measure decides: that networks are not matched in loss either, in words; else empty."""
    try:
        _matched(networks)
    except NotTestable as reason:
        return f"; and if one did, {reason}"
    return ""


def mean_clean_loss(networks: Sequence[NetworkResults]) -> float:
    """Mean squared error of the predicted noise: over networks, and over timesteps and images of each."""
    return float(np.mean([network.sweep["clean_loss"].values.mean() for network in networks]))


def _relative(networks: Sequence[NetworkResults]) -> Values:
    increases = [
        across_seeds.increase_draws(
            n.sweep, across_seeds.lead_ablation(n.sweep), across_seeds.weightings(n.sweep)
        )
        for n in networks
    ]
    return _effective(np.array(increases))


def _excess(networks: Sequence[NetworkResults]) -> Values | None:
    if not all("floor" in network.sweep for network in networks):
        return None
    increases = []
    for network in networks:
        clean, loss = effects.losses(network.sweep, across_seeds.lead_ablation(network.sweep))
        weights = across_seeds.weightings(network.sweep)
        floor = network.sweep.get("floor_loss", network.sweep["floor"]).values
        try:
            increases.append(effects.excess_relative_increase(clean, loss, floor, weights))
        except ConfigError:  # a network at its floor has no excess to divide by
            return None
    return _effective(np.array(increases))


def _effective(increases: Float[np.ndarray, "network component draws"]) -> Values:
    return Values(
        spread.pseudo_values(increases[..., 0]),
        spread.log_effective_number(increases[..., 1:]),
        spread.moved_by_noise(increases),
    )


def _sizes(networks: Sequence[NetworkResults], ablation: str, index: int) -> Values | None:
    if not all(ablation in network.circuits for network in networks):
        return None
    sizes = [np.atleast_1d(network.circuits[ablation].attrs["sizes"])[index] for network in networks]
    return Values(np.log(np.array(sizes, np.float64)))


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
