"""Which images a model is examined on, and what ablated components are replaced with."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechdiff.core import keys
from mechdiff.core.config import DRAWN, DataConfig, ExperimentConfig, Preprocessing, SweepConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.core.types import PyTree, Shown
from mechdiff.data import Dataset, class_labels, load, to_bytes, to_float
from mechdiff.data.collection import open_collection
from mechdiff.data.images import DEFAULT
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.models import conditions, factories
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.storage import digests
from mechdiff.study.condition_sources import CHANNELS, ConditionSources, condition_of, with_class_names
from mechdiff.study.eval_images import EvalImages, conditioned, images_to_evaluate, split_images
from mechdiff.sweeps import activations, optimal_ablation
from mechdiff.sweeps.execution.drawing import draw_samples, sample_condition
from mechdiff.sweeps.replacements import noise_replacements, resample_replacements

NAMES = {"celeba": "CelebA", "tfds": "CelebA (TFDS)", "gaussian": "Gaussian"}  # of data sets, for a reader
TRAINING_IMAGES = "training_images"  # of a training record: digests of the images of a folder
DIGEST_LENGTH = 16  # hex digits by which a model remembers the images of a folder that it was trained on


def held_out_images(
    data: DataConfig, size: int, config: SweepConfig, cache: Path, classes: int = 0
) -> EvalImages:
    """Held-out images of a data set: `images` to score (nested: as many for every timestep), and the next
    `reference_images` for replacements.

    Args:
      classes: of the network, by `data.classes`; 0: it takes none.

    Raises:
      DataError: the data set holds too few.
    """
    needed = images_to_evaluate(config) + config.reference_images
    splits = _held_out(data, size, needed, cache)
    name = splits[0].name
    pixels = np.concatenate([split.images for split in splits])
    people = np.concatenate(
        [np.full(len(split), -1) if split.people is None else split.people for split in splits]
    )
    if len(pixels) < needed:
        raise DataError(
            f"{name}: {len(pixels)} held-out images, but {_settings(config)} = {needed}; lower them"
        )
    facts = {
        "name": NAMES.get(name, name),
        "count": needed,
        "of": len(pixels),
        "sha256": splits[0].digest,
        "preprocessing": "drawn at that size" if name in DRAWN else data.preprocessing.description,
        "held_out": True,
        "ids": [str(name) for split in splits for name in split.ids][:needed],
    }
    images = split_images(to_float(pixels), config, f"held-out {NAMES.get(name, name)} images", people)
    images = dataclasses.replace(images, facts=facts)
    if not classes:
        return images
    labels = np.concatenate([class_labels(split, data.classes, classes) for split in splits])
    return conditioned(images, labels[:needed], config)


def _settings(config: SweepConfig) -> str:
    """The settings that say how many images are needed."""
    scored = "sweep.images x sweep.timesteps" if config.nested else "sweep.images"
    return f"{scored} + sweep.reference_images"


def _held_out(data: DataConfig, size: int, needed: int, cache: Path) -> list[Dataset]:
    """Test images; if too few, followed by those of validation, which training does not use either."""
    splits = [load(dataclasses.replace(data, n_test=needed), size, "test", 0, cache)]
    missing = needed - len(splits[0])
    if missing:
        with contextlib.suppress(DataError):  # no such split
            splits.append(load(dataclasses.replace(data, n_test=missing), size, "validation", 0, cache))
    return splits


def images_from(
    source: str | Path | np.ndarray,
    denoiser: Examinable,
    config: SweepConfig,
    *,
    preprocessing: Preprocessing = DEFAULT,
    trained_on: Collection[str] | None = None,
    value_range: tuple[float, float] | None = None,
    condition: PyTree = None,
    sources: ConditionSources = ConditionSources(),
) -> EvalImages:
    """Anyone's images: `config.images` to score (nested: as many for every timestep), and the next
    `config.reference_images` for replacements.

    Args:
      source: a folder of images (sub-folders are read too), an `.npy` or `.npz` file, or an array: whole
        numbers in [0, 255] or floats in [-1, 1], `(images, height, width, channels)`. Those of a folder or
        file come in an order drawn from their content, equal ones once; those of an array as they are.
      denoiser: decides the size, and whether images become RGB or gray.
      preprocessing: crop and filter of images of another size; those that the model was trained with.
      trained_on: first `DIGEST_LENGTH` digits of the SHA-256 of images that the model was trained on, which
        are left out; None: not known.
      value_range: of an array of floats in another range, such as (0, 1).
      condition: of an array's images, leaves `(images, ...)`: their classes, or images to go by; see
        `models.conditions`.
      sources: what tells the condition of images in a folder or file; see `condition_sources`.

    Raises:
      DataError: too few images, or any that can't be read without a guess (see `data.arrays`, `data.images`);
        a network that is conditioned, without a condition.
    """
    if condition is None and _told(denoiser) and not _is_from_files(denoiser, source):
        way_out = "leave them out to examine it on its own samples"
        if not isinstance(denoiser, Denoiser):
            way_out = "let its function return (denoiser, images, condition)"
        raise DataError(
            f"{denoiser.name} is conditioned on {_told(denoiser)}, which other images come without; "
            f"{way_out}, or give an array and its condition to study.inputs.images_from"
        )
    if condition is not None and not isinstance(source, np.ndarray):
        raise DataError(f"a condition goes with the images of an array, in their order; not with {source}")
    if not _told(denoiser) and (sources.classes or sources.conditions):
        flag = "--classes" if sources.classes else "--conditions"
        raise ConfigError(f"{flag} has no bearing on {denoiser.name}, which takes no condition; leave it out")
    preprocessing = for_network(preprocessing, denoiser)
    size = size_of(denoiser)
    images = open_collection(source, value_range)
    rows = [row for row in images.rows if images.digests[row][:DIGEST_LENGTH] not in (trained_on or ())]
    needed = images_to_evaluate(config) + config.reference_images
    if len(rows) < needed:
        seen = len(images.rows) - len(rows)
        known = f" and {seen} that {denoiser.name} was trained on" if seen else ""
        raise DataError(
            f"{images.name}: {len(rows)} different images{known}, but {_settings(config)} = {needed}; lower "
            "them, or give more images"
        )
    pixels = np.stack([images.pixels(row, size, preprocessing) for row in rows[:needed]])
    facts = {
        "name": images.name,
        "count": needed,
        "of": len(images.rows),
        "sha256": images.digest,
        "preprocessing": images.treatment(size, preprocessing),
        "held_out": None if trained_on is None else True,
    }
    if condition is None and _told(denoiser):
        condition, facts["conditions"] = condition_of(denoiser, images, rows[:needed], sources, preprocessing)
    elif condition is not None:
        places = np.array(rows[:needed])
        condition = jax.tree.map(lambda leaf: np.asarray(leaf)[places], condition)
    chosen = dataclasses.replace(split_images(pixels, config, _label(facts)), facts=facts)
    return chosen if condition is None else conditioned(chosen, condition, config)


def given_images(
    denoiser: Examinable, config: SweepConfig, images: np.ndarray, condition: PyTree = None
) -> EvalImages:
    """The images that a user's function gave with its denoiser, as `images_from` takes an array; of any shape
    that the network takes, and floats as they are."""
    needed = images_to_evaluate(config) + config.reference_images
    images = to_float(images) if images.dtype == np.uint8 else np.asarray(images, np.float32)
    if images.shape[1:] != denoiser.image_shape:
        raise DataError(
            f"{denoiser.name} came with images of shape {images.shape}; it takes (images, "
            f"{', '.join(map(str, denoiser.image_shape))})"
        )
    if len(images) < needed:
        raise DataError(
            f"{denoiser.name} came with {len(images)} images, but {_settings(config)} = {needed}; lower "
            "them, or give more images"
        )
    if condition is None and _told(denoiser):
        raise DataError(
            f"{denoiser.name} is conditioned on {_told(denoiser)}; let its function return (denoiser, "
            "images, condition)"
        )
    facts = {
        "name": "what its function gave",
        "count": needed,
        "of": len(images),
        "sha256": digests.digest_arrays(images),
        "preprocessing": "as they are",
        "held_out": None,
    }
    chosen = dataclasses.replace(split_images(images[:needed], config, _label(facts)), facts=facts)
    if condition is None:
        return chosen
    return conditioned(chosen, jax.tree.map(lambda leaf: np.asarray(leaf)[:needed], condition), config)


def _label(facts: dict) -> str:
    """What images they are, for a reader."""
    known = "none was trained on" if facts["held_out"] else "not known whether the model was trained on them"
    prepared = f"sha256 {facts['sha256'][:12]}; {facts['preprocessing']}"
    prepared = "; ".join([prepared, *facts.get("conditions", ())])
    return f"{facts['count']} of {facts['of']} images of {facts['name']} ({prepared}); {known}"


def for_network(preprocessing: Preprocessing, denoiser: Examinable) -> Preprocessing:
    """The same in the channels that a network takes.

    Raises:
      DataError: a network of other channels than RGB or gray.
    """
    channels = denoiser.image_shape[-1]
    if channels not in CHANNELS:
        raise DataError(
            f"{denoiser.name} takes {channels} channels; images are made RGB or gray (3 or 1), so leave them "
            "out to examine it on its own samples"
        )
    return dataclasses.replace(preprocessing, channels=CHANNELS[channels])


def own_samples(denoiser: Examinable, config: SweepConfig, seed: int) -> EvalImages:
    """Images that the denoiser itself samples, for when its data set is not available."""
    key = keys.stream(jax.random.key(seed), "own samples")
    count = images_to_evaluate(config) + config.reference_images
    condition = sample_condition(denoiser, count)
    drawn = to_float(to_bytes(draw_samples(denoiser, key, count, condition=condition)))
    images = split_images(drawn, config, "the model's own samples (not real pictures)")
    return images if condition is None else conditioned(images, condition, config)


def _told(denoiser: Examinable) -> str:
    """What a network is conditioned on, for a reader; empty: nothing."""
    if not isinstance(denoiser, Denoiser):
        return "what its function takes" if getattr(denoiser.network, "conditioned", False) else ""
    return " and ".join(conditions.takes(denoiser.unet))


def _is_from_files(denoiser: Examinable, source: str | Path | np.ndarray) -> bool:
    """Whether a folder or file can tell what a network is conditioned on."""
    takes = conditions.taken(denoiser.network)
    return not isinstance(source, np.ndarray) and bool(takes.classes or takes.channels)


def _classes_for(denoiser: Examinable, data: DataConfig) -> int:
    """How many classes of a data set's images a network is told.

    Raises:
      DataError: it is told something that the data set does not know.
    """
    if not isinstance(denoiser, Denoiser) or not conditions.takes(denoiser.unet):
        return 0
    if conditions.takes(denoiser.unet) != ("label",) or not denoiser.unet.classes:
        raise DataError(
            f"{denoiser.name} is conditioned on {_told(denoiser)}, which a data set of images does not hold; "
            "give an array and its condition to study.inputs.images_from"
        )
    if not data.classes:
        raise DataError(
            f"{denoiser.name} has {denoiser.unet.classes} classes; which label of {data.name} they are is "
            "not known; state it: --set=data.classes=NAME"
        )
    return denoiser.unet.classes


def chooser(
    config: ExperimentConfig,
    celeba: str | None,
    cache: Path,
    images: str | None = None,
    sources: ConditionSources = ConditionSources(),
) -> Callable[..., EvalImages]:
    """A function `(denoiser, trained, record=None)` that gives the images a model is examined on: anyone's,
    held-out ones of its data, or its own samples. They are prepared as those were that it was trained on,
    unless `config.data.preprocessing` is set.

    Args:
      celeba: folder of CelebA in its layout, of which held-out images are taken; None: models that were not
        trained on synthetic faces are examined on their own samples.
      images: a folder of images, or an `.npy` or `.npz` file, that all models are examined on.
      sources: what tells the condition of these images.

    Raises:
      ConfigError: both are given, or a condition without images.
    """
    if celeba and images:
        raise ConfigError(f"--celeba={celeba} and --images={images} both name the images; give one of them")
    if not images and (sources.classes or sources.conditions):
        raise ConfigError(
            "--classes and --conditions say what the images of --images=FOLDER are; give that too"
        )
    wanted = config.data.preprocessing

    def choose(
        denoiser: Examinable, trained: ExperimentConfig, record: Mapping[str, Any] | None = None
    ) -> EvalImages:
        preprocessing = trained.data.preprocessing if wanted == DEFAULT else wanted
        if images:
            trained_on = (record or {}).get(TRAINING_IMAGES)
            return images_from(
                images,
                denoiser,
                config.sweep,
                preprocessing=preprocessing,
                trained_on=None if trained_on is None else frozenset(trained_on),
                sources=with_class_names(record, sources),
            )
        came_with = (record or {}).get(factories.GIVEN)
        if came_with is not None and not celeba:
            return given_images(denoiser, config.sweep, *came_with)
        if trained.data.name in DRAWN:
            known = trained.data, size_of(denoiser), config.sweep, cache
            return _matching(held_out_images(*known, _classes_for(denoiser, trained.data)), denoiser)
        if not celeba:
            return own_samples(denoiser, config.sweep, config.seed)
        faces = DataConfig(
            name="celeba",
            path=celeba,
            preprocessing=for_network(preprocessing, denoiser),
            classes=config.data.classes or trained.data.classes,
        )
        classes = _classes_for(denoiser, faces)
        chosen = held_out_images(faces, size_of(denoiser), config.sweep, cache, classes)
        if trained.data.name in ("celeba", "tfds"):
            return chosen
        label = f"CelebA images of {celeba}; not known whether the model was trained on them"
        return dataclasses.replace(chosen, label=label, facts={**chosen.facts, "held_out": None})

    return choose


def size_of(denoiser: Examinable) -> int:
    """The side of the square images that a network takes.

    Raises:
      DataError: it takes others.
    """
    height, width, _ = denoiser.image_shape
    if height != width:
        raise DataError(f"{denoiser.name} takes images of {width}x{height}; only squares are made of images")
    return height


def _matching(images: EvalImages, denoiser: Examinable) -> EvalImages:
    """The images, if they have as many channels as the network takes."""
    channels, expected = images.scored.shape[-1], denoiser.image_shape[-1]
    if channels != expected:
        raise DataError(
            f"{denoiser.name} takes {expected} channel(s), but its data has {channels}; give others "
            "(--images=FOLDER)"
        )
    return images


def replacement_values(
    denoiser: Examinable,
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
    reference = given.reference_set(timesteps, keys.stream(root, "mean noise"))
    key = keys.stream(root, "scored noise")
    condition = given.condition if shown is given.swept else given.scored_condition
    scored = EvalSet(shown, timesteps, key, condition)
    make = {
        "mean": lambda: activations.activation_means(denoiser, reference),
        "resample": lambda: resample_replacements(denoiser, scored, draws=config.draws),
        "noise": lambda: noise_replacements(denoiser, reference, draws=config.draws),
        "optimal": lambda: optimal_ablation.optimal_replacements(
            denoiser, reference, steps=config.optimal_steps
        ),
    }
    return {ablation: make[ablation]() for ablation in config.ablations if ablation != "zero"}
