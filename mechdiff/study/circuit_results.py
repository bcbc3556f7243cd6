"""Circuits and pairs of an examined network: found on some images, measured on others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import xarray as xr

from mechdiff import circuits
from mechdiff.analysis import complexity
from mechdiff.circuits import backups, scorecards
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models.denoiser import Examinable
from mechdiff.stats.clusters import PERSON
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.examine import Analysis
from mechdiff.study.replacement_values import replacement_values

SCORED = 0.9  # faithfulness match, of `complexity.TAUS`, of the circuit that is scored
KNOCKOUTS, RANDOMS = 10, 40  # knockouts of a circuit, and random circuits it is compared with


def circuit(examined: Analysis, ablation: str, config: ExperimentConfig, folder: Path) -> xr.Dataset:
    """Discovers circuits on one half of the images; runs the circuits that score them on the other.

    Returns:
      As `scorecards.run`, with the attribute `sizes`: members of the circuits of `complexity.TAUS`.
    """
    root = jax.random.key(config.seed)
    sweep = dataclasses.replace(config.sweep, timesteps=config.study.timesteps)
    finder, scorer = circuit_evaluators(
        examined.denoiser, examined.images, ablation, sweep, root, folder / "circuits"
    )
    discovered = {tau: circuits.discover(finder, tau) for tau in complexity.TAUS}
    runs = scorecards.run(scorer, discovered[SCORED], KNOCKOUTS, RANDOMS, config.seed)
    people = examined.images.scored_people
    if people is not None:
        runs = runs.assign_coords({PERSON: ("image", people[len(people) // 2 :])})
    return runs.assign_attrs(sizes=[len(result.members) for result in discovered.values()])


def circuit_evaluators(
    denoiser: Examinable,
    images: EvalImages,
    ablation: str,
    config: SweepConfig,
    root: PRNGKey,
    folder: Path | None,
) -> tuple[CircuitEvaluator, CircuitEvaluator]:
    """Circuit evaluators on one half of the scored images, for discovery, and on the other, for scoring.

    The halves have different noise. Replacements come from the reference images; those of resample ablation
    from the same half.

    Raises:
      ConfigError: fewer than 4 images.
    """
    count = len(images.scored) // 2
    if count < 2:
        raise ConfigError(f"sweep.images={len(images.scored)} are too few to find and score circuits; give 4")
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.timesteps)
    config = dataclasses.replace(config, ablations=(ablation,))
    evaluators = []
    for name, half in (("find", images.part(slice(count))), ("score", images.part(slice(count, None)))):
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


def pairs(
    examined: Analysis, config: ExperimentConfig, timesteps: Sequence[int], noise: PRNGKey
) -> xr.Dataset:
    """Pairs of the `study.pairs` likeliest components, see `backups.verified_backups`.

    Candidates are chosen on as many reference images or, if there are none, on images that the pairs are not
    run on.

    Raises:
      ConfigError: fewer than 4 images.
    """
    denoiser, images = examined.denoiser, examined.images
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
