"""Does what a head does follow the entropy of its attention? The central link of arXiv 2506.17237, tested.

The paper names heads by their entropy. Two tests, both ours:
  observed  over the heads of one network, rank correlation of entropy with the size of the effect of leaving
            a head out, or with its selectivity (`observe`); and again within layers, since layers of few keys
            have low entropies, and effects of their own
  caused    the entropy of one head is moved by the temperature of its softmax, all else being left alone
            (`temper`). Its role effect is then that of leaving it out as it is now: E_f between the tempered
            and the ablated prediction. If function follows entropy, selectivity moves with entropy within a
            head as it does between heads (`follow`)
The temperatures come with gates that hold the norm of a head's output, as `tempering.temperature_effects`
finds them; of its gates, one an image, the mean over images is used here. Entropies are normalized, H / ln
Nk.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from scipy import special
from scipy.stats import rankdata

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.analysis.roles import families, feature_variances, image_features, selectivity
from mechdiff.analysis.roles.matching import layers_of
from mechdiff.analysis.roles.role_effects import mean_images
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import Images, PRNGKey
from mechdiff.interventions.components import select
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Denoiser
from mechdiff.stats import Interval
from mechdiff.stats.intervals import Statistic
from mechdiff.sweeps.execution.engine import Engine, PassOutputs

LEAST = 0.02  # normalized entropy by which a head must have been moved to have a slope


@dataclass(frozen=True)
class Observed:
    """Rank correlation of entropy with something else over the heads of one network.

    Attributes:
      overall: Spearman's, with its percentile interval over images; `n` counts images.
      within: the same of ranks within layers, each layer's mean taken away.
      p: of `overall`, two-sided, heads shuffled anywhere; `p_within`: of `within`, shuffled within layers.
      heads: how many.
    """

    overall: Interval
    within: Interval
    p: float
    p_within: float
    heads: int


@dataclass(frozen=True)
class Followed:
    """Slopes of selectivity on normalized entropy, one a target.

    Attributes:
      targets: names.
      between: over heads as they are, least squares, with Student's interval.
      within: mean over heads of each head's own slope over temperatures, with Student's interval over heads.
      p: sign-flip test over heads that `within` is 0, Holm-adjusted over targets.
      follows: p <= .05, the interval of `between` without 0, and both of one sign.
      heads: with a slope of their own.
    """

    targets: tuple[str, ...]
    between: Interval
    within: Interval
    p: Float[np.ndarray, " target"]
    follows: tuple[bool, ...]
    heads: int


def correlation(
    attention: xr.Dataset,
    other: Statistic,
    repeats: int = 1000,
    seed: int = 0,
) -> Observed:
    """Does a quantity follow entropy over heads?

    Args:
      attention: of `activations.attention_stats`.
      other: of the same heads, as a function of weights `[m, image]` of the same images that gives `[head,
        m]`: `effect_size`, `max_selectivity`.
    """
    entropy = (
        attention["normalized_entropy"].transpose("head", "t", "image").values.astype(np.float64).mean(1)
    )
    layers = np.array(layers_of(attention["head"].values))
    weights = stats.bootstrap_weights(entropy.shape[-1], repeats, seed)
    both = lambda w: (entropy @ w.T, other(w))
    x, y = both(np.full((1, entropy.shape[-1]), 1 / entropy.shape[-1]))
    if len(x) != len(y):
        raise ConfigError(
            f"{len(x)} heads have an entropy, {len(y)} the other quantity; compare the same heads"
        )
    overall = stats.bootstrap(lambda w: effects.rank_correlation(*both(w)), weights, method="percentile")
    within = stats.bootstrap(lambda w: within_layers(*both(w), layers), weights, method="percentile")
    rng = np.random.default_rng(seed)
    anywhere = np.stack([rng.permutation(x[:, 0]) for _ in range(repeats)], axis=1)
    inside = np.tile(x, (1, repeats))
    for layer in np.unique(layers):
        inside[layers == layer] = rng.permuted(inside[layers == layer], axis=0)
    p = lambda found, drawn: float((1 + (np.abs(drawn) >= abs(found) - 1e-9).sum()) / (1 + len(drawn)))
    return Observed(
        overall=overall,
        within=within,
        p=p(overall.estimate, effects.rank_correlation(anywhere, np.tile(y, (1, repeats)))),
        p_within=p(within.estimate, within_layers(inside, np.tile(y, (1, repeats)), layers)),
        heads=len(entropy),
    )


def effect_size(clean: effects.CleanLossArray, loss: effects.LossArray) -> Statistic:
    """|pooled Deg%| of leaving each head out, from losses of a sweep of those heads (`effects.losses`)."""
    return lambda weights: np.abs(effects.pooled_relative_increase(clean, loss, weights))


def max_selectivity(effect: xr.Dataset) -> Statistic:
    """Each head's largest selectivity, from its `roles.role_effects`; -1 for a head that changes nothing."""
    values = effect["effect"].mean("t").transpose("component", "target", "image").values.astype(np.float64)
    family = families([str(name) for name in effect["target"].values])

    def measure(weights):
        index = selectivity(np.moveaxis(values @ weights.T, 2, 0), family)
        return np.where(np.isfinite(index), index, -1.0).max(axis=-1).T

    return measure


