"""How good a circuit is, on images that it was not found on.

Measures, all of f as `faithfulness` defines it:
  curve         f of nested circuits of growing size, along `Circuit.order`
  CPR, CMD      areas under f and under |1 - f| over the share of components, by trapezoids from 0 to 1 (as
                MIB's, Mueller et al. 2025, over shares of edges): how well small circuits do, and how far
                they are from doing what the network does
  completeness  mean |f(C without K) - f(all without K)| over random knock-outs K: of members, and of others.
                A circuit that is complete loses what the network loses, and the network nothing by what is
                not in the circuit (after Wang et al. 2023, arXiv 2211.00593, section 4)
  minimality    f(C) - f(C without c) of each member c; p values of its removal raising the loss, by
                one-sided sign flips of images, adjusted for all members by max-T
  sufficiency   share of random circuits with as many members of each component type that match as well:
                p = (1 + how many are) / (1 + how many there are)
Intervals are Student's over images, or over people where it is known who is in them, by leaving out one at a
time: BCa bootstraps of 8 images covered .90 instead of .95. Noise raises the sizes |...| of CMD and of
completeness: of circuits that miss nothing, intervals of the latter lay above 0 in .46 (8 images) to .81 (64)
of simulations until 2026-12-01, and now in less than .01 (`stats.size_interval`).
"""

import dataclasses

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from mechdiff import stats
from mechdiff.circuits.discovery import Circuit, as_members, shuffled
from mechdiff.circuits.faithfulness import CircuitEvaluator, dataset, faithfulness, faithfulness_match
from mechdiff.circuits.pruning import Set
from mechdiff.core.errors import ConfigError
from mechdiff.stats import Interval

SHARES = (0, 0.02, 0.05, *(i / 10 for i in range(1, 11)))  # of the components, for the curve
TIE = 1e-9  # faithfulness match that rounding can make
UNSEEN = 1e-4  # %, relative loss increase that rounding can make


@dataclasses.dataclass(frozen=True)
class Scorecard:
    """Measures of one circuit under one kind of ablation, as the module defines them.

    Attributes:
      denoiser, ablation: name of the network, and the ablation of everything outside the circuit.
      members: names, the most needed first.
      sizes, curve: of the nested circuits.
      cpr, cmd: areas.
      circuit, complement: f of the circuit, and of everything else.
      by_t: f of the circuit at each timestep.
      inside, outside: completeness under knock-outs of members and of others; NaN if there are none.
      knocked: f of the circuit and of the network under each knock-out.
      minimality, needed: of each member, and the p value of its removal raising the loss.
      random: f of random circuits.
      p: of sufficiency.
      images: that it was scored on.
      seen: number of components whose ablation changes the loss by more than rounding (the name in saved
        results).
    """

    denoiser: str
    ablation: str
    members: tuple[str, ...]
    sizes: Int[np.ndarray, " size"]
    curve: Interval
    cpr: Interval
    cmd: Interval
    circuit: Interval
    complement: Interval
    by_t: Interval
    inside: Interval
    outside: Interval
    knocked: Float[np.ndarray, "knockout 2"]
    minimality: Interval
    needed: Float[np.ndarray, " member"]
    random: Float[np.ndarray, " random"]
    p: float
    images: int
    seen: int

    @property
    def n(self) -> int:
        """Images."""
        return self.images


def scorecard(
    evaluator: CircuitEvaluator, circuit: Circuit, *, knockouts: int = 20, randoms: int = 40, seed: int = 0
) -> tuple[Scorecard, xr.Dataset]:
    """Runs the circuits that the measures need and takes the measures.

    Args:
      evaluator: on images other than those that the circuit was discovered on; under the same ablation.
      knockouts: random sets of members, and as many of others, of up to half of them.
      randoms: random circuits, at least 20.
      seed: of knock-outs and random circuits.

    Returns:
      The measures, and the losses that they are functions of, see `run`.
    """
    losses = run(evaluator, circuit, knockouts, randoms, seed)
    return measure(losses), losses


