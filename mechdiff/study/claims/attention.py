"""Claims about attention heads: entropy divergence of data sets, consistent roles, entropy and importance."""

import functools
from collections.abc import Sequence

import numpy as np
import scipy
import xarray as xr
from jaxtyping import Float

from mechdiff import stats
from mechdiff.analysis import margins, network_divergence
from mechdiff.analysis.entropy_correlation import within_layers
from mechdiff.analysis.network_divergence import NetworkDivergence
from mechdiff.analysis.roles import matching
from mechdiff.core.errors import CheckpointError, NotTestable
from mechdiff.stats import small_samples
from mechdiff.study.claims import across_seeds, apart
from mechdiff.study.claims.verdicts import ALPHA, Finding
from mechdiff.study.network_results import NetworkResults

Heads = Float[np.ndarray, "draws head t"]


def divergence(networks: Sequence[NetworkResults], controls: Sequence[NetworkResults] = ()) -> Finding:
    """Whether attention entropy differs between the data sets: exact p by relabeling networks.

    Args:
      controls: networks of control data; CelebA's divergence from them is reported with the claim, and
        decides nothing.
    """
    result, n, timesteps = _divergence(networks)
    between, within = (np.sqrt((side**2).mean()) for side in (result.between, result.within))
    because = (
        f"root mean square over matched heads and timesteps {between:.3f} nats between data sets, "
        f"{within:.3f} between seeds of one, the root of the difference of squares {result.pooled:.3f}; "
        f"at single timesteps {result.between.min():.3f} to {result.between.max():.3f} and "
        f"{result.within.min():.3f} to {result.within.max():.3f}, the excess above 0 (p < 0.05) at "
        f"{int((result.p_by_t < ALPHA).sum())} of {timesteps}; of layers' means alone, "
        f"where nothing is matched, {_layer_means(networks)}"
    )
    if np.isfinite(result.p_paired):
        because += (
            "; exchanging data sets only within seeds, which share initial parameters: "
            f"p {result.p_paired:.2g}"
        )
    because += _unequal(networks) + _from_controls(networks, controls)
    negligible = bool(result.interval[1] < margins.DIVERGENCE)  # False for NaN
    return Finding(result.pooled, result.interval, result.p, n, because, negligible=negligible, p_alone=True)


def variation(networks: Sequence[NetworkResults]) -> Finding:
    """Whether the difference varies with the timestep: relabeling profiles without their mean."""
    result, n, timesteps = _divergence(networks)
    because = (
        f"the excess of data sets over seeds ranges from {result.excess.min():.3f} to "
        f"{result.excess.max():.3f} nats, the least and the largest of {timesteps} timesteps, without an "
        "interval (below 0: data sets differ less than seeds of one); of profiles less their mean over "
        f"timesteps, which p is of, the excess is {result.varying:.3f} nats{_unequal(networks)}"
    )
    span = float(result.excess.max() - result.excess.min())
    return Finding(span, (np.nan, np.nan), result.p_varies, n, because, p_alone=True)


def _divergence(networks: Sequence[NetworkResults]) -> tuple[NetworkDivergence, int, int]:
    natural, simple = across_seeds.natural_and_simple(networks)
    if min(len(natural), len(simple)) < 2:
        raise NotTestable(across_seeds.too_few(natural, simple, 2))
    timesteps = natural[0].attention.sizes["t"]
    return _compared(tuple(natural), tuple(simple)), min(len(natural), len(simple)), timesteps


@functools.lru_cache(maxsize=1)  # two claims ask for it, one after the other
def _compared(natural: tuple[NetworkResults, ...], simple: tuple[NetworkResults, ...]) -> NetworkDivergence:
    draws = np.array([_profiles(network) for network in (*natural, *simple)])
    count = len(natural)
    heads = [str(name) for name in natural[0].attention["head"].values]
    units = min(stats.units_of(network.attention).effective for network in (*natural, *simple))
    estimates, resampled = draws[:, 0], np.moveaxis(draws[:, 1:], 1, 0)
    starts = [[network.seed for network in side] for side in (natural, simple)]
    paired = starts[0] == starts[1]
    return network_divergence.compare(
        estimates[:count], estimates[count:], matching.layers_of(heads), resampled, units, paired
    )


def _unequal(networks: Sequence[NetworkResults]) -> str:
    """That data sets have unequally many networks, in words; else empty. Relabeling is exact where trainings
    of both scatter alike; where they don't, it errs most if the fewer scatter more (`validation.attacks`)."""
    natural, simple = across_seeds.natural_and_simple(networks)
    if len(natural) == len(simple):
        return ""
    return (
        f"; {len(natural)} networks of CelebA and {len(simple)} of synthetic faces: if the fewer scatter "
        "more, p is too small (of 12 and 2 that scatter twice as much, below 0.05 in 0.24 of simulations "
        "without a difference, of 12 and 4 in 0.16), so train equally many"
    )


