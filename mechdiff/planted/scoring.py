"""Asks every method which components matter, and compares its answer with what was planted.

A method gives each component a score, `[component, t]`, in % of the clean loss where it predicts a loss;
components are ranked by |mean over t|, where less than `NOTHING` ties with 0. Measures:
  auroc      chance that a component that matters outranks one that does not; ties count half
  precision  share of the k first that matter, k being how many there are
  sign       share of those that matter whose score has the sign planted (methods that predict a loss)
  window     Jaccard index of the levels planted and of those with |score_t| >= a tenth of the largest
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from mechdiff import files, keys, stats
from mechdiff.attribution import gate_scores
from mechdiff.capture import activation_means, attention_stats
from mechdiff.config import SweepConfig
from mechdiff.diffusion import image_noise, q_sample
from mechdiff.gates import CAPTURED
from mechdiff.interventions import Component, kind_of
from mechdiff.pairs import pair_effects, pair_scores
from mechdiff.planted.plants import Plant, make
from mechdiff.sweep import teacher_forced
from mechdiff.unet import components, forward

Scores = dict[str, Float[np.ndarray, "component t"]]
METHODS = (
    *("entropy", "activation variance", "first order at identity", "first order at ablated"),
    *("gauss-newton at identity", "gauss-newton at ablated", "exact zero", "exact mean"),
    *("pairs by curvature", "pairs exact"),
)
WORDLESS = METHODS[:2]  # say nothing about the sign of an effect
MEASURES = ("auroc", "precision", "sign", "window")
NOTHING = 0.01  # % of the clean loss: what float32 rounding can make
IN_WINDOW = 0.1  # of the largest |score| over levels


def score(plant: Plant, folder: Path) -> list[dict]:
    """One record a method: plant, size, instance, method and `MEASURES`, NaN where one does not apply.

    Entropy ranks heads only; the two methods for pairs are asked of plants that hold one.

    Args:
      folder: of the exact sweep, which resumes there.
    """
    key = jax.random.key(plant.instance)
    chosen = components(plant.subject.unet)
    effects, clean = _exact(plant, folder, key, chosen)
    found = {**_observed(plant, key, chosen), **_predicted(plant, key, chosen, clean), **effects}
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    inside = None
    if plant.window:
        inside = (plant.timesteps >= plant.window[0]) & (plant.timesteps < plant.window[1])
    measured = {name: compare(values, signs, inside, name not in WORDLESS) for name, values in found.items()}
    if plant.pair:
        some = [component for component in chosen if component.kind in ("head", "res")]
        measured["pairs exact"] = _pairs_exact(plant, key, some, clean)
        measured["pairs by curvature"] = _pairs_by_curvature(plant, key, some, clean)
    who = {"plant": plant.name, "size": plant.size, "instance": plant.instance}
    return [{**who, "method": name, **measured[name]} for name in METHODS if name in measured]


def scored(name: str, instance: int, size: str, folder: Path) -> list[dict]:
    """`score` of one plant, kept in `folder` in a file named after it and the code: done once."""
    path = files.ensure_writable(folder) / f"{name}-{size}-{instance}-{files.code_digest()[:16]}.json"
    if not path.exists():
        files.write_json(path, score(make(name, instance, size), folder / path.stem))
    records = files.read_json(path)
    return [{key: float("nan") if value is None else value for key, value in one.items()} for one in records]


def compare(
    scores: Float[np.ndarray, "component t"],
    signs: np.ndarray,
    inside: Bool[np.ndarray, " t"] | None = None,
    signed: bool = True,
) -> dict[str, float]:
    """`MEASURES` of one method's scores; components with NaN were not asked.

    Args:
      signs: 0 for components that don't matter.
      inside: levels planted.
      signed: whether scores are in % of the clean loss.
    """
    asked = ~np.isnan(scores).any(axis=1)
    scores, signs = scores[asked].astype(np.float64), signs[asked]
    size, matters = np.abs(scores.mean(axis=1)), signs != 0
    if signed:
        size = np.where(size < NOTHING, 0.0, size)
    k, others = int(matters.sum()), int((~matters).sum())
    if not k or not others:
        return dict.fromkeys(MEASURES, float("nan"))
    area = (rankdata(size)[matters].sum() - k * (k + 1) / 2) / (k * others)
    # Where scores tie at the k-th place, the share that chance would find.
    cut = np.sort(size)[-k]
    above, tied = size > cut, size == cut
    hits = (above & matters).sum() + (k - above.sum()) * (tied & matters).sum() / tied.sum()
    result = {
        "auroc": float(area),
        "precision": float(hits / k),
        "sign": float("nan"),
        "window": float("nan"),
    }
    if signed:
        result["sign"] = float((np.sign(scores.mean(axis=1)) * (size > 0) == signs)[matters].mean())
    if inside is not None:
        course = np.abs(scores[matters])
        active = (course >= IN_WINDOW * course.max(axis=1, keepdims=True)) & (course > 0)
        result["window"] = float(((active & inside).sum(1) / (active | inside).sum(1)).mean())
    return result


def _exact(plant: Plant, folder: Path, key, chosen: Sequence[Component]) -> tuple[Scores, np.ndarray]:
    """Deg%_t under zero and mean ablation, and the clean loss of each level."""
    subject = plant.subject
    network = subject.unet, subject.params, subject.identity, subject.schedule
    mean = activation_means(*network, plant.others, plant.timesteps, keys.stream(key, "mean fills"))
    config = SweepConfig(kinds=("zero", "mean"), image_block=len(plant.images))
    found = teacher_forced(
        subject,
        plant.images,
        plant.timesteps,
        key,
        folder,
        config=config,
        fills={"mean": mean},
        chosen=chosen,
    ).mean("image")
    clean = found["clean_loss"].values.astype(np.float64)
    rise = 100 * (found["loss"].transpose("kind", "component", "t").values / clean - 1)
    return {f"exact {kind}": rise[i] for i, kind in enumerate(config.kinds)}, clean


def _predicted(plant: Plant, key, chosen: Sequence[Component], clean: np.ndarray) -> Scores:
    """Deg%_t by gradients in the gates, at both points."""
    found = {}
    for at in ("identity", "ablated"):
        scores = gate_scores(
            plant.subject, plant.images, plant.timesteps, key, chosen=chosen, at=at, block=len(plant.images)
        ).mean("image")
        percent = lambda name: 100 * scores[name].values.astype(np.float64) / clean  # noqa: B023, E731
        found[f"first order at {at}"] = percent("first")
        found[f"gauss-newton at {at}"] = percent("score")
    return found


def _observed(plant: Plant, key, chosen: Sequence[Component]) -> Scores:
    """What can be seen without an intervention: sharpness of heads, variance of activations over images."""
    subject = plant.subject
    network = subject.unet, subject.params, subject.identity, subject.schedule
    heads = attention_stats(*network, plant.images, plant.timesteps, key, block=len(plant.images))
    entropy = heads["normalised_entropy"].mean("image").reindex(head=[component.name for component in chosen])
    index = np.arange(len(plant.images))
    levels = [jax.device_get(_variances(*network, plant.images, int(t), key, index)) for t in plant.timesteps]
    variance = [[level[c.site][slice(*c.index)].mean() for level in levels] for c in chosen]
    return {"entropy": 1 - entropy.values, "activation variance": np.array(variance)}


@functools.partial(jax.jit, static_argnames="unet")
def _variances(unet, params, identity, schedule, x0, t, key, indices):
    """Variance over images of each unit's activation, averaged over positions: site -> `(units,)`."""
    at = jnp.full(len(x0), t)
    x_t = q_sample(schedule, x0, at, image_noise(key, indices, x0.shape[1:]))
    sites = forward(unet, params, identity, x_t, at, capture=(CAPTURED,))[1][CAPTURED]
    units_last = lambda site, a: jnp.moveaxis(a, -2, -1) if kind_of(site) == "head" else a  # noqa: E731
    spread = {site: units_last(site, a.var(axis=0)) for site, a in sites.items()}
    return {site: a.reshape(-1, a.shape[-1]).mean(0) for site, a in spread.items()}


