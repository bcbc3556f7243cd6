"""Whether the function of a head follows the entropy of its attention, by intervention; the test is ours.

arXiv 2506.17237 names heads by their entropy. The softmax temperature of one head changes its entropy, all
else being equal (`temperature_effects_on_roles`). Its role effect is that of ablating it at this temperature:
E_f between the predictions with and without it. If function follows entropy, selectivity changes with entropy
within a head as it does between heads (`within_head_slope`); the latter alone is `entropy_correlation`.
Temperatures come with gates that hold the norm of a head's output (`sweeps.temperature.temperature_effects`),
of which the mean over images is used here. Entropies are normalized, H / ln Nk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from scipy import special

from mechdiff import stats
from mechdiff.analysis.roles import feature_variances, image_features, selectivity, target_groups
from mechdiff.analysis.roles.role_effects import MIN_VARIANCE, mean_images
from mechdiff.core.types import Images, PRNGKey, PyTree
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.interventions.build import temperatures as temperatures_of
from mechdiff.interventions.build import tempered_site
from mechdiff.interventions.components import select
from mechdiff.interventions.record import Intervention
from mechdiff.models.denoiser import Examinable
from mechdiff.stats import Interval
from mechdiff.storage import digests, pieces
from mechdiff.sweeps.execution.engine import Engine
from mechdiff.sweeps.execution.passes import PassOutputs
from mechdiff.sweeps.execution.provenance import provenance, result_key, store

MIN_ENTROPY_RANGE = 0.02  # of normalized entropy, for a slope
MIN_HEADS = 3  # with a slope, for their mean


@dataclass(frozen=True)
class EntropySlopes:
    """Slopes of selectivity on normalized entropy, one per target.

    Attributes:
      targets: names.
      between: over heads at temperature 1, least squares, with Student's interval.
      within: mean over heads of each head's slope over temperatures, with Student's interval over heads.
      p: sign-flip test over heads that `within` is 0, Holm-adjusted over targets.
      follows: p <= .05, the interval of `between` without 0, and both of one sign.
      heads: number of heads with a slope.
    """

    targets: tuple[str, ...]
    between: Interval
    within: Interval
    p: Float[np.ndarray, " target"]
    follows: tuple[bool, ...]
    heads: int


@dataclass(frozen=True)
class TargetsAndLoss:
    """Reduction of a pass: all targets of the predicted image, concatenated by name, and the loss."""

    def __call__(self, outputs: PassOutputs) -> tuple[tuple[Array, Array], Array]:
        def read(eps):
            targets = image_features.features(mean_images(outputs, eps))
            return jnp.concatenate([targets[name] for name in sorted(targets)], axis=-1)

        loss = ((outputs.eps - outputs.noise) ** 2).mean(axis=(-3, -2, -1))
        return (read(outputs.eps), loss), read(outputs.clean)


def temperature_effects_on_roles(
    denoiser: Examinable,
    tempered: xr.Dataset,
    images: Images,
    key: PRNGKey,
    engine: Engine | None = None,
    condition: PyTree = None,
    folder: Path | None = None,
) -> xr.Dataset:
    """Role effects of heads at several temperatures of their own softmax, and at temperature 1.

    Args:
      tempered: of `sweeps.temperature.temperature_effects`: `gate`, dims `temperature, component, t, image`,
        where `component` are heads; with gates of 1 the norm of the output changes with temperature.
      images: in [-1, 1], those of `tempered`; at least 2.
      key: of their noise.
      engine: of the denoiser, to reuse its compiled programs.
      condition: what each image is conditioned on, leaves `(images, ...)`; None: nothing.
      folder: what is measured is kept here too, so that an interrupted run can go on; None: nothing is kept
        on disk.

    Returns:
      Dataset with `effect`, dims `head, temperature, target, t, image`: E_f of ablating the head, against the
      prediction with its temperature. `loss` with the temperature and without ablation, dims `head,
      temperature, t, image`, NaN at temperature 1. Targets that don't vary, such as the color of gray images,
      are left out.
    """
    chosen = select(denoiser.identity, [str(name) for name in tempered["component"].values])
    values, timesteps = [float(value) for value in tempered["temperature"].values], tempered["t"].values
    gates = tempered["gate"].mean("image").transpose("t", "component", "temperature").values
    eval_set = EvalSet(np.asarray(images, np.float32), timesteps, key, condition)
    variances = feature_variances(eval_set.images)
    varies = [place for place, (value, _) in enumerate(variances.values()) if value > MIN_VARIANCE]
    engine = engine or Engine(denoiser)
    stacks = [_rows(denoiser.identity, chosen, values, of_heads) for of_heads in gates]
    sizes = {"head": len(chosen), "tempered": len(values), "temperature": 1 + len(values)}
    sizes |= {"target": len(variances), "t": len(timesteps), "image": eval_set.count}

    def compute(piece: pieces.Piece) -> dict[str, np.ndarray]:
        t_index = piece["t"].start
        (read, losses), clean = engine.reduce(stacks[t_index], eval_set.batch(t_index), TargetsAndLoss())
        rows = len(chosen), 1 + len(values)
        effect = _effects_of_ablation(read.reshape(*rows, *read.shape[1:]), clean, variances)
        return {"effect": effect[:, :, :, None], "loss": losses.reshape(*rows, 1, -1)[:, 1:]}

    path = None
    if folder is not None:
        path = store(folder, result_key(denoiser, eval_set, tempered_roles=digests.digest_arrays(stacks)))
    empty = pieces.unfilled(
        {
            "effect": ("head", "temperature", "target", "t", "image"),
            "loss": ("head", "tempered", "t", "image"),
        },
        sizes,
    )
    title = f"effects of heads of {denoiser.name}, tempered"
    measured = pieces.filled(empty, pieces.singles(t=len(timesteps)), compute, path, title)
    effect = measured["effect"]
    loss = np.pad(measured["loss"], [(0, 0), (1, 0), (0, 0), (0, 0)], constant_values=np.nan)
    order = np.argsort([1.0, *values])
    coords = {
        "head": list(chosen),
        "temperature": np.array([1.0, *values])[order],
        "target": [list(variances)[place] for place in varies],
        "t": timesteps,
        "image": np.arange(eval_set.count),
    }
    dims, five_dims = ("head", "temperature", "t", "image"), ("head", "temperature", "target", "t", "image")
    variables = {"effect": (five_dims, effect[:, order][:, :, varies]), "loss": (dims, loss[:, order])}
    return xr.Dataset(variables, coords, provenance(denoiser))


def _effects_of_ablation(
    read: Float[np.ndarray, "head row image numbers"],
    clean: Float[np.ndarray, "image numbers"],
    variances: Mapping[str, tuple[float, int]],
) -> Float[np.ndarray, "head row target image"]:
    """E_f of ablating each head, without a temperature (first) and with each of them.

    Args:
      read: all targets of the prediction, by name: with the head ablated (first row), at each temperature.
      clean: the same without intervention.
      variances: of `feature_variances`.
    """
    read = read.astype(np.float64)
    without = read[:, 0].copy()
    read[:, 0] = clean
    variance = np.array([value if value > MIN_VARIANCE else np.nan for value, _ in variances.values()])
    ends = np.cumsum([count for _, count in variances.values()])[:-1]
    squares = np.split((read - without[:, None]) ** 2, ends, axis=-1)
    return np.stack([square.sum(-1) for square in squares], axis=2) / variance[:, None]


def within_head_slope(
    effect: xr.Dataset, entropy: Float[np.ndarray, "head temperature"], confidence: float = 0.95
) -> EntropySlopes | None:
    """Slopes of selectivity on entropy, between heads, and within heads over temperatures.

    A head that changes no target at some temperature has no selectivity there, and is left out.

    Args:
      effect: of `temperature_effects_on_roles`, at least 3 heads.
      entropy: normalized, of each head at each temperature of `effect`: `normalized` of the two datasets.

    Returns:
      The slopes; None: of fewer than `MIN_HEADS` heads that have a selectivity the entropy ranges over more
      than `MIN_ENTROPY_RANGE`.
    """
    names = [str(name) for name in effect["target"].values]
    mean = effect["effect"].mean(("t", "image")).transpose("head", "temperature", "target").values
    index = selectivity(mean.astype(np.float64), target_groups(names))
    finite = np.isfinite(index).all(axis=(1, 2))
    index, entropy = index[finite], entropy[finite]
    moved = np.ptp(entropy, axis=1) > MIN_ENTROPY_RANGE
    if moved.sum() < MIN_HEADS:
        return None
    within = np.stack(
        [_slope(x, y) for x, y in zip(entropy[moved], index[moved], strict=True)], axis=1
    )  # target, head
    unchanged = list(effect["temperature"].values).index(1.0)
    between = _regression(entropy[:, unchanged], index[:, unchanged], confidence)
    mean_within = stats.student_mean(within, confidence)
    p = stats.holm(stats.permutation_test(within))
    sure = (between.low > 0) | (between.high < 0)
    same = np.sign(between.estimate) == np.sign(mean_within.estimate)
    return EntropySlopes(
        targets=tuple(names),
        between=between,
        within=mean_within,
        p=p,
        follows=tuple(bool(yes) for yes in (p <= 1 - confidence + 1e-12) & sure & same),
        heads=int(moved.sum()),
    )


def _rows(identity: Intervention, chosen, temperatures, gates) -> Intervention:
    """For each head, one row that ablates it, and one per temperature, with the gate that holds the norm."""
    width = 1 + len(temperatures)

    def tiled(leaf):
        return np.tile(np.asarray(leaf, np.float32), (len(chosen) * width, 1))

    gate = {site: tiled(leaf) for site, leaf in identity.gate.items()}
    temperature = {site: tiled(leaf) for site, leaf in temperatures_of(identity).items()}
    for i, (site, (start, stop)) in enumerate(chosen.values()):
        gate[site][i * width, start:stop] = 0
        for j, value in enumerate(temperatures):
            gate[site][i * width + 1 + j, start:stop] = gates[i, j]
            temperature[tempered_site(site, temperature)][i * width + 1 + j, start:stop] = value
    return replace(identity, gate=gate, temperature=temperature)


def normalized(tempered: xr.Dataset, attention: xr.Dataset) -> Float[np.ndarray, "head temperature"]:
    """Entropy / ln Nk of each head, mean over timesteps and images, at temperature 1 and those of `tempered`.

    Args:
      tempered: of `sweeps.temperature.temperature_effects`.
      attention: of `activations.attention_stats` of the network at the same timesteps: temperature 1.
    """
    heads = attention.sel(head=tempered["component"].values)
    moved = tempered["entropy"].mean(("t", "image")).transpose("component", "temperature").values
    moved = moved / np.log(heads["tokens"].values)[:, None]
    plain = heads["normalized_entropy"].mean(("t", "image")).values[:, None]
    order = np.argsort([1.0, *tempered["temperature"].values])
    return np.concatenate([plain, moved], axis=1).astype(np.float64)[:, order]


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