def run(evaluator: CircuitEvaluator, circuit: Circuit, knockouts: int, randoms: int, seed: int) -> xr.Dataset:
    """Losses of all circuits that the measures need.

    Returns:
      Dataset with `member` and `loss`, dims `circuit, component, t, image`; the `role` of a circuit says what
      it is for. Those of role `whole less ...` have the order of `less ...`, and `less member` that of the
      attribute `members`.

    Raises:
      ConfigError: another ablation, other components, or counts that are too small.
    """
    if evaluator.ablation != circuit.ablation:
        raise ConfigError(
            f"circuit of {circuit.ablation!r} ablation, but the evaluator's is {evaluator.ablation!r}"
        )
    if knockouts < 1 or randoms < 20:
        raise ConfigError(f"knockouts={knockouts}, randoms={randoms}: at least 1 and 20 are needed")
    rng, in_circuit = np.random.default_rng(seed), as_members(circuit, evaluator.names)
    rank = np.array([circuit.order.index(name) for name in evaluator.names])
    nested = [rank < size for size in _sizes(len(in_circuit), int(in_circuit.sum()))]
    inside, outside = (_knocked(rng, members, knockouts) for members in (in_circuit, ~in_circuit))
    types = [component.component_type for component in evaluator.chosen]
    singles = [np.arange(len(in_circuit)) == evaluator.names.index(name) for name in circuit.members]
    roles = {
        "nothing": evaluator.ends[:1],
        "whole": evaluator.ends[1:],
        "circuit": [in_circuit],
        "complement": [~in_circuit],
        "nested": nested,
        "less inside": [in_circuit & ~knocked for knocked in inside],
        "whole less inside": [~knocked for knocked in inside],
        "less outside": [in_circuit & ~knocked for knocked in outside],
        "whole less outside": [~knocked for knocked in outside],
        "less member": [in_circuit & ~single for single in singles],
        "random": [shuffled(rng, in_circuit, types) for _ in range(randoms)],
    }
    labels = [role for role, sets in roles.items() for _ in sets]
    circuits = np.array([members for sets in roles.values() for members in sets])
    losses = dataset(evaluator, circuits, evaluator.losses(circuits), role=labels)
    effective = int((np.abs(circuit.effect) > UNSEEN).sum())
    return losses.assign_attrs(members=list(circuit.members), tau=circuit.tau, seen=effective)


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Losses of the circuits that `run` ran, `[circuit, t, image]`, and what is measured on all of them."""

    loss: Float[np.ndarray, "circuit t image"]
    role: np.ndarray
    units: stats.Units

    def of(self, role: str) -> Float[np.ndarray, "circuit image"]:
        """Losses of the circuits of a role, mean over timesteps."""
        return self.loss[self.role == role].mean(axis=1)

    def f(self, role: str, weights: np.ndarray) -> Float[np.ndarray, "circuit m"]:
        """Faithfulness of the circuits of a role, under weightings of the images."""
        return faithfulness(self.of(role), self.of("nothing")[0], self.of("whole")[0], weights)

    def f_by_t(self, role: str, weights: np.ndarray) -> Float[np.ndarray, "t m"]:
        """Faithfulness of the one circuit of a role, at each timestep."""
        loss, nothing, whole = (self.loss[self.role == name][0] for name in (role, "nothing", "whole"))
        return np.array([faithfulness(loss[t], nothing[t], whole[t], weights) for t in range(len(loss))])

    def interval(self, statistic: stats.intervals.Statistic) -> Interval:
        """Student's over the images or people."""
        return stats.jackknife_interval(statistic, self.units)

    def completeness(self, where: str) -> Interval:
        """Mean |f(C without K) - f(all without K)| over knock-outs `inside` or `outside`; NaN if none."""

        def gaps(weights: np.ndarray) -> np.ndarray:
            differences = self.f(f"less {where}", weights) - self.f(f"whole less {where}", weights)
            return differences if len(differences) else np.full((1, len(weights)), np.nan)

        return stats.size_interval(gaps, lambda sizes: sizes.mean(axis=0), self.units)


