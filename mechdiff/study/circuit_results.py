"""Circuits and pairs of an examined network: found on some images, measured on others."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import xarray as xr

from mechdiff import circuits
from mechdiff.analysis import complexity
from mechdiff.circuits import backups, robustness, scorecards
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.core import keys
from mechdiff.core.config import ExperimentConfig, SweepConfig
from mechdiff.core.errors import ConfigError
from mechdiff.core.types import PRNGKey
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models.denoiser import Examinable
from mechdiff.stats.clusters import PERSON
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.examine import DenoiserAndImages
from mechdiff.study.replacement_values import replacement_values

TWO_HALVES = 4  # images: two to find a circuit or to choose pairs, two to score or run them
SCORED = 0.9  # faithfulness match, of `complexity.TAUS`, of the circuit that is scored
KNOCKOUTS, RANDOMS = 10, 40  # knockouts of a circuit, and random circuits it is compared with


@dataclasses.dataclass(frozen=True)
class CircuitSettings:
    """How a circuit is found and scored.

    Attributes:
      tau: faithfulness match that it must reach.
      every_timestep: it must reach it at every timestep, not only on average over them.
      ranking: of `circuits.RANKINGS`.
      randoms: random circuits that it is compared with.
      repeats: resamples of the images on which it is found again.
    """

    tau: float = SCORED
    every_timestep: bool = False
    ranking: str = "exact"
    randoms: int = RANDOMS
    repeats: int = 10


class FoundCircuit(NamedTuple):
    """A circuit of one half of the images, scored on the other.

    Attributes:
      stability: which members come again when it is found on resampled images.
      runs: what was run for the scorecard.
      scorer: evaluates circuits on the other half.
    """

    circuit: circuits.Circuit
    scorecard: scorecards.Scorecard
    stability: robustness.Stability
    runs: xr.Dataset
    scorer: CircuitEvaluator

    def facts(self) -> dict[str, Any]:
        """Circuit, scorecard and stability, as they are saved."""
        kept = {"circuit": self.circuit, "scorecard": self.scorecard, "stability": self.stability}
        return {name: dataclasses.asdict(result) for name, result in kept.items()}


def found_circuit(
    denoiser: Examinable,
    images: EvalImages,
    ablation: str,
    config: ExperimentConfig,
    folder: Path,
    settings: CircuitSettings = CircuitSettings(),
) -> FoundCircuit:
    """Finds a circuit on one half of the scored images, scores it on the other, and tries its stability.

    Args:
      folder: of circuits that were run, which are not run again.

    Raises:
      ConfigError: fewer than 4 images, or people.
    """
    halves = circuit_evaluators(denoiser, images, ablation, config.sweep, jax.random.key(config.seed), folder)
    finder, scorer = (dataclasses.replace(half, every_timestep=settings.every_timestep) for half in halves)
    discovered = circuits.discover(finder, settings.tau, settings.ranking)
    card, runs = scorecards.scorecard(scorer, discovered, randoms=settings.randoms, seed=config.seed)
    again = robustness.stability(finder, discovered, settings.repeats, config.seed)
    return FoundCircuit(discovered, card, again, runs, scorer)


def circuit(examined: DenoiserAndImages, ablation: str, config: ExperimentConfig, folder: Path) -> xr.Dataset:
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
    if scorer.people is not None:
        runs = runs.assign_coords({PERSON: ("image", scorer.people)})
    return runs.assign_attrs(sizes=[len(result.members) for result in discovered.values()])


def check(config: ExperimentConfig) -> None:
    """Raises ConfigError for settings of circuits and pairs that would be refused after the sweep."""
    for ablation in config.study.circuits:
        dataclasses.replace(config.sweep, ablations=(ablation,))  # refused without what it takes
        _check_images(config.sweep.images, "find and score circuits")
    if config.study.pairs and not config.sweep.reference_images:
        _check_images(config.sweep.images, "choose pairs and run them")


def checking(choose: Callable[..., EvalImages], config: ExperimentConfig) -> Callable[..., EvalImages]:
    """`choose`, which gives the images of an examination; those whose people can't be halved as the study's
    circuits or pairs need it are refused before hours of sweeping."""
    wanted = [f"circuit_{ablation}" for ablation in config.study.circuits]
    wanted += ["pairs"] if config.study.pairs else []

    def chosen(*about: Any) -> EvalImages:
        images = choose(*about)
        if any(halved(config, result) for result in wanted):
            images.first(config.study.images).halves()
        return images

    return chosen


def halved(config: ExperimentConfig, result: str) -> bool:
    """Whether a result takes halves of the images: circuits do, and pairs where there are no reference images
    to choose them on."""
    return result.startswith("circuit_") or (result == "pairs" and not config.sweep.reference_images)


def _check_images(count: int, purpose: str) -> None:
    if count < TWO_HALVES:
        raise ConfigError(f"sweep.images={count} are too few to {purpose}; give {TWO_HALVES}")


def circuit_evaluators(
    denoiser: Examinable,
    images: EvalImages,
    ablation: str,
    config: SweepConfig,
    root: PRNGKey,
    folder: Path | None,
) -> tuple[CircuitEvaluator, CircuitEvaluator]:
    """Circuit evaluators on one half of the scored images, for discovery, and on the other, for scoring.

    The halves have different noise, and different people where these are known. With the same 8 to 40 people
    in both, who carry a third to two thirds of the variance of effects, intervals of a circuit's faithfulness
    covered .87 to .96, and where they did not were mostly too high; now .94 to .96 (600 simulations each).
    Replacements come from the reference images; those of resample ablation from the same half.

    Raises:
      ConfigError: fewer than 4 images, or people.
    """
    _check_images(len(images.scored), "find and score circuits")
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.timesteps)
    config = dataclasses.replace(config, ablations=(ablation,))
    evaluators = []
    for name, image_rows in zip(("find", "score"), images.halves(), strict=True):
        half = images.subset(image_rows)
        key = keys.stream(root, f"circuits: {name}")
        eval_set = half.scored_set(timesteps, keys.stream(key, "scored noise"))
        replacements = replacement_values(denoiser, half, eval_set, key, config)
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
    examined: DenoiserAndImages,
    config: ExperimentConfig,
    timesteps: Sequence[int],
    noise: PRNGKey,
    folder: Path | None = None,
) -> xr.Dataset:
    """Pairs of the `study.pairs` likeliest components, see `backups.verified_backups`.

    Candidates are chosen on as many reference images or, if there are none, on images that the pairs are not
    run on.

    Args:
      folder: as of `backups.verified_backups`.

    Raises:
      ConfigError: fewer than 4 images, or people, where there are no reference images.
    """
    denoiser, images = examined.denoiser, examined.images
    choice = keys.stream(jax.random.key(config.seed), "candidates")
    if len(images.reference):
        others = images.fewer_references(len(images.scored)).reference_set(timesteps, choice)
    else:
        _check_images(len(images.scored), "choose pairs and run them")
        images, rest = (images.subset(image_rows) for image_rows in images.halves())
        others = rest.scored_set(timesteps, choice)
    return backups.verified_backups(
        denoiser,
        images.scored_set(timesteps, noise),
        others,
        denoiser.components(),
        count=config.study.pairs,
        seed=config.seed,
        people=images.scored_people,
        folder=folder,
    )
