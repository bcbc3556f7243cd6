"""Scores of components by every method, compared with the planted truth (`metrics`)."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from mechdiff import stats
from mechdiff.analysis import effects
from mechdiff.circuits.attribution import Expansion, gate_scores
from mechdiff.circuits.backups import candidates, costs_alone_or_paired
from mechdiff.circuits.discovery import backup_components, discover
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.circuits.integrated_gradients import integrated_gradients
from mechdiff.circuits.interactions import pair_effects, pair_scores
from mechdiff.core import keys
from mechdiff.core.config import SweepConfig
from mechdiff.core.errors import ConfigError, unknown
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import Images, PRNGKey
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.interventions.components import Component, site_type
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.storage import files, locks
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.activations import activation_means, attention_stats
from mechdiff.sweeps.optimal_ablation import optimal_replacements
from mechdiff.sweeps.replacements import resample_replacements
from mechdiff.validation.planted import saved_scores
from mechdiff.validation.planted.metrics import NOTHING, compare
from mechdiff.validation.planted.networks import PlantedNetwork, make

Scores = dict[str, Float[np.ndarray, "component t"]]  # one t: of all timesteps
OBSERVED = ("entropy", "activation variance")  # not in % of the loss
PREDICTED = (
    *("first order at identity", "first order at ablated"),
    *("gauss-newton at identity", "gauss-newton at ablated", "integrated gradients"),
)
EXACT = ("exact zero", "exact mean", "exact resample", "exact optimal")
DISCOVERED = ("discovery on average", "discovery at every timestep", "discovery with backups")
PAIRS = ("pairs by curvature", "pairs exact")
OVER_IMAGES, OVER_TIMESTEPS = "exact zero over images", "exact zero over timesteps"  # root mean squares
IN_COMPANY = "pairs of candidates"
METHODS = (*OBSERVED, *PREDICTED, *EXACT, *DISCOVERED, *PAIRS, OVER_IMAGES, OVER_TIMESTEPS, IN_COMPANY)
UNSIGNED = (*OBSERVED, OVER_IMAGES, OVER_TIMESTEPS)  # predict no sign of an effect
CANDIDATES = 8  # as in a study
# Limits of the most expensive methods, so that the table takes less than half an hour on one core:
OPTIMAL_SIZES, OPTIMAL_STEPS = ("small",), 8
BACKUPS = 4  # members of a circuit whose backup components are searched


def score(plant: PlantedNetwork, folder: Path, methods: Collection[str] = METHODS) -> list[dict]:
    """One record per method: plant, size, instance, method and `MEASURES`, NaN where one does not apply.

    Entropy ranks heads only; pairs are scored for networks with planted pairs, optimal ablation for
    `OPTIMAL_SIZES`.

    Args:
      folder: of the exact sweep, which resumes there.
      methods: of `METHODS`; what no other takes is not computed.
    """
    key = jax.random.key(plant.instance)
    chosen = components(plant.denoiser.unet)
    scores, clean = _exact(plant, folder, key, chosen, methods)
    groups = {
        OBSERVED: lambda: _observed(plant, key, chosen),
        PREDICTED: lambda: _predicted(plant, key, chosen, clean),
        DISCOVERED: lambda: discovered(plant, key, chosen, folder / "circuits"),
        (IN_COMPANY,): lambda: {IN_COMPANY: _alone_or_paired(plant, key, chosen, scores["exact zero"])},
    }
    for group, compute in groups.items():
        if not {*group}.isdisjoint(methods):
            scores |= compute()
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    inside = None
    if plant.window:
        inside = (plant.timesteps >= plant.window[0]) & (plant.timesteps < plant.window[1])
    measured = {
        name: compare(
            values,
            signs,
            inside if values.shape[1] == len(plant.timesteps) else None,
            name not in UNSIGNED,
            0.0 if name in OBSERVED else NOTHING,
        )
        for name, values in scores.items()
    }
    if plant.pairs and not {*PAIRS}.isdisjoint(methods):
        paired = [component for component in chosen if component.component_type in ("head", "res")]
        measured["pairs exact"] = _pairs_exact(plant, key, paired, clean)
        measured["pairs by curvature"] = _pairs_by_curvature(plant, key, paired, clean)
    labels = {"plant": plant.name, "size": plant.size, "instance": plant.instance}
    return [
        {**labels, "method": name, **measured[name]}
        for name in METHODS
        if name in measured and name in methods
    ]


def scored(
    name: str, instance: int, size: str, folder: Path, methods: Collection[str] = METHODS
) -> list[dict]:
    """`score` of one planted network; the methods already scored are cached in `folder` under its name and
    `NUMERICS_VERSION`.

    Raises:
      ConfigError: an unknown plant, size or method.
      DataError: what is cached is damaged.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(unknown("method", method, METHODS))
    path = files.ensure_writable(folder) / f"{name}-{size}-{instance}-numerics{NUMERICS_VERSION}.json"
    saved = saved_scores.read(path, METHODS)
    left = [method for method in methods if method not in saved["methods"]]
    if left:
        records = score(make(name, instance, size), folder / path.stem, left)
        with locks.lock(folder / path.stem, wait=True):
            saved = saved_scores.read(path, METHODS)  # another process may have scored since, too
            new = [method for method in left if method not in saved["methods"]]
            kept = [record for record in records if record["method"] in new]
            saved = {"methods": [*saved["methods"], *new], "records": [*saved["records"], *kept]}
            files.write_json(path, saved)
    records = saved_scores.read(path, METHODS)["records"]
    return [
        {key: float("nan") if value is None else value for key, value in record.items()}
        for record in sorted(records, key=lambda record: METHODS.index(record["method"]))
        if record["method"] in methods
    ]