def _from_controls(networks: Sequence[NetworkResults], controls: Sequence[NetworkResults]) -> str:
    """Divergence of CelebA's networks from those of each control data set, in words: a difference that is as
    large between other data sets is not a property of natural images or of faces."""
    natural, _ = across_seeds.natural_and_simple(networks)
    clauses = []
    for data in across_seeds.CONTROLS:
        side = [network for network in across_seeds.final_snapshots(controls) if network.data == data]
        if len(side) < small_samples.MIN_SEEDS or not across_seeds.comparable([*natural, *side]):
            continue
        heads = [str(name) for name in natural[0].attention["head"].values]
        entropies = (np.array([_mean_entropy(network) for network in group]) for group in (natural, side))
        result = network_divergence.compare(*entropies, matching.layers_of(heads))
        clauses.append(f"from {len(side)} networks of {data} images {result.pooled:.3f} (p {result.p:.2g})")
    return f"; beside the claim, CelebA's differ {' and '.join(clauses)}" if clauses else ""


def _mean_entropy(network: NetworkResults) -> Float[np.ndarray, "head t"]:
    """Mean entropy of each head at each timestep, nats."""
    return _entropies(network).mean(axis=-1)


def _entropies(network: NetworkResults) -> Float[np.ndarray, "head t image"]:
    """Entropy of each head on each image, nats.

    Raises:
      CheckpointError: some are missing or not finite.
    """
    entropy = network.attention["entropy"].transpose("head", "t", "image").values.astype(np.float64)
    if bad := int((~np.isfinite(entropy)).sum()):
        raise CheckpointError(
            f"attention of {network.name!r}: {bad} entropies are missing or not finite; examine it again"
        )
    return entropy


def _layer_means(networks: Sequence[NetworkResults]) -> str:
    """Divergence of the mean entropy of layers, in words. Matched heads may differ because trainings of one
    data set scatter more; means of layers, without any matching, do not."""
    sides = across_seeds.natural_and_simple(networks)
    layers = matching.layers_of(str(name) for name in sides[0][0].attention["head"].values)
    names = list(dict.fromkeys(layers))
    member = np.array([[layer == name for layer in layers] for name in names], np.float64)
    member /= member.sum(axis=1, keepdims=True)

    def means(side: Sequence[NetworkResults]) -> Float[np.ndarray, "network layer t"]:
        return np.array([member @ _mean_entropy(network) for network in side])

    result = network_divergence.compare(*map(means, sides), names)
    return f"{result.pooled:.3f} (p {result.p:.2g})"


def _profiles(network: NetworkResults) -> Heads:
    """Mean entropy of each head at each timestep, on all images and in resamples."""
    weights = across_seeds.weightings(network.attention)
    return np.moveaxis(stats.weighted_mean(_entropies(network), weights), -1, 0)


def roles(networks: Sequence[NetworkResults]) -> Finding:
    """Whether heads have roles, the same in every training: the largest of exact p values by shuffling heads
    within layers, and a binomial p of no more heads with a role than untrained heads would give.

    Raises:
      NotTestable: roles were examined in fewer than 2 networks of a data set.
    """
    natural, simple = across_seeds.natural_and_simple(
        [network for network in networks if network.roles is not None]
    )
    if min(len(natural), len(simple)) < 2:
        missing = across_seeds.too_few(natural, simple, 2)
        raise NotTestable(f"roles of heads (--set=study.role_sets=1000): {missing}")
    results = [_agreement(side) for side in (natural, simple)]

    def excess(*sides: Sequence[NetworkResults], repeats: int = 200) -> float:
        both = [_agreement(side, repeats) for side in sides]
        return float(np.mean([result.profiles - result.chance_profiles for result in both]))

    estimate = float(np.mean([result.profiles - result.chance_profiles for result in results]))
    named = [[_named(network) for network in side] for side in (natural, simple)]
    having, total = np.count_nonzero(named[0] + named[1]), len(named[0] + named[1])
    p = max(*(result.p_profiles for result in results), float(scipy.stats.binom.sf(having - 1, total, ALPHA)))
    heads = _roles(natural[0]).sizes["component"]
    clauses = []
    for name, result, counts in zip(("CelebA", "synthetic faces"), results, named, strict=True):
        text = (
            f"{name}: selectivity of matched heads correlates {result.profiles:.2f} between seeds, "
            f"{result.chance_profiles:.2f} by chance; {np.mean(counts):.1f} of {heads} heads have a role"
        )
        if any(counts):
            text += f", matches share it in {result.labels:.0%}, by chance {result.chance_labels:.0%}"
        clauses.append(text)
    interval = small_samples.jackknife_interval(excess, natural, simple, estimate)
    least, negligible = min(len(natural), len(simple)), bool(interval[1] < margins.ROLES)
    images = _roles(natural[0]).sizes.get("image")
    return Finding(
        estimate, interval, p, least, "; ".join(clauses),
        negligible=negligible, p_alone=True, images=images, people=None if images is None else 0,
    )  # fmt: skip


def _roles(network: NetworkResults) -> xr.Dataset:
    if network.roles is None:
        raise NotTestable(f"{network.name} holds no roles of heads (--set=study.role_sets=1000)")
    return network.roles


def _named(network: NetworkResults) -> int:
    """Number of heads with a role."""
    return int((_roles(network)["role"] != matching.UNASSIGNED).sum())