def measure(losses: xr.Dataset, seed: int = 0) -> Scorecard:
    """The measures, from what `run` returned; `seed` is of the sign flips."""
    loss = losses["loss"].transpose("circuit", "t", "image").values.astype(np.float64)
    runs = _Runs(loss, losses["role"].values, stats.units_of(losses))
    sizes = losses["member"].values[runs.role == "nested"].sum(axis=1)

    def area(values: np.ndarray) -> np.ndarray:
        return np.trapezoid(values, sizes / losses.sizes["component"], axis=0)

    random, of_circuit = (runs.f(role, runs.units.even())[:, 0] for role in ("random", "circuit"))
    return Scorecard(
        denoiser=losses.attrs["denoiser"],
        ablation=losses.attrs["ablation"],
        members=tuple(losses.attrs["members"]),
        sizes=sizes,
        curve=runs.interval(lambda w: runs.f("nested", w)),
        cpr=runs.interval(lambda w: area(runs.f("nested", w))),
        cmd=stats.size_interval(lambda w: 1 - runs.f("nested", w), area, runs.units),
        circuit=runs.interval(lambda w: runs.f("circuit", w)[0]),
        complement=runs.interval(lambda w: runs.f("complement", w)[0]),
        by_t=runs.interval(lambda w: runs.f_by_t("circuit", w)),
        inside=runs.completeness("inside"),
        outside=runs.completeness("outside"),
        knocked=np.concatenate([_knocked_pairs(runs, where) for where in ("inside", "outside")]),
        minimality=runs.interval(lambda w: runs.f("circuit", w) - runs.f("less member", w)),
        needed=_needed(runs, seed),
        random=random,
        p=_sufficiency(random, of_circuit),
        images=losses.sizes["image"],
        seen=int(losses.attrs.get("seen", losses.sizes["component"])),
    )


def _knocked_pairs(runs: _Runs, where: str) -> Float[np.ndarray, "knockout 2"]:
    """f of the circuit and of the network under each knock-out."""
    pair = (runs.f(f"{role} {where}", runs.units.even())[:, 0] for role in ("less", "whole less"))
    return np.stack(list(pair), axis=1)


def _needed(runs: _Runs, seed: int) -> Float[np.ndarray, " member"]:
    """p value of each member: its removal raises the loss."""
    raised = runs.of("less member") - runs.of("circuit")
    return stats.max_t(runs.units.sums(raised[:, None])[:, 0], seed=seed, alternative="greater")


def _sufficiency(random: Float[np.ndarray, " random"], circuit: Float[np.ndarray, " 1"]) -> float:
    """p of a circuit's faithfulness among those of random circuits."""
    as_good = faithfulness_match(random) >= faithfulness_match(circuit) - TIE
    return float((1 + as_good.sum()) / (1 + len(random)))


def lines(scores: Scorecard) -> list[str]:
    """The measures as text."""

    def show(interval):
        return f"{float(interval.estimate):.3f} [{float(interval.low):.3f}, {float(interval.high):.3f}]"

    f = scores.minimality
    members = zip(scores.members, f.estimate, f.low, f.high, scores.needed, strict=True)
    return [
        f"{scores.denoiser}, {scores.ablation} ablation: {len(scores.members)} of {scores.seen} components "
        f"that it can see, {scores.n} images",
        f"  faithfulness {show(scores.circuit)}, of the rest {show(scores.complement)}",
        f"  areas: CPR {show(scores.cpr)}, CMD {show(scores.cmd)}",
        f"  incompleteness: knock-outs inside {show(scores.inside)}, outside {show(scores.outside)}",
        f"  random circuits of the same component types: median {np.median(scores.random):.3f}, "
        f"largest {scores.random.max():.3f}; p = {scores.p:.3f} ({len(scores.random)} circuits)",
        "  size: " + " ".join(f"{size:7d}" for size in scores.sizes),
        "  f:    " + " ".join(f"{value:7.3f}" for value in scores.curve.estimate),
        *(f"  {name:24}{f:8.3f} [{low:.3f}, {high:.3f}]  p = {p:.4f}" for name, f, low, high, p in members),
    ]


def _sizes(count: int, members: int) -> list[int]:
    return sorted({*(round(share * count) for share in SHARES), members})


def _knocked(rng: np.random.Generator, members: Set, count: int) -> list[Set]:
    """`count` random subsets, of 1 to half of the members; none of an empty set."""
    indices = np.flatnonzero(members)
    if not len(indices):
        return []
    sizes = rng.integers(1, max(1, len(indices) // 2) + 1, count)
    return [np.isin(np.arange(len(members)), rng.permutation(indices)[:size]) for size in sizes]