def _exact(
    plant: PlantedNetwork, folder: Path, key, chosen: Sequence[Component], methods: Collection[str]
) -> tuple[Scores, np.ndarray]:
    """Relative loss increase (%) under the ablations that `methods` take, `[component, t]`, and the clean
    loss `[t]`."""
    denoiser = plant.denoiser
    eval_set = EvalSet(plant.images, plant.timesteps, key)
    reference = EvalSet(plant.others, plant.timesteps, keys.stream(key, "mean fills"))
    replacements = {}
    if "exact mean" in methods:
        replacements["mean"] = activation_means(denoiser, reference)
    if "exact resample" in methods:
        replacements["resample"] = resample_replacements(denoiser, eval_set)
    if "exact optimal" in methods and plant.size in OPTIMAL_SIZES:
        options = {"chosen": chosen, "steps": OPTIMAL_STEPS}
        replacements["optimal"] = optimal_replacements(denoiser, reference, **options)
    config = SweepConfig(ablations=("zero", *replacements), image_block=len(plant.images))
    sweep = ablation_sweep(
        denoiser,
        eval_set,
        folder,
        config=config,
        replacements=replacements,
        chosen=chosen,
    )
    over_images = _over_images(sweep)
    sweep = sweep.mean("image")
    clean = sweep["clean_loss"].values.astype(np.float64)
    increase = stats.percent_increase(sweep["loss"].transpose("ablation", "component", "t").values, clean)
    scores = {f"exact {ablation}": increase[i] for i, ablation in enumerate(config.ablations)}
    over_timesteps = np.sqrt((scores["exact zero"] ** 2).mean(axis=1, keepdims=True))
    return scores | {OVER_IMAGES: over_images, OVER_TIMESTEPS: over_timesteps}, clean


def _over_images(sweep: xr.Dataset) -> Float[np.ndarray, "component t"]:
    """Root mean square over images of their relative loss increase (%) under zero ablation."""
    clean, loss = effects.losses(sweep, "zero")
    return np.sqrt(((100 * (loss - clean) / clean.mean(-1, keepdims=True)) ** 2).mean(-1))


def _predicted(plant: PlantedNetwork, key, chosen: Sequence[Component], clean: np.ndarray) -> Scores:
    """Relative loss increase (%) predicted by gradients with respect to gates, at both points."""
    eval_set = EvalSet(plant.images, plant.timesteps, key)
    predicted = {}
    for at in ("identity", "ablated"):
        scores = gate_scores(
            plant.denoiser,
            eval_set,
            chosen=chosen,
            expansion=Expansion(at=at),
            block=len(plant.images),
        ).mean("image")
        for method, variable in (("first order", "first"), ("gauss-newton", "score")):
            predicted[f"{method} at {at}"] = 100 * scores[variable].values.astype(np.float64) / clean
    path = integrated_gradients(plant.denoiser, eval_set, chosen=chosen, block=len(plant.images)).mean(
        "image"
    )
    return predicted | {"integrated gradients": 100 * path["score"].values.astype(np.float64) / clean}


