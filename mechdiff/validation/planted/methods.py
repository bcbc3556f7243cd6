"""Scores of components by every method, compared with the planted truth (`metrics`)."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechdiff.circuits.attribution import Expansion, gate_scores
from mechdiff.circuits.discovery import backup_components, discover
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.circuits.integrated_gradients import integrated_gradients
from mechdiff.circuits.interactions import pair_effects, pair_scores
from mechdiff.core import keys
from mechdiff.core.config import SweepConfig
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import Images
from mechdiff.diffusion.eval_set import EvalBatch, EvalSet
from mechdiff.interventions.components import Component, site_type
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components
from mechdiff.storage import files
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.activations import activation_means, attention_stats
from mechdiff.sweeps.optimal_ablation import optimal_replacements
from mechdiff.sweeps.replacements import resample_replacements
from mechdiff.validation.planted.metrics import compare
from mechdiff.validation.planted.networks import PlantedNetwork, make

Scores = dict[str, Float[np.ndarray, "component t"]]
METHODS = (
    *("entropy", "activation variance", "first order at identity", "first order at ablated"),
    *("gauss-newton at identity", "gauss-newton at ablated", "integrated gradients"),
    *("exact zero", "exact mean", "exact resample", "exact optimal"),
    *("discovery on average", "discovery at every level", "discovery with stand-ins"),
    *("pairs by curvature", "pairs exact"),
)
UNSIGNED = METHODS[:2]  # predict no sign of an effect
# Limits of the most expensive methods, so that the table takes less than half an hour on one core:
OPTIMAL_SIZES, OPTIMAL_STEPS = ("small",), 8
BACKUPS = 4  # members of a circuit whose backup components are searched


def score(plant: PlantedNetwork, folder: Path) -> list[dict]:
    """One record per method: plant, size, instance, method and `MEASURES`, NaN where one does not apply.

    Entropy ranks heads only; pairs are scored for networks with a planted pair, optimal ablation for
    `OPTIMAL_SIZES`.

    Args:
      folder: of the exact sweep, which resumes there.
    """
    key = jax.random.key(plant.instance)
    chosen = components(plant.denoiser.unet)
    effects, clean = _exact(plant, folder, key, chosen)
    scores = {**_observed(plant, key, chosen), **_predicted(plant, key, chosen, clean), **effects}
    scores |= discovered(plant, key, chosen, folder / "circuits")
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    inside = None
    if plant.window:
        inside = (plant.timesteps >= plant.window[0]) & (plant.timesteps < plant.window[1])
    measured = {name: compare(values, signs, inside, name not in UNSIGNED) for name, values in scores.items()}
    if plant.pair:
        paired = [component for component in chosen if component.component_type in ("head", "res")]
        measured["pairs exact"] = _pairs_exact(plant, key, paired, clean)
        measured["pairs by curvature"] = _pairs_by_curvature(plant, key, paired, clean)
    labels = {"plant": plant.name, "size": plant.size, "instance": plant.instance}
    return [{**labels, "method": name, **measured[name]} for name in METHODS if name in measured]


def scored(name: str, instance: int, size: str, folder: Path) -> list[dict]:
    """`score` of one planted network, cached in `folder` under its name and `NUMERICS_VERSION`."""
    path = files.ensure_writable(folder) / f"{name}-{size}-{instance}-numerics{NUMERICS_VERSION}.json"
    if not path.exists():
        files.write_json(path, score(make(name, instance, size), folder / path.stem))
    records = files.read_json(path)
    return [
        {key: float("nan") if value is None else value for key, value in record.items()} for record in records
    ]


def _exact(
    plant: PlantedNetwork, folder: Path, key, chosen: Sequence[Component]
) -> tuple[Scores, np.ndarray]:
    """Relative loss increase (%) under every ablation, `[component, t]`, and the clean loss `[t]`."""
    denoiser = plant.denoiser
    eval_set = EvalSet(plant.images, plant.timesteps, key)
    reference = EvalSet(plant.others, plant.timesteps, keys.stream(key, "mean fills"))
    replacements = {
        "mean": activation_means(denoiser, reference),
        "resample": resample_replacements(denoiser, eval_set),
    }
    if plant.size in OPTIMAL_SIZES:
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
    ).mean("image")
    clean = sweep["clean_loss"].values.astype(np.float64)
    increase = 100 * (sweep["loss"].transpose("ablation", "component", "t").values / clean - 1)
    return {f"exact {ablation}": increase[i] for i, ablation in enumerate(config.ablations)}, clean


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


def discovered(plant: PlantedNetwork, key, chosen: Sequence[Component], folder: Path | None = None) -> Scores:
    """Relative loss increase (%) of removing each member from the circuit, 0 for the others.

    For the circuit that matches the network on average over timesteps; for that which matches at every
    timestep; and for the latter with backup components, which get the value of the member they can replace.
    """
    eval_set = EvalSet(plant.images, plant.timesteps, key)
    evaluator = CircuitEvaluator(
        plant.denoiser, eval_set, chosen=tuple(chosen), folder=folder, block=len(plant.images)
    )
    average = discover(evaluator)
    evaluator = dataclasses.replace(evaluator, every_level=True)
    everywhere = discover(evaluator)
    place = {name: i for i, name in enumerate(everywhere.components)}
    shared = np.array(everywhere.marginal)
    for member, outsiders in backup_components(evaluator, everywhere, BACKUPS).items():
        for outsider in outsiders:
            row = everywhere.marginal[place[member]]
            if np.abs(row.mean()) > np.abs(shared[place[outsider]].mean()):
                shared[place[outsider]] = row
    names = ("discovery on average", "discovery at every level", "discovery with stand-ins")
    return dict(zip(names, (average.marginal, everywhere.marginal, shared), strict=True))


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
    """Variance over images of each unit's activation, averaged over positions."""
    x_t, t, _ = batch.noised(denoiser.schedule)

    def of_units(site, activation):
        variance = activation.var(axis=0)
        units_last = jnp.moveaxis(variance, -2, -1) if site_type(site) == "head" else variance
        return units_last.reshape(-1, units_last.shape[-1]).mean(0)

    sites = denoiser.captured(denoiser.identity, x_t, t)[1]
    return {site: of_units(site, activation) for site, activation in sites.items()}


