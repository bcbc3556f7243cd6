"""Further results on an examined network: controls, circuits, random channel sets and roles of heads.

Each is saved in the model's folder with a digest of all its inputs, and reused where that digest is the same.
study.json lists the results of the last study; others in the folder are not read:
  activity.zarr          participation ratio, effective rank and variance of activations, by site and timestep
  control.zarr           sweep of an untrained network of the same configuration on the same images
  control_attention.zarr its attention statistics
  circuit_ABLATION.zarr  circuits run to score the discovered one, see `scorecards.run`
  random_sets.zarr       relative loss increase of random sets of as many channels as each component
  roles.zarr             selectivity and roles of heads, and the effects that they are computed from
  pairs.zarr             components that make up for each other, see `circuits.backups`
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from mechdiff import circuits
from mechdiff.analysis import complexity, roles
from mechdiff.analysis.roles import matched_class, matched_sets, probes
from mechdiff.circuits import backups, scorecards
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, SweepConfig, to_dict
from mechdiff.core.errors import ConfigError
from mechdiff.core.numerics import NUMERICS_VERSION
from mechdiff.core.types import PRNGKey
from mechdiff.data import OFFSETS, synthetic
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.interventions.components import Component
from mechdiff.models import untrained
from mechdiff.models.denoiser import Examinable
from mechdiff.stats.clusters import PERSON
from mechdiff.storage import digests, files, labelled, locks
from mechdiff.study.examine import Analysis
from mechdiff.study.inputs import EvalImages, replacement_values
from mechdiff.sweeps import activations, channel_moments
from mechdiff.sweeps.ablation import ablation_sweep, sweep_in_memory

SCORED = 0.9  # faithfulness match, of `complexity.TAUS`, of the circuit that is scored
KNOCKOUTS, RANDOMS = 10, 40  # knockouts of a circuit, and random circuits it is compared with
PROBED = 400  # faces that probes of factors are fitted on
BLOCK = 16  # faces generated together
SETTINGS_OF = {
    "random_sets": "random_sets",
    "roles": "role_sets",
    "pairs": "pairs",
}  # of `StudyConfig`, that decide one result


def run_study(examined: Analysis, config: ExperimentConfig, folder: Path) -> None:
    """Computes and saves the results that `config.study` lists for one model.

    Args:
      examined: of `examine.examine`, into the same `folder`.
    """
    study, root = config.study, jax.random.key(config.seed)
    fewer = dataclasses.replace(examined, given=examined.given.first(study.images))
    timesteps = [int(t) for t in timesteps_by_log_snr(examined.denoiser.schedule, study.timesteps)]
    noise = keys.stream(root, "scored noise")
    makers: dict[str, Callable[[], xr.Dataset]] = {}
    if study.controls:
        makers["activity"] = functools.partial(activity, examined, timesteps, root)
        makers["control"] = functools.partial(control, fewer, config, noise, folder)
        makers["control_attention"] = functools.partial(control_attention, fewer, config, noise)
    for ablation in study.circuits:
        makers[f"circuit_{ablation}"] = functools.partial(circuit, fewer, ablation, config, folder)
    if study.random_sets:
        makers["random_sets"] = functools.partial(random_sets, fewer, config, noise)
    if study.role_sets and _heads(examined):
        makers["roles"] = functools.partial(head_roles, fewer, config, timesteps, noise)
    if study.pairs:
        makers["pairs"] = functools.partial(pairs, fewer, config, timesteps, noise)
    for name, make in makers.items():
        _once(folder / f"{name}.zarr", _key(examined, config, name), make)
    with locks.lock(folder, wait=True):
        files.write_json(folder / "study.json", {"results": list(makers)})


def activity(examined: Analysis, levels: Sequence[int], root: PRNGKey) -> xr.Dataset:
    """`complexity.OF_COVARIANCE` of the activations of every site, dims `measure, site, t`."""
    denoiser, images = examined.denoiser, examined.given
    if not len(images.reference):
        raise ConfigError("activity is measured around means of reference images; sweep.reference_images=0")
    reference = images.reference_set(levels, keys.stream(root, "mean noise"))
    scored = images.scored_set(levels, keys.stream(root, "scored noise"))
    means = activations.activation_means(denoiser, reference)
    moments = channel_moments.channel_moments(denoiser, scored, means=means)
    values = {name: complexity.site_values(moments, name) for name in complexity.OF_COVARIANCE}
    cells = np.array([[values[name][site] for site in moments] for name in values])
    axes = {"measure": list(values), "site": list(moments), "t": np.asarray(levels)}
    return xr.Dataset({"value": (tuple(axes), cells)}, coords=axes)


def circuit(examined: Analysis, ablation: str, config: ExperimentConfig, folder: Path) -> xr.Dataset:
    """Discovers circuits on one half of the images; runs the circuits that score them on the other.

    Returns:
      As `scorecards.run`, with the attribute `sizes`: members of the circuits of `complexity.TAUS`.
    """
    root = jax.random.key(config.seed)
    sweep = dataclasses.replace(config.sweep, timesteps=config.study.timesteps)
    finder, scorer = circuit_evaluators(
        examined.denoiser, examined.given, ablation, sweep, root, folder / "circuits"
    )
    discovered = {tau: circuits.discover(finder, tau) for tau in complexity.TAUS}
    runs = scorecards.run(scorer, discovered[SCORED], KNOCKOUTS, RANDOMS, config.seed)
    people = examined.given.scored_people
    if people is not None:
        runs = runs.assign_coords({PERSON: ("image", people[len(people) // 2 :])})
    return runs.assign_attrs(sizes=[len(result.members) for result in discovered.values()])


def circuit_evaluators(
    denoiser: Examinable,
    given: EvalImages,
    ablation: str,
    config: SweepConfig,
    root: PRNGKey,
    folder: Path | None,
) -> tuple[CircuitEvaluator, CircuitEvaluator]:
    """Circuit evaluators on one half of the scored images, for discovery, and on the other, for scoring.

    Each half has noise of its own. Replacements come from the reference images; those of resample ablation
    from the same half.

    Raises:
      ConfigError: fewer than 4 images.
    """
    count = len(given.scored) // 2
    if count < 2:
        raise ConfigError(f"sweep.images={len(given.scored)} are too few to find and score circuits; give 4")
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.timesteps)
    config = dataclasses.replace(config, ablations=(ablation,))
    evaluators = []
    for name, half in (("find", given.part(slice(count))), ("score", given.part(slice(count, None)))):
        key = keys.stream(root, f"circuits: {name}")
        replacements = replacement_values(denoiser, half, timesteps, key, config)
        eval_set = half.scored_set(timesteps, keys.stream(key, "scored noise"))
        evaluators.append(
            CircuitEvaluator(
                denoiser,
                eval_set,
                ablation,
                replacements.get(ablation),
                folder=folder,
                block=min(config.image_block, len(half.scored)),
                people=half.people,
            )
        )
    return tuple(evaluators)


def head_roles(
    examined: Analysis, config: ExperimentConfig, levels: Sequence[int], noise: PRNGKey
) -> xr.Dataset:
    """Roles of all heads, and the effects they are computed from; dims `component, target, t, image`."""
    denoiser, images = examined.denoiser, examined.given
    chosen = _heads(examined)
    count = max(-(-config.study.role_sets // len(chosen)), roles.untrained_needed())
    fresh = [untrained.untrained(denoiser, config.seed + i) for i in range(count)]
    targets = {}
    if images.facts.get("name") == "synthetic":  # masks and factors are known of these
        targets = face_targets(examined.trained, len(images.scored))
    eval_set = images.scored_set(levels, noise)
    assigned, effect = roles.examine(
        denoiser, eval_set, fresh, chosen, count=config.study.role_sets, seed=config.seed, **targets
    )
    cells = ("component", "target")
    return effect.assign(
        selectivity=(cells, assigned.selectivity),
        role=("component", list(assigned.role)),
        adjusted=("component", assigned.adjusted),
    )


def control(examined: Analysis, config: ExperimentConfig, noise: PRNGKey, folder: Path) -> xr.Dataset:
    """The ablation sweep of the untrained network of the same training seed, at the sweep's timesteps."""
    fresh, timesteps = _fresh(examined, config)
    images = examined.given
    sweep = dataclasses.replace(config.sweep, images=len(images.scored))
    root = jax.random.key(config.seed)
    replacements = replacement_values(fresh, images, timesteps, root, sweep, images.swept)
    eval_set = images.swept_set(timesteps, noise)
    results = ablation_sweep(fresh, eval_set, folder / "control", config=sweep, replacements=replacements)
    return results.assign_coords(images.labels)


