"""Which images a model is examined on, and what ablated components are replaced with."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from mechdiff.core import keys
from mechdiff.core.config import DataConfig, ExperimentConfig, SweepConfig
from mechdiff.core.errors import DataError
from mechdiff.core.types import AnyArray, Images, Shown
from mechdiff.data import load, to_bytes, to_float
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models.denoiser import Denoiser
from mechdiff.stats.clusters import PERSON
from mechdiff.sweeps import activations, optimal_ablation
from mechdiff.sweeps.execution.rollout import draw_samples
from mechdiff.sweeps.replacements import noise_replacements, resample_replacements

NAMES = {"celeba": "CelebA", "tfds": "CelebA (TFDS)"}  # of data sets, for a reader


@dataclasses.dataclass(frozen=True)
class EvalImages:
    """Images that a denoiser is examined on, in [-1, 1].

    Attributes:
      scored: losses are measured on these.
      reference: other images of the same data, for mean activations and other replacements.
      label: description for a reader.
      nested: a set of its own for every timestep of a sweep, as `process.images_at` takes it; None: the
        scored images serve all timesteps.
      people: number of the person on each image swept, `[images]` or nested `[timesteps, images]`; None
        unless all are known.
    """

    scored: Images
    reference: Float[AnyArray, "references height width channels"]
    label: str
    nested: Float[AnyArray, "levels images height width channels"] | None = None
    people: Int[np.ndarray, "*levels images"] | None = None

    @property
    def labels(self) -> dict:
        """Coordinates of a sweep's results: the person on each image, where known."""
        if self.people is None:
            return {}
        return {PERSON: (("t", "image")[-self.people.ndim :], self.people)}

    @property
    def scored_people(self) -> Int[np.ndarray, " images"] | None:
        """The person on each scored image; None where that is not known."""
        if self.people is None or self.people.ndim == 1:
            return self.people
        return self.people[0]

    @property
    def swept(self) -> Shown:
        """Images of sweeps over all timesteps: nested ones if there are any, else the scored ones."""
        return self.scored if self.nested is None else self.nested

    def first(self, count: int) -> "EvalImages":
        """The first `count` images, at every timestep."""
        nested = None if self.nested is None else self.nested[:, :count]
        people = None if self.people is None else self.people[..., :count]
        return dataclasses.replace(self, scored=self.scored[:count], nested=nested, people=people)


def held_out_images(data: DataConfig, size: int, config: SweepConfig, cache: Path) -> EvalImages:
    """Held-out images of a data set: `images` to score (nested: as many for every timestep), and the next
    `reference_images` for replacements.

    Raises:
      DataError: the data set holds too few.
    """
    needed = _images_to_evaluate(config) + config.reference_images
    pixels, people, name = _held_out(data, size, needed, cache)
    if len(pixels) < needed:
        scored = "sweep.images x sweep.timesteps" if config.nested else "sweep.images"
        settings = f"{scored} + sweep.reference_images = {needed}"
        raise DataError(f"{name}: {len(pixels)} held-out pictures, but {settings}; lower them")
    return _split(to_float(pixels), config, f"held-out {NAMES.get(name, name)} pictures", people)


def _held_out(data: DataConfig, size: int, needed: int, cache: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Test images; if they are too few, followed by those of validation, which training does not use either.

    Returns:
      The images, the person on each (-1: unknown), and the name of the data set.
    """
    splits = [load(dataclasses.replace(data, n_test=needed), size, "test", 0, cache)]
    missing = needed - len(splits[0])
    if missing:
        with contextlib.suppress(DataError):  # no such split
            splits.append(load(dataclasses.replace(data, n_test=missing), size, "validation", 0, cache))
    people = [np.full(len(split), -1) if split.people is None else split.people for split in splits]
    return np.concatenate([split.images for split in splits]), np.concatenate(people), splits[0].name


def own_samples(denoiser: Denoiser, config: SweepConfig, seed: int) -> EvalImages:
    """Images that the denoiser itself samples, for when its data set is not available."""
    key = keys.stream(jax.random.key(seed), "own samples")
    drawn = to_float(
        to_bytes(draw_samples(denoiser, key, _images_to_evaluate(config) + config.reference_images))
    )
    return _split(drawn, config, "the model's own samples (not real pictures)")


def _images_to_evaluate(config: SweepConfig) -> int:
    return config.images * (config.timesteps if config.nested else 1)


def _split(
    pixels: Images, config: SweepConfig, label: str, people: Int[np.ndarray, " count"] | None = None
) -> EvalImages:
    scored, reference = np.split(pixels, [_images_to_evaluate(config)])
    nested = scored.reshape(-1, config.images, *scored.shape[1:]) if config.nested else None
    people = None if people is None else people[: len(scored)]
    if people is not None and (people < 0).any():  # images of unknown people would count as independent
        people = None
    if people is not None and config.nested:
        people = people.reshape(-1, config.images)
    return EvalImages(scored[: config.images], reference, label, nested, people)


def chooser(
    config: ExperimentConfig, celeba: str | None, cache: Path
) -> Callable[[Denoiser, ExperimentConfig], EvalImages]:
    """A function that gives the images a model is examined on: held-out ones of its data, or its own samples.

    Args:
      celeba: folder of CelebA images; None: CelebA models are examined on their own samples.
    """

    def choose(denoiser: Denoiser, trained: ExperimentConfig) -> EvalImages:
        data = trained.data
        if data.name != "synthetic":
            if not celeba:
                return own_samples(denoiser, config.sweep, config.seed)
            data = DataConfig(name="celeba", path=celeba)
        images = held_out_images(data, denoiser.unet.image_size, config.sweep, cache)
        if images.scored.shape[-1] != denoiser.unet.in_channels:
            raise DataError(
                f"{denoiser.name} takes images of {denoiser.unet.in_channels} channel(s), but those of "
                f"{data.path or data.name} have {images.scored.shape[-1]}; leave them out to examine it on "
                "its own samples"
            )
        if trained.data.name == "unknown":
            label = f"CelebA pictures of {celeba}; not known whether the model was trained on them"
            images = dataclasses.replace(images, label=label)
        return images

    return choose


def replacement_values(
    denoiser: Denoiser,
    given: EvalImages,
    timesteps,
    root: jax.Array,
    config: SweepConfig,
    shown: Shown | None = None,
) -> dict:
    """Replacement values of each ablation but `zero`: ablation -> replacements, or a source of them.

    Args:
      shown: images of the sweep, if not the scored ones of `given`.
    """
    shown = given.scored if shown is None else shown
    reference = EvalSet(given.reference, timesteps, keys.stream(root, "mean noise"))
    scored = EvalSet(shown, timesteps, keys.stream(root, "scored noise"))
    make = {
        "mean": lambda: activations.activation_means(denoiser, reference),
        "resample": lambda: resample_replacements(denoiser, scored, draws=config.draws),
        "noise": lambda: noise_replacements(denoiser, reference, draws=config.draws),
        "optimal": lambda: optimal_ablation.optimal_replacements(
            denoiser, reference, steps=config.optimal_steps
        ),
    }
    return {ablation: make[ablation]() for ablation in config.ablations if ablation != "zero"}
