"""Held-out images of a model's data, or its own samples if the data is not available."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from mechdiff.core import keys
from mechdiff.core.config import DRAWN, DataConfig, SweepConfig
from mechdiff.core.errors import DataError
from mechdiff.data import OFFSETS, Dataset, class_labels, load, to_bytes, to_float
from mechdiff.models.denoiser import Examinable
from mechdiff.storage import checksums, image_grid
from mechdiff.study.eval_images import (
    EvalImages,
    conditioned,
    images_taken,
    images_to_evaluate,
    settings_in_words,
    split_images,
    with_phases,
)
from mechdiff.sweeps.execution.drawing import BRIEF_STEPS, draw_samples, sample_condition

NAMES = {"celeba": "CelebA", "tfds": "CelebA (TFDS)", "gaussian": "Gaussian"}  # of data sets, for a reader


def held_out_images(
    data: DataConfig, size: int, config: SweepConfig, cache: Path, classes: int = 0
) -> EvalImages:
    """Held-out images of a data set: `images` to score (nested: as many for every timestep), and the next
    `reference_images` for replacements; fewer of these where no ablation needs them.

    Args:
      classes: of the network, by `data.classes`; 0: it takes none.

    Raises:
      DataError: the data set holds too few.
    """
    wanted = images_to_evaluate(config) + config.reference_images
    if data.name in DRAWN and wanted > (most := OFFSETS["validation"]):
        raise DataError(
            f"{settings_in_words(config)} = {wanted}: a split holds {most:,} drawn images; lower them"
        )
    splits = _held_out(data, size, wanted, cache)
    name = splits[0].name
    pixels = np.concatenate([split.images for split in splits])
    people = np.concatenate(
        [np.full(len(split), -1) if split.people is None else split.people for split in splits]
    )
    taken = images_taken(len(pixels), config)
    if not taken:
        raise DataError(
            f"{name}: {len(pixels)} held-out images, but {settings_in_words(config)} = {wanted}; lower them"
        )
    facts = {
        "name": NAMES.get(name, name),
        "count": taken,
        "of": len(pixels),
        "sha256": splits[0].digest,
        "preprocessing": "drawn at that size" if name in DRAWN else data.preprocessing.description,
        "held_out": True,
        "ids": [str(name) for split in splits for name in split.ids][:taken],
    }
    label = with_phases(f"held-out {NAMES.get(name, name)} images", facts["preprocessing"])
    images = split_images(to_float(pixels), config, label, people)
    images = dataclasses.replace(images, facts=facts)
    if images.people is None and data.name in ("celeba", "tfds"):
        unknown = f"{images.label}; who is on them is not known, so intervals take them for independent"
        images = dataclasses.replace(images, label=unknown)
    if not classes:
        return images
    labels = np.concatenate([class_labels(split, data.classes, classes) for split in splits])
    return conditioned(images, labels[:taken], config)


def _held_out(data: DataConfig, size: int, needed: int, cache: Path) -> list[Dataset]:
    """Test images; if too few, followed by those of validation, which training does not use either."""
    splits = [load(dataclasses.replace(data, n_test=needed), size, "test", 0, cache)]
    missing = needed - len(splits[0])
    if missing:
        with contextlib.suppress(DataError):  # no such split
            splits.append(load(dataclasses.replace(data, n_test=missing), size, "validation", 0, cache))
    return splits


def stored_samples(folder: Path, denoiser: Examinable, config: SweepConfig) -> EvalImages | None:
    """Samples of a denoiser that the folder it was exported to holds, on a sheet; None: no such sheet, or too
    few on it.

    They are there at once, where drawing them needs a program to be compiled: for a first answer.
    """
    sheet, count = folder / image_grid.SHEET, images_to_evaluate(config) + config.reference_images
    exported = sheet.is_file() and (folder / checksums.NAME).is_file()  # anybody's file may be called so
    if not exported or len(denoiser.image_shape) != 3:
        return None
    height, width, channels = denoiser.image_shape
    image = np.asarray(Image.open(sheet))
    pixels = image_grid.tiles(image.reshape(*image.shape[:2], -1), height, width)
    if pixels is None or pixels.shape[-1] != channels or len(pixels) < count:
        return None
    label = f"{denoiser.name}'s own samples (not real images), stored with it"
    images = split_images(to_float(pixels[:count]), config, label)
    condition = sample_condition(denoiser, count)  # sheets show the classes in turn, too
    return images if condition is None else conditioned(images, condition, config)


def own_samples(denoiser: Examinable, config: SweepConfig, seed: int, brief: bool = False) -> EvalImages:
    """Images that the denoiser itself samples, for when its data set is not available.

    Args:
      brief: in fewer steps, and said so in their label: for a first answer.
    """
    key = keys.stream(jax.random.key(seed), "own samples")
    count = images_to_evaluate(config) + config.reference_images
    condition = sample_condition(denoiser, count)
    steps = min(BRIEF_STEPS, denoiser.schedule.steps) if brief else None
    drawn = draw_samples(denoiser, key, count, steps, condition=condition, quickly=brief)
    label = f"{denoiser.name}'s own samples (not real images)" + (f", {steps} steps of DDIM" if brief else "")
    images = split_images(to_float(to_bytes(drawn)), config, label)
    return images if condition is None else conditioned(images, condition, config)