def control_attention(examined: Analysis, config: ExperimentConfig, noise: PRNGKey) -> xr.Dataset:
    """Attention statistics of the network of `control`, on the same images."""
    fresh, timesteps = _fresh(examined, config)
    results = activations.attention_stats(fresh, examined.given.swept_set(timesteps, noise))
    return results.assign_coords(examined.given.labels)


def random_sets(examined: Analysis, config: ExperimentConfig, noise: PRNGKey) -> xr.Dataset:
    """Pooled relative loss increase of random sets of as many channels as each component: a null by size.

    Every component is compared with sets of its class (`roles.matched_class`): channels of other branches and
    skips of its resolution. They are run on the scored images (of a nested sweep: those of its first
    timestep), at `study.timesteps` timesteps, as circuits are.

    Returns:
      Dataset with `relative_increase`, pooled ΔL/L of each set in %, dims `ablation, component, set`.
    """
    denoiser, images, count = examined.denoiser, examined.given, config.study.random_sets
    timesteps = [int(t) for t in timesteps_by_log_snr(denoiser.schedule, config.study.timesteps)]
    sweep = dataclasses.replace(config.sweep, images=len(images.scored))
    values = replacement_values(denoiser, images, timesteps, jax.random.key(config.seed), sweep)
    chosen = denoiser.components()
    classes = [matched_class(component, denoiser.identity) for component in chosen]
    names, stacked = matched_sets(chosen, chosen, denoiser.identity, count, config.seed)
    increases, eval_set = [], images.scored_set(timesteps, noise)
    for ablation in config.sweep.ablations:
        losses = sweep_in_memory(
            denoiser,
            eval_set,
            stacked,
            ablation=ablation,
            replacements=values.get(ablation),
            block=config.sweep.image_block,
        )
        loss = np.asarray(losses.loss, np.float64).mean(-1)
        clean = np.asarray(losses.clean_loss, np.float64).mean(-1)
        pooled = 100 * (loss / clean - 1).mean(-1)
        of_class = {name: pooled[np.array(names) == name] for name in dict.fromkeys(names)}
        increases.append([of_class[name] for name in classes])
    return xr.Dataset(
        {"relative_increase": (("ablation", "component", "set"), np.array(increases))},
        coords={
            "ablation": list(config.sweep.ablations),
            "component": [component.name for component in chosen],
            "class": ("component", classes),
        },
    )