def within_layers(first: effects.Draws, second: effects.Draws, layers: np.ndarray) -> Float[np.ndarray, " m"]:
    """Correlation of ranks, taken within each layer and centered there; NaN where a side has no spread."""
    x, y = (
        np.concatenate([_ranks(side[layers == one]) for one in np.unique(layers)]) for side in (first, second)
    )
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.where(scale > 0, (x * y).sum(axis=0) / np.where(scale > 0, scale, 1), np.nan)


@dataclass(frozen=True)
class Read:
    """A reduction of the engine: all targets of a predicted picture side by side, by name, and the loss."""

    def __call__(self, seen: PassOutputs) -> tuple[tuple[Array, Array], Array]:
        def read(eps):
            found = image_features.features(mean_images(seen, eps))
            return jnp.concatenate([found[name] for name in sorted(found)], axis=-1)

        return (read(seen.eps), ((seen.eps - seen.noise) ** 2).mean(axis=(-3, -2, -1))), read(seen.clean)


def temperature_effects_on_roles(
    denoiser: Denoiser, tempered: xr.Dataset, images: Images, key: PRNGKey, engine: Engine | None = None
) -> xr.Dataset:
    """Role effects of heads at several temperatures of their own softmax, and at temperature 1.

    Args:
      tempered: of `tempering.temperature_effects`: `gate`, dims `temperature, component, t, image`, where
        `component` are heads; gates of 1 leave the size of the output as temperature makes it.
      images: in [-1, 1], those of `tempered`; at least 2.
      key: of their noise.
      engine: of the subject, to keep its programs.
    Returns:
      Dataset with `effect`, dims `head, temperature, target, t, image`: E_f of leaving the head out, from the
      prediction with its temperature. `loss` with the temperature and without leaving out, dims `head,
      temperature, t, image`, NaN at temperature 1.
    """
    chosen = select(denoiser.identity, [str(name) for name in tempered["component"].values])
    values, timesteps = [float(value) for value in tempered["temperature"].values], tempered["t"].values
    gates = tempered["gate"].mean("image").transpose("t", "component", "temperature").values
    images, index = np.asarray(images, np.float32), np.arange(len(images))
    found = feature_variances(images)
    variance, cuts = np.array([v for v, _ in found.values()]), np.cumsum([n for _, n in found.values()])[:-1]
    engine = engine or Engine(denoiser.unet, denoiser.schedule, denoiser.params)
    count = len(chosen)
    effect = np.empty((count, 1 + len(values), len(variance), len(timesteps), len(images)), np.float32)
    loss = np.full((count, 1 + len(values), len(timesteps), len(images)), np.nan, np.float32)
    for level, t in enumerate(timesteps):
        stacked = _rows(denoiser.identity, chosen, values, gates[level])
        (read, losses), clean = engine.reduce(stacked, images, index, int(t), key, Read())
        read = read.reshape(count, 1 + len(values), *read.shape[1:]).astype(np.float64)
        without, read[:, 0] = read[:, 0].copy(), clean  # the first row of a head leaves it out
        apart = np.split((read - without[:, None]) ** 2, cuts, axis=-1)
        effect[:, :, :, level] = np.stack([part.sum(-1) for part in apart], axis=2) / variance[:, None]
        loss[:, 1:, level] = losses.reshape(count, 1 + len(values), -1)[:, 1:]
    order = np.argsort([1.0, *values])
    dims = ("head", "temperature", "t", "image")
    return xr.Dataset(
        {
            "effect": (("head", "temperature", "target", "t", "image"), effect[:, order]),
            "loss": (dims, loss[:, order]),
        },
        coords={
            "head": list(chosen),
            "temperature": np.array([1.0, *values])[order],
            "target": list(found),
            "t": timesteps,
            "image": index,
        },
        attrs={"denoiser": denoiser.name},
    )


