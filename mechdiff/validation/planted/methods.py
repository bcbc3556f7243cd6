"""Asks every method which components matter, and compares its answers with what was planted (`measures`)."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mechdiff.circuits.attribution import gate_scores
from mechdiff.circuits.discovery import backup_components, discover
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.circuits.integrated_gradients import integrated_gradients
from mechdiff.circuits.interactions import pair_effects, pair_scores
from mechdiff.core import keys
from mechdiff.core.config import SweepConfig
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import Images
from mechdiff.diffusion.process import image_noise, q_sample
from mechdiff.interventions.components import Component, site_type
from mechdiff.interventions.gates import CAPTURED
from mechdiff.models.unet import components, forward
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
WORDLESS = METHODS[:2]  # say nothing about the sign of an effect
# Of the dearest methods, so that the whole table takes less than half an hour of one core:
OPTIMAL_SIZES, OPTIMAL_STEPS = ("small",), 8  # gradients of all components; mean and zero are tried anyway
STAND_INS = 4  # members of a circuit that are asked for them


def score(plant: PlantedNetwork, folder: Path) -> list[dict]:
    """One record a method: plant, size, instance, method and `MEASURES`, NaN where one does not apply.

    Entropy ranks heads only; pairs are asked of plants that hold one, optimal ablation of `OPTIMAL_SIZES`.

    Args:
      folder: of the exact sweep, which resumes there.
    """
    key = jax.random.key(plant.instance)
    chosen = components(plant.denoiser.unet)
    effects, clean = _exact(plant, folder, key, chosen)
    found = {**_observed(plant, key, chosen), **_predicted(plant, key, chosen, clean), **effects}
    found |= discovered(plant, key, chosen, folder / "circuits")
    signs = np.array([plant.signs.get(component.name, 0) for component in chosen])
    inside = None
    if plant.window:
        inside = (plant.timesteps >= plant.window[0]) & (plant.timesteps < plant.window[1])
    measured = {name: compare(values, signs, inside, name not in WORDLESS) for name, values in found.items()}
    if plant.pair:
        some = [component for component in chosen if component.component_type in ("head", "res")]
        measured["pairs exact"] = _pairs_exact(plant, key, some, clean)
        measured["pairs by curvature"] = _pairs_by_curvature(plant, key, some, clean)
    who = {"plant": plant.name, "size": plant.size, "instance": plant.instance}
    return [{**who, "method": name, **measured[name]} for name in METHODS if name in measured]


def scored(name: str, instance: int, size: str, folder: Path) -> list[dict]:
    """`score` of one plant, kept in `folder` in a file named after it and the code: done once."""
    path = files.ensure_writable(folder) / f"{name}-{size}-{instance}-numerics{NUMERICS_VERSION}.json"
    if not path.exists():
        files.write_json(path, score(make(name, instance, size), folder / path.stem))
    records = files.read_json(path)
    return [{key: float("nan") if value is None else value for key, value in one.items()} for one in records]


def _exact(
    plant: PlantedNetwork, folder: Path, key, chosen: Sequence[Component]
) -> tuple[Scores, np.ndarray]:
    """Deg%_t under every kind of ablation, and the clean loss of each level."""
    denoiser = plant.denoiser
    reference = plant.others, plant.timesteps
    replacements = {
        "mean": activation_means(*denoiser.network, *reference, keys.stream(key, "mean fills")),
        "resample": resample_replacements(*denoiser.network, plant.images, plant.timesteps, key),
    }
    if plant.size in OPTIMAL_SIZES:
        noise = keys.stream(key, "mean fills")
        options = {"chosen": chosen, "steps": OPTIMAL_STEPS}
        replacements["optimal"] = optimal_replacements(*denoiser.network, *reference, noise, **options)
    config = SweepConfig(ablations=("zero", *replacements), image_block=len(plant.images))
    found = ablation_sweep(
        denoiser,
        plant.images,
        plant.timesteps,
        key,
        folder,
        config=config,
        replacements=replacements,
        chosen=chosen,
    ).mean("image")
    clean = found["clean_loss"].values.astype(np.float64)
    rise = 100 * (found["loss"].transpose("ablation", "component", "t").values / clean - 1)
    return {f"exact {ablation}": rise[i] for i, ablation in enumerate(config.ablations)}, clean


def _predicted(plant: PlantedNetwork, key, chosen: Sequence[Component], clean: np.ndarray) -> Scores:
    """Deg%_t by gradients in the gates, at both points."""
    found = {}
    for at in ("identity", "ablated"):
        scores = gate_scores(
            plant.denoiser, plant.images, plant.timesteps, key, chosen=chosen, at=at, block=len(plant.images)
        ).mean("image")
        percent = lambda name: 100 * scores[name].values.astype(np.float64) / clean  # noqa: B023
        found[f"first order at {at}"] = percent("first")
        found[f"gauss-newton at {at}"] = percent("score")
    asked = plant.denoiser, plant.images, plant.timesteps, key
    path = integrated_gradients(*asked, chosen=chosen, block=len(plant.images)).mean("image")
    return found | {"integrated gradients": 100 * path["score"].values.astype(np.float64) / clean}


def discovered(plant: PlantedNetwork, key, chosen: Sequence[Component], folder: Path | None = None) -> Scores:
    """Deg%_t of leaving each member out of the circuit, 0 for the others.

    Of the circuit that is close on average over noise levels; of that which is close at every one; and of the
    latter, where outsiders that could take the place of a member count as it does.
    """
    asked = plant.denoiser, plant.images, plant.timesteps, key
    evaluator = CircuitEvaluator(*asked, chosen=tuple(chosen), folder=folder, block=len(plant.images))
    average = discover(evaluator)
    evaluator = dataclasses.replace(evaluator, every_level=True)
    found = discover(evaluator)
    place = {name: i for i, name in enumerate(found.components)}
    shared = np.array(found.marginal)
    for member, outsiders in backup_components(evaluator, found, STAND_INS).items():
        for outsider in outsiders:
            row = found.marginal[place[member]]
            if np.abs(row.mean()) > np.abs(shared[place[outsider]].mean()):
                shared[place[outsider]] = row
    names = ("discovery on average", "discovery at every level", "discovery with stand-ins")
    return dict(zip(names, (average.marginal, found.marginal, shared)))


def _observed(plant: PlantedNetwork, key, chosen: Sequence[Component]) -> Scores:
    """What can be seen without an intervention: sharpness of heads, variance of activations over images."""
    denoiser = plant.denoiser
    heads = attention_stats(*denoiser.network, plant.images, plant.timesteps, key, block=len(plant.images))
    entropy = heads["normalized_entropy"].mean("image").reindex(head=[component.name for component in chosen])
    index = np.arange(len(plant.images))
    levels = [
        jax.device_get(_variances(*denoiser.network, plant.images, int(t), key, index))
        for t in plant.timesteps
    ]
    variance = [[level[c.site][slice(*c.index)].mean() for level in levels] for c in chosen]
    return {"entropy": 1 - entropy.values, "activation variance": np.array(variance)}


@functools.partial(jax.jit, static_argnames="unet")
def _variances(unet, params, identity, schedule, x0, t, key, indices):
    """Variance over images of each unit's activation, averaged over positions: site -> `(units,)`."""
    at = jnp.full(len(x0), t)
    x_t = q_sample(schedule, x0, at, image_noise(key, indices, x0.shape[1:]))
    sites = forward(unet, params, identity, x_t, at, capture=(CAPTURED,))[1][CAPTURED]
    units_last = lambda site, a: jnp.moveaxis(a, -2, -1) if site_type(site) == "head" else a
    spread = {site: units_last(site, a.var(axis=0)) for site, a in sites.items()}
    return {site: a.reshape(-1, a.shape[-1]).mean(0) for site, a in spread.items()}


