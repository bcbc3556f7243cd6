"""Agreement of roles between training seeds, heads being matched between networks.

Heads of one layer have no order: head 2 of one seed may do what head 0 of another does. They are matched
within their layer by least total distance of their profiles (Hungarian method, Kuhn 1955). The matching uses
attention statistics over timesteps; roles are compared by effects, which are different data. So chance
agreement is measured by shuffling effects among the heads of each layer, independently per network. Random
matchings for every pair of networks would be the wrong null: matchings by distance are consistent (a to b and
b to c imply a to c), random ones are not, and agree by chance to a different degree. Definitions are ours.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from mechdiff.analysis.roles.assignment import UNASSIGNED
from mechdiff.core.errors import ConfigError
from mechdiff.interventions.components import site_stage

Profile = Float[np.ndarray, "head numbers"]
STATISTICS = ("normalized_entropy", "mutual_information", "distance", "identity_mass")


@dataclass(frozen=True)
class Agreement:
    """Agreement of roles of heads between training seeds, over all pairs of seeds.

    Attributes:
      profiles: mean correlation of matched heads' selectivity over targets.
      labels: share of matched heads with equal roles, where at least one has a role; NaN if none has.
      chance_profiles, chance_labels: mean with roles of each network's heads shuffled within layers.
      p_profiles, p_labels: share of shuffles, the true order among them, that agree at least as well.
      pairs: number of pairs of seeds.
    """

    profiles: float
    labels: float
    chance_profiles: float
    chance_labels: float
    p_profiles: float
    p_labels: float
    pairs: int


def layers_of(heads: Iterable[str]) -> list[str]:
    """The layer of each head, such as `down1.attn0`."""
    return [site_stage(str(head)) for head in heads]


def attention_profiles(attention: xr.Dataset) -> Profile:
    """Each head's attention statistics, means over images, `(head, statistics x timesteps)`."""
    statistics = [attention[name].mean("image").transpose("head", "t").values for name in STATISTICS]
    return np.concatenate(statistics, axis=1).astype(np.float64)


def match(first: Profile, second: Profile, layers: Sequence[str]) -> Int[np.ndarray, " head"]:
    """For each head of the first network its counterpart in the second, within the same layer.

    Distances are squared, over profiles brought to variance 1 over all heads of both networks.
    """
    both = np.concatenate([first, second])
    spread = np.where(both.std(axis=0) > 0, both.std(axis=0), 1)
    first, second, layers = first / spread, second / spread, np.asarray(layers)
    counterpart = np.empty(len(first), int)
    for layer in dict.fromkeys(layers):
        heads = np.flatnonzero(layers == layer)
        distance = ((first[heads, None] - second[None, heads]) ** 2).sum(-1)
        rows, columns = linear_sum_assignment(distance)
        counterpart[heads[rows]] = heads[columns]
    return counterpart


def agreement(
    profiles: Sequence[Profile],
    selectivity: Sequence[Float[np.ndarray, "head target"]],
    roles: Sequence[Sequence[str]],
    layers: Sequence[str],
    repeats: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Agreement of roles between networks, with heads matched by `profiles`. All arguments have one entry per
    training seed.

    Args:
      profiles: what heads are matched by (`attention_profiles`), not made of roles.
      selectivity, roles: of `roles.Roles`, for the same heads in the same order.
      layers: of the heads (`layers_of`), the same in all networks.
      repeats: shuffles.

    Raises:
      ConfigError: fewer than 2 networks.
    """
    if len(profiles) < 2:
        raise ConfigError(
            f"{len(profiles)} network(s): at least 2 seeds are needed to see whether roles agree"
        )
    pairs = list(itertools.combinations(range(len(profiles)), 2))
    alike = [_correlations(selectivity[i], selectivity[j]) for i, j in pairs]
    same = [_labels(roles[i], roles[j]) for i, j in pairs]
    matches = [match(profiles[i], profiles[j], layers) for i, j in pairs]
    names = _relabelled(np.random.default_rng(seed), np.asarray(layers), (repeats, len(profiles)))
    rows = np.stack([names[:, i] for i, _ in pairs], axis=1)  # repeat, pair, head
    columns = np.stack(
        [names[:, j][:, chosen] for (_, j), chosen in zip(pairs, matches, strict=True)], axis=1
    )
    correlations, labels = (_means(np.array(table), rows, columns) for table in (alike, same))
    return Agreement(
        profiles=float(correlations[0]),
        labels=float(labels[0]),
        chance_profiles=float(correlations[1:].mean()),
        chance_labels=float(labels[1:].mean()),
        p_profiles=float((correlations >= correlations[0] - 1e-12).mean()),
        p_labels=float((labels >= labels[0] - 1e-12).mean()) if np.isfinite(labels[0]) else float("nan"),
        pairs=len(pairs),
    )


def _correlations(first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, "head head"]:
    """Pearson's correlation over targets of every head of one with each of the other; 0 without spread."""

    def unit(rows):
        finite = np.isfinite(rows)
        mean = np.where(finite, rows, 0).sum(axis=1, keepdims=True) / np.maximum(
            finite.sum(axis=1, keepdims=True), 1
        )
        rows = np.where(finite, rows - mean, 0)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norm > 0, norm, 1)

    return unit(first) @ unit(second).T


def _labels(first: Sequence[str], second: Sequence[str]) -> Float[np.ndarray, "head head"]:
    """1 where two heads have equal roles, 0 where they differ, NaN where neither has one."""
    rows, columns = np.asarray(first)[:, None], np.asarray(second)[None, :]
    neither = (rows == UNASSIGNED) & (columns == UNASSIGNED)
    return np.where(neither, np.nan, (rows == columns).astype(np.float64))


def _relabelled(
    rng: np.random.Generator, layers: np.ndarray, shape: tuple[int, int]
) -> Int[np.ndarray, "m network head"]:
    """Heads in order, then permuted at random within layers, in every network independently."""
    repeats, networks = shape
    heads_of = np.tile(np.arange(len(layers)), (repeats + 1, networks, 1))
    for layer in dict.fromkeys(layers):
        heads = np.flatnonzero(layers == layer)
        heads_of[1:, :, heads] = rng.permuted(heads_of[1:, :, heads], axis=-1)
    return heads_of


def _means(
    tables: Float[np.ndarray, "pair head head"], rows: Int[np.ndarray, "m pair head"], columns
) -> Float[np.ndarray, " m"]:
    """Mean over pairs of networks and their matched heads without NaN; NaN if none is left."""
    values = tables[np.arange(len(tables))[:, None], rows, columns].reshape(len(rows), -1)
    finite = np.isfinite(values)
    count = finite.sum(axis=1)
    return np.where(count > 0, np.where(finite, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
