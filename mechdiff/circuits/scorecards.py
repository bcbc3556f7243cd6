"""How good a circuit is, on images that it was not found on.

Measures, all of f as `faithfulness` defines it:
  curve         f of nested circuits of growing size, along `Circuit.order`
  CPR, CMD      areas under f and under |1 - f| over the share of components, by trapezoids from 0 to 1 (as
                MIB's, Mueller et al. 2025, over shares of edges): how well small circuits do, and how far
                they are from doing what the network does
  completeness  mean |f(C without K) - f(all without K)| over random knock-outs K: of members, and of others.
                A circuit that is complete loses what the network loses, and the network nothing by what is
                not in the circuit (after Wang et al. 2023, arXiv 2211.00593, section 4)
  minimality    f(C) - f(C without c) of each member c; p values by sign flips of images, adjusted for all
                members by max-T
  sufficiency   share of random circuits with as many members of each part that are as close to the network:
                p = (1 + how many are) / (1 + how many there are)
Intervals are Student's over images, or over people where it is known who is on them, by leaving out one at a
time: BCa bootstraps of 8 images covered .90 for .95.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechdiff import stats
from mechdiff.circuits.discovery import Circuit, as_members, shuffled
from mechdiff.circuits.faithfulness import CircuitEvaluator, dataset, faithfulness, faithfulness_match
from mechdiff.core.errors import ConfigError
from mechdiff.stats import Interval

SHARES = (0, 0.02, 0.05, *(i / 10 for i in range(1, 11)))  # of the components, for the curve
TIE = 1e-9  # closeness that rounding can make
UNSEEN = 1e-4  # %, effect on the loss that rounding can make: the ablation can't see the component
Set = Bool[np.ndarray, " component"]


@dataclasses.dataclass(frozen=True)
class Scorecard:
    """Measures of one circuit under one kind of ablation, see the module.

    Attributes:
      subject, kind, members: whose, under which ablation, and the members, the most needed first.
      sizes, curve: of the nested circuits.
      cpr, cmd: areas.
      circuit, complement: f of the circuit, and of everything else.
      by_t: f of the circuit at each timestep.
      inside, outside: completeness under knock-outs of members and of others; NaN if there are none.
      knocked: f of the circuit and of the network under each knock-out.
      minimality, needed: of each member, and its p value.
      random: f of random circuits.
      p: of sufficiency.
      images: that it was scored on.
      seen: components whose ablation changes anything: those that a circuit can be told to lack.
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
      trials: on images other than those that the circuit was found on; under the same kind of ablation.
      knockouts: random sets of members, and as many of others, of up to half of them.
      randoms: random circuits, at least 20.
      seed: of all that is random.

    Returns:
      The measures, and what they were taken from, see `run`.
    """
    found = run(evaluator, circuit, knockouts, randoms, seed)
    return measure(found), found


def run(evaluator: CircuitEvaluator, circuit: Circuit, knockouts: int, randoms: int, seed: int) -> xr.Dataset:
    """Losses of all circuits that the measures need.

    Returns:
      Dataset with `member` and `loss`, dims `circuit, component, t, image`; the `role` of a circuit says what
      it is for. Those of role `whole less ...` have the order of `less ...`, and `less member` that of the
      attribute `members`.

    Raises:
      ConfigError: another kind of ablation, other components, or counts that are too small.
    """
    if evaluator.ablation != circuit.ablation:
        raise ConfigError(
            f"circuit found under {circuit.ablation!r} ablation, but the trials are of {evaluator.ablation!r}"
        )
    if knockouts < 1 or randoms < 20:
        raise ConfigError(f"knockouts={knockouts}, randoms={randoms}: at least 1 and 20 are needed")
    rng, own = np.random.default_rng(seed), as_members(circuit, evaluator.names)
    rank = np.array([circuit.order.index(name) for name in evaluator.names])
    nested = [rank < size for size in _sizes(len(own), int(own.sum()))]
    inside, outside = (_knocked(rng, some, knockouts) for some in (own, ~own))
    parts = [component.component_type for component in evaluator.chosen]
    members = [np.arange(len(own)) == evaluator.names.index(name) for name in circuit.members]
    roles = {
        "nothing": evaluator.ends[:1],
        "whole": evaluator.ends[1:],
        "circuit": [own],
        "complement": [~own],
        "nested": nested,
        "less inside": [own & ~knocked for knocked in inside],
        "whole less inside": [~knocked for knocked in inside],
        "less outside": [own & ~knocked for knocked in outside],
        "whole less outside": [~knocked for knocked in outside],
        "less member": [own & ~member for member in members],
        "random": [shuffled(rng, own, parts) for _ in range(randoms)],
    }
    labels = [role for role, sets in roles.items() for _ in sets]
    sets = np.array([one for group in roles.values() for one in group])
    found = dataset(evaluator, sets, evaluator.losses(sets), role=labels)
    seen = int((np.abs(circuit.effect) > UNSEEN).sum())
    return found.assign_attrs(members=list(circuit.members), tau=circuit.tau, seen=seen)


def measure(found: xr.Dataset, seed: int = 0) -> Scorecard:
    """The measures, from what `run` returned; `seed` is of the sign flips."""
    levels = found["loss"].transpose("circuit", "t", "image").values.astype(np.float64)
    loss, role = levels.mean(axis=1), found["role"].values
    nothing, whole = (loss[role == name][0] for name in ("nothing", "whole"))
    units = stats.units_of(found)
    even = units.even()
    f = lambda name, w: faithfulness(loss[role == name], nothing, whole, w)
    interval = lambda statistic: stats.jackknife_interval(statistic, units)
    sizes = found["member"].values[role == "nested"].sum(axis=1)
    area = lambda values: np.trapezoid(values, sizes / found.sizes["component"], axis=0)
    ends = [levels[role == name][0] for name in ("nothing", "whole")]
    by_t = lambda w: np.array([faithfulness(*cells, w) for cells in zip(levels[role == "circuit"][0], *ends)])
    random, whole_circuit = f("random", even)[:, 0], loss[role == "circuit"]
    own = f("circuit", even)[:, 0]
    return Scorecard(
        denoiser=found.attrs["denoiser"],
        ablation=found.attrs["ablation"],
        members=tuple(found.attrs["members"]),
        sizes=sizes,
        curve=interval(lambda w: f("nested", w)),
        cpr=interval(lambda w: area(f("nested", w))),
        cmd=interval(lambda w: area(np.abs(1 - f("nested", w)))),
        circuit=interval(lambda w: f("circuit", w)[0]),
        complement=interval(lambda w: f("complement", w)[0]),
        by_t=interval(by_t),
        inside=_gap(f, "inside", interval),
        outside=_gap(f, "outside", interval),
        knocked=np.concatenate(
            [
                np.stack([f(f"less {where}", even)[:, 0], f(f"whole less {where}", even)[:, 0]], 1)
                for where in ("inside", "outside")
            ]
        ),
        minimality=interval(lambda w: f("circuit", w) - f("less member", w)),
        needed=stats.max_t(
            units.sums((loss[role == "less member"] - whole_circuit)[:, None])[:, 0], seed=seed
        ),
        random=random,
        p=float(
            (1 + (faithfulness_match(random) >= faithfulness_match(own) - TIE).sum()) / (1 + len(random))
        ),
        images=found.sizes["image"],
        seen=int(found.attrs.get("seen", found.sizes["component"])),
    )


def lines(card: Scorecard) -> list[str]:
    """The measures as text."""
    show = lambda i: f"{float(i.estimate):.3f} [{float(i.low):.3f}, {float(i.high):.3f}]"
    each = zip(card.members, card.minimality.estimate, card.minimality.low, card.minimality.high, card.needed)
    return [
        f"{card.denoiser}, {card.ablation} ablation: {len(card.members)} of {card.seen} components that it "
        f"can see, {card.n} images",
        f"  faithfulness {show(card.circuit)}, of the rest {show(card.complement)}",
        f"  areas: CPR {show(card.cpr)}, CMD {show(card.cmd)}",
        f"  incompleteness: knock-outs inside {show(card.inside)}, outside {show(card.outside)}",
        f"  random circuits of the same parts: median {np.median(card.random):.3f}, "
        f"largest {card.random.max():.3f}; p = {card.p:.3f} ({len(card.random)} circuits)",
        "  size: " + " ".join(f"{size:7d}" for size in card.sizes),
        "  f:    " + " ".join(f"{value:7.3f}" for value in card.curve.estimate),
        *(f"  {name:24}{f:8.3f} [{low:.3f}, {high:.3f}]  p = {p:.4f}" for name, f, low, high, p in each),
    ]


def _sizes(count: int, own: int) -> list[int]:
    return sorted({*(round(share * count) for share in SHARES), own})


def _knocked(rng: np.random.Generator, some: Set, count: int) -> list[Set]:
    """`count` random parts of a set, of 1 to half of its members; none of an empty one."""
    places = np.flatnonzero(some)
    if not len(places):
        return []
    sizes = rng.integers(1, max(1, len(places) // 2) + 1, count)
    return [np.isin(np.arange(len(some)), rng.permutation(places)[:size]) for size in sizes]


def _gap(f: Callable[..., np.ndarray], where: str, interval: Callable[..., Interval]) -> Interval:
    """Mean |f(C without K) - f(all without K)| over the knock-outs of a place; NaN if there are none."""
    gap = lambda w: np.abs(f(f"less {where}", w) - f(f"whole less {where}", w))
    return interval(lambda w: gap(w).mean(axis=0) if len(gap(w)) else np.full(len(w), np.nan))