def _agreement(side: Sequence[NetworkResults], repeats: int = 2000) -> matching.Agreement:
    patterned = {str(name) for name in side[0].attention["head"].values}  # heads over one key have none
    results = [_roles(network) for network in side]
    heads = [str(name) for name in results[0]["component"].values if str(name) in patterned]
    roles = [result.sel(component=heads) for result in results]
    return matching.agreement(
        [matching.attention_profiles(network.attention.sel(head=heads)) for network in side],
        [of_heads["selectivity"].transpose("component", "target").values for of_heads in roles],
        [[str(role) for role in of_heads["role"].values] for of_heads in roles],
        matching.layers_of(heads),
        repeats,
    )


def entropy(networks: Sequence[NetworkResults]) -> Finding:
    """Whether heads of low entropy have larger effects: within layers, minus untrained networks.

    Raises:
      NotTestable: too few heads, no untrained networks, or heads that do not differ.
    """
    if not networks or networks[0].attention.sizes["head"] < 4:
        raise NotTestable("needs networks with at least 4 attention heads")
    if any(network.control is None or network.control_attention is None for network in networks):
        raise NotTestable("needs an untrained network beside each (--set=study.controls=true)")
    trained = np.array([rank_link(network.sweep, network.attention) for network in networks])
    fresh = np.array([rank_link(network.control, network.control_attention) for network in networks])
    if not np.isfinite([trained[:, 0], fresh[:, 0]]).all():
        raise NotTestable("within no layer do heads differ in both entropy and relative loss increase")
    rho, untrained = trained[:, 0], fresh[:, 0]
    units = min(network.units.effective for network in networks)
    added = trained - fresh
    estimate, interval, p = small_samples.over_seeds(added[:, 0], added[:, 1:], units, above=False)
    because = (
        "over the heads of a layer, ranks of H / ln Nk and pooled |ΔL/L| correlate "
        f"{rho.mean():.2f} in trained networks ({rho.min():.2f} to {rho.max():.2f}), "
        f"{untrained.mean():.2f} in untrained ones of the same seeds; lower by training in "
        f"{int((added[:, 0] < 0).sum())} of {len(rho)}"
    )
    for summary in (apart.by_data, apart.by_start):
        text = summary(networks, added[:, 0], digits=2)
        because += f"; {text}" if text else ""
    because += _other_ablations(networks)
    return Finding(estimate, interval, p, len(rho), because, above=False)


def _other_ablations(networks: Sequence[NetworkResults]) -> str:
    """The claim's estimate under the ablations that don't decide it, in words, and in either data set."""
    lead = across_seeds.lead_ablation(networks[0].sweep)
    units = min(network.units.effective for network in networks)
    clauses = []
    for ablation in map(str, networks[0].sweep["ablation"].values):
        if ablation == lead or not all(_swept(network, ablation) for network in networks):
            continue
        added = np.array([_added(network, ablation) for network in networks])
        mean, (low, high), p = small_samples.over_seeds(added[:, 0], added[:, 1:], units, above=False)
        ends = f" [{low:.2f}, {high:.2f}], p {p:.2g}" if np.isfinite(p) else ""
        by_data = apart.by_data(networks, added[:, 0], digits=2)
        sides = f" ({by_data})" if by_data else ""
        clauses.append(f"by {ablation} instead of {lead} ablation {mean:.2f}{ends}{sides}")
    return f"; {'; '.join(clauses)}" if clauses else ""


def _swept(network: NetworkResults, ablation: str) -> bool:
    """Whether the network and its untrained control were swept under an ablation."""
    sweeps = [sweep for sweep in (network.sweep, network.control) if sweep is not None]
    return all(ablation in sweep["ablation"].values for sweep in sweeps)


def _added(network: NetworkResults, ablation: str) -> Float[np.ndarray, " draws"]:
    """The rank correlation of a trained network minus that of its untrained control."""
    if network.control is None or network.control_attention is None:
        raise NotTestable(f"{network.name} has no untrained network beside it (--set=study.controls=true)")
    trained = rank_link(network.sweep, network.attention, ablation)
    return trained - rank_link(network.control, network.control_attention, ablation)


def rank_link(
    sweep: xr.Dataset, attention: xr.Dataset, ablation: str | None = None
) -> Float[np.ndarray, " draws"]:
    """Rank correlation within layers of mean normalized entropy and pooled |ΔL/L|, images weighted evenly,
    then in each resample of them; NaN where no layer varies in both. `ablation`: that of
    `across_seeds.lead_ablation` if not given."""
    heads = [str(name) for name in attention["head"].values]
    values = attention["normalized_entropy"].transpose("head", "t", "image").values.astype(np.float64)
    entropies = stats.weighted_mean(values, across_seeds.weightings(attention)).mean(axis=1)
    rows = sweep.sel(component=heads)
    ablation = ablation or across_seeds.lead_ablation(sweep)
    increase = across_seeds.increase_draws(rows, ablation, across_seeds.weightings(sweep))
    return within_layers(entropies, np.abs(increase), np.array(matching.layers_of(heads)))
