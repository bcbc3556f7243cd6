"""The claims of arXiv 2506.17237 that can be tested, and how each is tested on saved results.

The paper's body was not available: statements are made from its abstract and from what others say of it, and
every estimand is ours. How findings become verdicts is in `verdicts`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.stats import binom, rankdata

from mechdiff import stats
from mechdiff.analysis import complexity, entropy_divergence, phases
from mechdiff.analysis.roles import matching
from mechdiff.study.claims import across_seeds
from mechdiff.study.claims.verdicts import (
    ALPHA,
    Claim,
    Finding,
    Missing,
    Network,
    Question,
    decide,
    jackknife,
    over_seeds,
)

LEVELS = 24  # that a test of four phases needs: six or more a phase
MARGIN = np.log(1.042)  # of a ratio's logarithm: half of what the paper reports


def evaluate(networks: Sequence[Network]) -> list[Claim]:
    """Every claim, tested on networks of one configuration; of synthetic faces the full ladder's count.

    Claims that compare data sets take CelebA as the natural and synthetic faces as the simple one. Networks
    with different components, or swept at different levels, can't be compared: then no claim is testable.
    """
    full = [one for one in networks if one.data != "synthetic" or one.level == across_seeds.TOP_LEVEL]
    if not across_seeds.alike(full):
        return decide([dataclasses.replace(question, test=_mixed) for question in QUESTIONS], full)
    return decide(QUESTIONS, full)


def _mixed(_: Sequence[Network]) -> Finding:
    raise Missing(
        "the networks differ in their components or noise levels; examine those of one configuration in a "
        "folder of their own (--set=study.models=..., --workdir=...)"
    )


def _complexity(networks: Sequence[Network]) -> Finding:
    sides = natural, simple = across_seeds.pairs(networks)
    measure = lambda n: complexity.effective_components(n.sweep, across_seeds.lead(n.sweep))
    drawn = [np.array([measure(n)(across_seeds.weightings(n.sweep)) for n in side]) for side in sides]
    logs, sizes = np.log(drawn[0]) - np.log(drawn[1]), [size[:, 0] for size in drawn]
    ratios, resampled = logs[:, 0], logs[:, 1:]
    estimate, interval, p = over_seeds(ratios, resampled, natural[0].images)
    because = (
        f"damage is spread over an effective {sizes[0].mean():.1f} components in networks of CelebA, "
        f"{sizes[1].mean():.1f} in those of synthetic faces; more in {_count(ratios > 0)} pairs of seeds"
    )
    if all(network.control is not None for network in [*natural, *simple]):
        fresh = [
            [across_seeds.effective(n.control, across_seeds.lead(n.control)) for n in side] for side in sides
        ]
        because += f"; an untrained network shown the same pictures: ratio {np.divide(*fresh).mean():.3f}"
    negligible = bool(np.abs(interval).max() < MARGIN)  # False for NaN
    ends = tuple(float(np.exp(end)) for end in interval)
    return Finding(float(np.exp(estimate)), ends, p, len(ratios), because, null=1.0, negligible=negligible)


def _divergence(networks: Sequence[Network]) -> Finding:
    natural, simple = ([n.attention for n in side] for side in across_seeds.sides(networks))
    if min(len(natural), len(simple)) < 2:
        raise Missing(across_seeds.few(natural, simple, 2))
    between, within, at_levels, p = entropy_divergence.seeds_test(natural, simple)
    because = (
        f"{between.min():.3f} to {between.max():.3f} nats over noise levels between data sets, "
        f"{within.min():.3f} to {within.max():.3f} between seeds of one; above seed noise (p < 0.05) at "
        f"{_count(at_levels < ALPHA)} levels"
    )
    estimate = float((between - within).mean())
    draws = entropy_divergence.seeds_excess(
        natural, simple, [*map(across_seeds.weightings, [*natural, *simple])]
    )[1:]
    excess = lambda *sides: float(entropy_divergence.seeds_excess(*sides)[0])
    interval = jackknife(excess, natural, simple, estimate, draws, natural[0].sizes["image"])
    return Finding(estimate, interval, p, min(len(natural), len(simple)), because)


def _roles(networks: Sequence[Network]) -> Finding:
    natural, simple = across_seeds.sides([network for network in networks if network.roles is not None])
    if min(len(natural), len(simple)) < 2:
        raise Missing(f"roles of heads (--set=study.role_sets=200): {across_seeds.few(natural, simple, 2)}")
    found = [_agreement(side) for side in (natural, simple)]

    def excess(*sides: Sequence[Network], repeats: int = 200) -> float:
        both = [_agreement(side, repeats) for side in sides]
        return float(np.mean([one.profiles - one.chance_profiles for one in both]))

    estimate = float(np.mean([one.profiles - one.chance_profiles for one in found]))
    count = lambda network: int((network.roles["role"] != matching.UNASSIGNED).sum())
    named = [list(map(count, side)) for side in (natural, simple)]
    having, networks = np.count_nonzero(named[0] + named[1]), len(named[0] + named[1])
    p = max(*(one.p_profiles for one in found), float(binom.sf(having - 1, networks, ALPHA)))
    heads = natural[0].roles.sizes["component"]
    words = [
        f"{name}: selectivity of matched heads correlates {one.profiles:.2f} between seeds, "
        f"{one.chance_profiles:.2f} by chance; {np.mean(count):.1f} of {heads} heads have a role"
        + (f", matches share it in {one.labels:.0%}, by chance {one.chance_labels:.0%}" if any(count) else "")
        for name, one, count in zip(("CelebA", "synthetic faces"), found, named)
    ]
    interval = jackknife(excess, natural, simple, estimate)
    return Finding(estimate, interval, p, min(len(natural), len(simple)), "; ".join(words))


def _agreement(side: Sequence[Network], repeats: int = 2000) -> matching.Agreement:
    heads = [str(name) for name in side[0].roles["component"].values]
    return matching.agreement(
        [matching.attention_profiles(network.attention.sel(head=heads)) for network in side],
        [network.roles["selectivity"].transpose("component", "target").values for network in side],
        [[str(role) for role in network.roles["role"].values] for network in side],
        matching.layers_of(heads),
        repeats,
    )


def _bottlenecks(networks: Sequence[Network]) -> Finding:
    kinds = [str(kind) for kind in networks[0].sweep["kind"].values] if networks else []
    if len(kinds) < 2:
        raise Missing(f"needs sweeps of at least two kinds of ablation; there are {kinds}")
    names = [str(name) for name in networks[0].sweep["component"].values]
    part = networks[0].sweep["part"].values
    damage = np.array(  # network, kind, component, resample of the images
        [
            [across_seeds.damages(one.sweep, kind, across_seeds.weightings(one.sweep)) for kind in kinds]
            for one in networks
        ]
    )
    peers = (part == part[:, None]) & ~np.eye(len(part), dtype=bool)
    others = peers / np.maximum(peers.sum(axis=1, keepdims=True), 1)  # of its part, for each component
    excess = damage - others @ damage
    weaker = excess.min(axis=1)  # of the kinds
    images, whole = networks[0].images, damage[..., 0]
    found = [over_seeds(one[:, 0], one[:, 1:], images) for one in np.moveaxis(weaker, 1, 0)]
    tested = np.array([one[2] for one in found])
    best = int(weaker[..., 0].mean(axis=0).argmax())
    p, sure = np.nan, 0
    if not np.isnan(tested).all():
        adjusted = stats.holm(np.nan_to_num(tested, nan=1.0))
        p, sure = float(adjusted.min()), int((adjusted < ALPHA).sum())
        best = int(np.nan_to_num(tested, nan=1.0).argmin())  # adjusted ones tie at 1
    low, high = whole.mean(axis=0).min(), whole.mean(axis=0).max()
    because = (
        f"{sure} of {len(names)} components (Holm) damage more than the others of their part under every "
        f"kind, most surely {names[best]}; pooled Deg% of all lies between {low:.2f} and {high:.2f}"
    )
    return Finding(found[best][0], found[best][1], p, len(networks), because)


def _phases(networks: Sequence[Network]) -> Finding:
    if not networks:
        raise Missing("no networks")
    levels = networks[0].sweep.sizes["t"]
    if levels < LEVELS:
        raise Missing(
            f"{levels} noise levels were swept; four phases against their neighbours take at least {LEVELS} "
            "(--set=sweep.timesteps=32)"
        )
    found = [phases.measure(network.sweep, across_seeds.lead(network.sweep)) for network in networks]
    # Four phases must fit better than any other number of them, and than any smooth drift.
    margins = np.array([one.score[3] - max(np.delete(one.score, 3).max(), one.drift.max()) for one in found])
    best = sorted(one.k for one in found)
    stepped = np.mean([one.stepped for one in found])
    because = (
        f"the best number of phases is {_range(best)} over {len(found)} networks, 4 in {best.count(4)} of "
        f"them; steps beat a smooth drift in {stepped:.0%} of resamples"
    )
    if all(network.control is not None for network in networks):
        fresh = [
            phases.measure(network.control, across_seeds.lead(network.control)).k for network in networks
        ]
        because += f"; in an untrained network the best number is {_range(sorted(fresh))}"
    return Finding(*over_seeds(margins), len(found), because)


def _entropy(networks: Sequence[Network]) -> Finding:
    if not networks or networks[0].attention.sizes["head"] < 4:
        raise Missing("needs networks with at least 4 attention heads")
    drawn = np.array([_rank_link(network.sweep, network.attention) for network in networks])
    z, rho = np.arctanh(np.clip(drawn, -0.999, 0.999)), drawn[:, 0]
    estimate, interval, p = over_seeds(z[:, 0], z[:, 1:], networks[0].images, above=False)
    because = (
        f"over the heads of a network, Spearman's correlation of H / ln Nk and |pooled Deg%| lies between "
        f"{rho.min():.2f} and {rho.max():.2f}; {_count(rho < 0)} networks have it below 0"
    )
    if all(network.control is not None for network in networks):
        fresh = [_rank_link(network.control, network.control_attention)[0] for network in networks]
        because += f"; in an untrained network it is {np.mean(fresh):.2f}"
    ends = tuple(float(np.tanh(end)) for end in interval)
    return Finding(float(np.tanh(estimate)), ends, p, len(rho), because, above=False)


def _rank_link(sweep: xr.Dataset, attention: xr.Dataset) -> np.ndarray:
    """Rank correlation over heads on all images alike, then in each resample of them."""
    heads = [str(name) for name in attention["head"].values]
    names = [str(name) for name in sweep["component"].values]
    entropy = attention["normalised_entropy"].mean("t").transpose("head", "image").values
    seen = np.asarray(entropy, np.float64) @ across_seeds.weightings(attention).T
    damage = across_seeds.damages(sweep, across_seeds.lead(sweep), across_seeds.weightings(sweep))
    damage = np.abs(damage[[names.index(name) for name in heads]])
    ranks = (rankdata(values, axis=0) - (len(heads) + 1) / 2 for values in (seen, damage))
    one, other = (rank / np.sqrt((rank**2).sum(axis=0)) for rank in ranks)
    return (one * other).sum(axis=0)  # Spearman's, for ties too


def _count(which: np.ndarray) -> str:
    return f"{int(np.sum(which))} of {len(which)}"


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


QUESTIONS = (
    Question(
        "complexity",
        "Circuits for natural images are more complex than those for synthetic ones.",
        "Ratio, CelebA over synthetic, of the effective number of components that damage is spread over "
        "(exp of the entropy of the shares of |pooled Deg%|); geometric mean over pairs of seeds.",
        "1.084 ± 0.008, p < 0.001",
        _complexity,
    ),
    Question(
        "divergence",
        "Attention entropy differs between the data sets, by an amount that varies with the noise level.",
        "Root mean square over heads of the difference of mean entropy, nats: between networks of the two "
        "data sets minus between seeds of one; mean over levels; p by relabelling networks.",
        "0.015 to 0.166 across timesteps",
        _divergence,
    ),
    Question(
        "roles",
        "Attention heads have roles, the same in every training.",
        "Correlation over targets of the selectivity of matched heads, mean over pairs of training seeds of "
        "one data set, minus that of heads shuffled within their layers; mean of the data sets. p is the "
        "largest of: shuffles in either data set, and no network having a role beyond its nulls.",
        "8 distinct mechanisms",
        _roles,
    ),
    Question(
        "bottlenecks",
        "Some components are bottlenecks, whatever replaces them.",
        "Pooled Deg% of the surest component minus the mean of the others of its part, the smaller of the "
        "kinds of ablation, in percentage points; p by Holm over all components.",
        "degradation of 25.6 % to 128.3 %",
        _bottlenecks,
    ),
    Question(
        "phases",
        "Denoising has four distinct phases.",
        "Held-out log-likelihood per cell of four phases minus the best of any other number from 1 to 8 and "
        "of polynomials with as many coefficients (a smooth drift over noise levels).",
        "4 phases",
        _phases,
    ),
    Question(
        "entropy",
        "Heads with low entropy matter more.",
        "Spearman's correlation over heads of mean H / ln Nk and |pooled Deg%|; mean over networks by "
        "Fisher's z.",
        "specialised mechanisms at entropies of 2.67 to 4.16",
        _entropy,
    ),
)