def _pairs_exact(
    plant: PlantedNetwork, key, chosen: Sequence[Component], clean: np.ndarray
) -> dict[str, float]:
    """`MEASURES` of the interactions of all pairs of components, by exact ablation."""
    pairs = list(itertools.combinations(chosen, 2))
    effects = pair_effects(plant.denoiser, EvalSet(_half(plant), plant.timesteps, key), pairs)
    interaction = effects.interaction.mean("image").values
    return compare(100 * interaction / clean, _planted_pair(plant, chosen))


def _pairs_by_curvature(
    plant: PlantedNetwork, key, chosen: Sequence[Component], clean: np.ndarray
) -> dict[str, float]:
    """The same with the interactions that the curvature at identity predicts."""
    eval_set = EvalSet(_half(plant), plant.timesteps, key)
    matrix = pair_scores(plant.denoiser, eval_set, chosen).curvature.values
    left, right = np.triu_indices(len(chosen), 1)
    return compare(100 * matrix[:, left, right].T / clean, _planted_pair(plant, chosen))


def _half(plant: PlantedNetwork) -> Images:
    """Half of the images: pairs are many, and a planted one acts in every image."""
    return plant.images[: len(plant.images) // 2]


def _planted_pair(plant: PlantedNetwork, chosen: Sequence[Component]) -> np.ndarray:
    """Planted sign of the interaction of each pair, 0 for all but the planted one."""
    first, second, sign = plant.pair or ("", "", 0)
    pairs = itertools.combinations([component.name for component in chosen], 2)
    return np.array([sign if {*pair} == {first, second} else 0 for pair in pairs])