def within_head_slope(
    effect: xr.Dataset, entropy: Float[np.ndarray, "head temperature"], confidence: float = 0.95
) -> Followed:
    """Do roles follow entropy when it is moved? See the module.

    Args:
      effect: of `temper`, at least 3 heads.
      entropy: normalized, of each head at each temperature of `effect`: `normalized` of the two datasets.
    Raises:
      ConfigError: fewer than 3 heads whose entropy was moved.
    """
    names = [str(name) for name in effect["target"].values]
    mean = effect["effect"].mean(("t", "image")).transpose("head", "temperature", "target").values
    index = selectivity(mean.astype(np.float64), families(names))
    moved = np.ptp(entropy, axis=1) > LEAST
    if moved.sum() < 3:
        raise ConfigError(
            f"temperature moved the entropy of {moved.sum()} heads by {LEAST} or more; 3 are needed"
        )
    within = np.stack([_slope(x, y) for x, y in zip(entropy[moved], index[moved])], axis=1)  # target, head
    one = list(effect["temperature"].values).index(1.0)
    between = _regression(entropy[:, one], index[:, one], confidence)
    mean_within = stats.student_mean(within, confidence)
    p = stats.holm(stats.permutation_test(within))
    sure = (between.low > 0) | (between.high < 0)
    same = np.sign(between.estimate) == np.sign(mean_within.estimate)
    return Followed(
        targets=tuple(names),
        between=between,
        within=mean_within,
        p=p,
        follows=tuple(bool(yes) for yes in (p <= 1 - confidence + 1e-12) & sure & same),
        heads=int(moved.sum()),
    )


def _rows(identity: Intervention, chosen, temperatures, gates) -> Intervention:
    """For each head, one row that leaves it out, and one for each temperature, its gate holding the norm."""
    width = 1 + len(temperatures)
    tiled = lambda a: np.tile(np.asarray(a, np.float32), (len(chosen) * width, 1))
    gate = {site: tiled(leaf) for site, leaf in identity.gate.items()}
    warmth = {site: tiled(leaf) for site, leaf in identity.temperature.items()}
    for i, (site, (start, stop)) in enumerate(chosen.values()):
        gate[site][i * width, start:stop] = 0
        for j, value in enumerate(temperatures):
            gate[site][i * width + 1 + j, start:stop] = gates[i, j]
            warmth[site][i * width + 1 + j, start:stop] = value
    return replace(identity, gate=gate, temperature=warmth)


def normalized(tempered: xr.Dataset, attention: xr.Dataset) -> Float[np.ndarray, "head temperature"]:
    """Entropy / ln Nk of each head, means over levels and images, at the temperatures that `temper` gives.

    Args:
      tempered: of `tempering.temperature_effects`.
      attention: of `activations.attention_stats` of the untouched network at the same levels: temperature 1.
    """
    heads = attention.sel(head=tempered["component"].values)
    moved = tempered["entropy"].mean(("t", "image")).transpose("component", "temperature").values
    moved = moved / np.log(heads["tokens"].values)[:, None]
    plain = heads["normalized_entropy"].mean(("t", "image")).values[:, None]
    order = np.argsort([1.0, *tempered["temperature"].values])
    return np.concatenate([plain, moved], axis=1).astype(np.float64)[:, order]


def _ranks(values: effects.Draws) -> effects.Draws:
    ranks = rankdata(values, axis=0)
    return (ranks - ranks.mean(axis=0)) / len(values)


def _slope(x: Float[np.ndarray, " n"], y: Float[np.ndarray, "n target"]) -> Float[np.ndarray, " target"]:
    centered = x - x.mean()
    return centered @ (y - y.mean(axis=0)) / (centered**2).sum()


def _regression(x: Float[np.ndarray, " n"], y: Float[np.ndarray, "n target"], confidence: float) -> Interval:
    """Slope of y on x with Student's interval of least squares; errors of equal variance."""
    slope, centered, n = _slope(x, y), x - x.mean(), len(x)
    rest = y - y.mean(axis=0) - centered[:, None] * slope
    error = np.sqrt((rest**2).sum(axis=0) / max(n - 2, 1) / (centered**2).sum())
    half = error * special.stdtrit(max(n - 2, 1), (1 + confidence) / 2)
    return Interval(estimate=slope, low=slope - half, high=slope + half, confidence=confidence, n=n)