def _pairs_exact(plant: Plant, key, some: Sequence[Component], clean: np.ndarray) -> dict[str, float]:
    """Measures of the synergy of all pairs of `some` components."""
    pairs = list(itertools.combinations(some, 2))
    found = pair_effects(plant.subject, plant.images, plant.timesteps, key, pairs)
    synergy = found.synergy.mean("image").values
    return compare(100 * synergy / clean, _planted_pair(plant, some))


def _pairs_by_curvature(plant: Plant, key, some: Sequence[Component], clean: np.ndarray) -> dict[str, float]:
    """The same with the synergy that the curvature at identity predicts."""
    matrix = pair_scores(plant.subject, plant.images, plant.timesteps, key, some).curvature.values
    left, right = np.triu_indices(len(some), 1)
    return compare(100 * matrix[:, left, right].T / clean, _planted_pair(plant, some))


def _planted_pair(plant: Plant, some: Sequence[Component]) -> np.ndarray:
    """Planted sign of the synergy of each pair, 0 for all but one."""
    first, second, sign = plant.pair
    pairs = itertools.combinations([component.name for component in some], 2)
    return np.array([sign * ({*pair} == {first, second}) for pair in pairs])


def summarise(records: Iterable[dict], repeats: int = 2000) -> list[dict]:
    """Means by plant and method, with 95 % bootstrap intervals over instances and sizes.

    Returns:
      rows with `plant`, `method`, `n` and measure -> [mean, low, high], NaN where it applies to no instance.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        groups.setdefault((record["plant"], record["method"]), []).append(record)
    return [
        {"plant": plant, "method": method, "n": len(found)}
        | {measure: _mean([record[measure] for record in found], repeats) for measure in MEASURES}
        for (plant, method), found in groups.items()
    ]


def _mean(values: list[float], repeats: int) -> list[float]:
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return [float("nan")] * 3
    if len(values) == 1:
        return [values[0], float("nan"), float("nan")]
    found = stats.bootstrap_mean(np.array(values), repeats=repeats, method="percentile")
    return [float(end) for end in (found.estimate, found.low, found.high)]


def table(rows: Sequence[dict]) -> str:
    """Rows of `summarise` as text; a measure that does not apply is a dash."""
    lines = [f"{'plant':12}{'method':26}{'n':>3}" + "".join(f"{measure:>21}" for measure in MEASURES)]
    for row in rows:
        cells = "".join(f"{_cell(*row[measure]):>21}" for measure in MEASURES)
        lines.append(f"{row['plant']:12}{row['method']:26}{row['n']:3}{cells}")
    return "\n".join(lines)


def _cell(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.2f}" if np.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