def discovered(
    plant: PlantedNetwork, key: PRNGKey, chosen: Sequence[Component], folder: Path | None = None
) -> Scores:
    """Relative loss increase (%) of removing each member from the circuit, 0 for the others.

    For the circuit that matches the network on average over timesteps; for that which matches at every
    timestep; and for the latter with backup components, which get the value of the member they can replace.
    """
    eval_set = EvalSet(plant.images, plant.timesteps, key)
    evaluator = CircuitEvaluator(
        plant.denoiser, eval_set, chosen=tuple(chosen), folder=folder, block=len(plant.images)
    )
    average = discover(evaluator)
    evaluator = dataclasses.replace(evaluator, every_timestep=True)
    everywhere = discover(evaluator)
    row_of = {name: i for i, name in enumerate(everywhere.components)}
    shared = np.array(everywhere.marginal)
    for member, outsiders in backup_components(evaluator, everywhere, BACKUPS).items():
        for outsider in outsiders:
            row = everywhere.marginal[row_of[member]]
            if np.abs(row.mean()) > np.abs(shared[row_of[outsider]].mean()):
                shared[row_of[outsider]] = row
    return dict(zip(DISCOVERED, (average.marginal, everywhere.marginal, shared), strict=True))


def _observed(plant: PlantedNetwork, key, chosen: Sequence[Component]) -> Scores:
    """Scores without intervention: 1 - normalized entropy of heads, variance of activations over images."""
    denoiser = plant.denoiser
    eval_set = EvalSet(plant.images, plant.timesteps, key)
    heads = attention_stats(denoiser, eval_set, block=len(plant.images))
    entropy = heads["normalized_entropy"].mean("image").reindex(head=[component.name for component in chosen])
    by_timestep = [
        jax.device_get(_variances(denoiser, eval_set.batch(t_index)))
        for t_index in range(len(eval_set.timesteps))
    ]
    variance = [
        [sites[component.site][slice(*component.index)].mean() for sites in by_timestep]
        for component in chosen
    ]
    return {"entropy": 1 - entropy.values, "activation variance": np.array(variance)}


@jax.jit
def _variances(denoiser: Denoiser, batch: EvalBatch) -> dict[str, Float[Array, " units"]]:
    """Variance over images of each channel's (or head's) activation, averaged over positions."""
    x_t, t, _ = batch.noised(denoiser.schedule)

    def of_units(site, activation):
        variance = activation.var(axis=0)
        units_last = jnp.moveaxis(variance, -2, -1) if site_type(site) == "head" else variance
        return units_last.reshape(-1, units_last.shape[-1]).mean(0)

    sites = denoiser.captured(denoiser.identity, x_t, t)[1]
    return {site: of_units(site, activation) for site, activation in sites.items()}


def _alone_or_paired(
    plant: PlantedNetwork, key, chosen: Sequence[Component], alone: Float[np.ndarray, "component t"]
) -> Float[np.ndarray, "component t"]:
    """Relative loss increase (%) of each component alone; for a study's `CANDIDATES` the larger of that alone
    and that with one other candidate ablated too."""
    others = EvalSet(plant.others, plant.timesteps, keys.stream(key, "candidates"))
    picked = candidates(plant.denoiser, others, chosen, CANDIDATES)
    pairs = list(itertools.combinations(picked, 2))
    costs = costs_alone_or_paired(
        pair_effects(plant.denoiser, EvalSet(plant.images, plant.timesteps, key), pairs)
    )
    return np.stack(
        [costs.get(component.name, increase) for component, increase in zip(chosen, alone, strict=True)]
    )


def _pairs_exact(
    plant: PlantedNetwork, key, chosen: Sequence[Component], clean: np.ndarray
) -> dict[str, float]:
    """`MEASURES` of the interactions of all pairs of components, by exact ablation."""
    pairs = list(itertools.combinations(chosen, 2))
    exact = pair_effects(plant.denoiser, EvalSet(_half(plant), plant.timesteps, key), pairs)
    interaction = exact.interaction.mean("image").values
    return compare(100 * interaction / clean, _planted_pairs(plant, chosen))


def _pairs_by_curvature(
    plant: PlantedNetwork, key, chosen: Sequence[Component], clean: np.ndarray
) -> dict[str, float]:
    """`_pairs_exact` with the interactions that the curvature at the identity predicts."""
    eval_set = EvalSet(_half(plant), plant.timesteps, key)
    matrix = pair_scores(plant.denoiser, eval_set, chosen).curvature.values
    left, right = np.triu_indices(len(chosen), 1)
    return compare(100 * matrix[:, left, right].T / clean, _planted_pairs(plant, chosen))


def _half(plant: PlantedNetwork) -> Images:
    # Pairs are many, and a planted one acts in every image.
    return plant.images[: len(plant.images) // 2]


def _planted_pairs(plant: PlantedNetwork, chosen: Sequence[Component]) -> np.ndarray:
    """Planted sign of the interaction of each pair, 0 for all but the planted ones."""
    signs = {frozenset(pair): sign for *pair, sign in plant.pairs}
    pairs = itertools.combinations([component.name for component in chosen], 2)
    return np.array([signs.get(frozenset(pair), 0) for pair in pairs])