def _pairs_exact(
    plant: PlantedNetwork, key, some: Sequence[Component], clean: np.ndarray
) -> dict[str, float]:
    """Measures of the synergy of all pairs of `some` components."""
    pairs = list(itertools.combinations(some, 2))
    found = pair_effects(plant.denoiser, _half(plant), plant.timesteps, key, pairs)
    synergy = found.synergy.mean("image").values
    return compare(100 * synergy / clean, _planted_pair(plant, some))


def _pairs_by_curvature(
    plant: PlantedNetwork, key, some: Sequence[Component], clean: np.ndarray
) -> dict[str, float]:
    """The same with the synergy that the curvature at identity predicts."""
    asked = plant.denoiser, _half(plant), plant.timesteps, key
    matrix = pair_scores(*asked, some).curvature.values
    left, right = np.triu_indices(len(some), 1)
    return compare(100 * matrix[:, left, right].T / clean, _planted_pair(plant, some))


def _half(plant: PlantedNetwork) -> Images:
    """Half of the images, for pairs, of which there are many: one that matters does so in every image."""
    return plant.images[: len(plant.images) // 2]


def _planted_pair(plant: PlantedNetwork, some: Sequence[Component]) -> np.ndarray:
    """Planted sign of the synergy of each pair, 0 for all but one."""
    first, second, sign = plant.pair
    pairs = itertools.combinations([component.name for component in some], 2)
    return np.array([sign * ({*pair} == {first, second}) for pair in pairs])