def pairs(
    examined: Analysis, config: ExperimentConfig, timesteps: Sequence[int], noise: PRNGKey
) -> xr.Dataset:
    """Pairs of the `study.pairs` likeliest components, see `backups.verified_backups`.

    Candidates are chosen on as many reference images, or on images that the pairs are not run on where there
    are none.

    Raises:
      ConfigError: fewer than 4 images.
    """
    denoiser, images = examined.denoiser, examined.given
    choice = keys.stream(jax.random.key(config.seed), "candidates")
    if len(images.reference):
        others = images.fewer_references(len(images.scored)).reference_set(timesteps, choice)
    else:
        half = len(images.scored) // 2
        if half < 2:
            raise ConfigError(
                f"{len(images.scored)} images are too few to choose pairs and to run them; give 4"
            )
        images, rest = images.part(slice(half)), images.part(slice(half, None))
        others = rest.scored_set(timesteps, choice)
    return backups.verified_backups(
        denoiser,
        images.scored_set(timesteps, noise),
        others,
        denoiser.components(),
        count=config.study.pairs,
        seed=config.seed,
        people=images.scored_people,
    )


def face_targets(trained: ExperimentConfig, count: int) -> dict:
    """Targets of synthetic faces for `roles.examine`: masks of held-out faces, probes of factors.

    Args:
      count: held-out faces, from the first; probes are fitted on training faces.
    """
    reference = _faces(trained, OFFSETS["train"], PROBED)
    fitted = probes.fit_all(reference.image, reference.factors)
    masks = _faces(trained, OFFSETS["test"], count).masks
    return {"masks": masks, "parts": synthetic.PARTS, "probes": probes.as_arrays(fitted)}


def _fresh(examined: Analysis, config: ExperimentConfig) -> tuple[Examinable, np.ndarray]:
    """The untrained network and the timesteps it is examined at."""
    fresh = untrained.untrained(examined.denoiser, examined.trained.seed)
    return fresh, timesteps_by_log_snr(fresh.schedule, config.sweep.timesteps)


def _heads(examined: Analysis) -> list[Component]:
    chosen = examined.denoiser.components()
    return [component for component in chosen if component.component_type == "head"]


def _once(path: Path, key: str, make: Callable[[], xr.Dataset]) -> None:
    """Writes the result of `make`, unless the saved one has the same key."""
    with locks.lock(path.parent, wait=True):
        if not path.exists() or labelled.read(path).attrs.get("made_of") != key:
            labelled.replace(path, make().assign_attrs(made_of=key))


def _key(examined: Analysis, config: ExperimentConfig, result: str) -> str:
    """SHA-256 of everything that decides the numbers of `result`; its field names are part of it.

    Settings of other results are left out, so that roles can be added to a study without doing the rest anew.
    """
    images, sweep = examined.given, to_dict(config.sweep)
    names = ["images", "timesteps", *([SETTINGS_OF[result]] if result in SETTINGS_OF else [])]
    study = {name: getattr(config.study, name) for name in names}
    if config.sweep.precision == "float32":  # a later field: results without it keep their names
        del sweep["precision"]
    return digests.digest_json(
        {
            **examined.denoiser.digests(),
            "pictures": digests.digest_arrays([images.swept, images.reference]),
            "asked": [config.seed, sweep, study],
            "numerics": NUMERICS_VERSION,
        }
    )


def _faces(trained: ExperimentConfig, start: int, count: int) -> synthetic.Face:
    data, size, key = trained.data, trained.unet.image_size, jax.random.key(0)
    blocks = [
        synthetic.faces(key, np.int32(first + np.arange(BLOCK)), size, data.complexity)
        for first in range(start, start + count, BLOCK)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *blocks)
