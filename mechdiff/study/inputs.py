"""A user's images, prepared for a network: from a folder, a file, an array, or the user's function."""

import dataclasses
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from mechdiff.core.config import Preprocessing, SweepConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.core.types import PyTree
from mechdiff.data import to_float
from mechdiff.data.collection import Collection, open_collection
from mechdiff.data.images import DEFAULT
from mechdiff.models import conditions
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.storage import digests
from mechdiff.study.condition_sources import CHANNELS, ConditionSources, condition_of
from mechdiff.study.eval_images import (
    EvalImages,
    conditioned,
    images_taken,
    images_to_evaluate,
    settings_in_words,
    split_images,
)

TRAINING_IMAGES = "training_images"  # key of a training record: digests of the images of a folder
DIGEST_LENGTH = 16  # hex digits of these digests


def images_from(
    source: str | Path | np.ndarray,
    denoiser: Examinable,
    config: SweepConfig,
    *,
    preprocessing: Preprocessing = DEFAULT,
    trained_on: Container[str] | None = None,
    value_range: tuple[float, float] | None = None,
    condition: PyTree = None,
    sources: ConditionSources = ConditionSources(),
) -> EvalImages:
    """A user's images: `config.images` to score (nested: as many for every timestep), and the next
    `config.reference_images` for replacements.

    Args:
      source: a folder of images (sub-folders are read too), an `.npy` or `.npz` file, or an array: whole
        numbers in [0, 255] or floats in [-1, 1], `(images, height, width, channels)`. Images of a folder or
        file are ordered by their content's hash, equal ones taken once; those of an array keep their order.
      denoiser: decides the size, and whether images become RGB or gray.
      preprocessing: crop and filter of images of another size; those that the model was trained with.
      trained_on: first `DIGEST_LENGTH` digits of the SHA-256 of images that the model was trained on, which
        are left out; None: not known.
      value_range: of an array of numbers in another range, such as (0, 1).
      condition: of an array's images, leaves `(images, ...)`: their classes, or condition images; see
        `models.conditions`.
      sources: statements on the conditions of images in a folder or file; see `condition_sources`.

    Raises:
      DataError: too few images, or any that can't be read without a guess (see `data.arrays`, `data.images`);
        a network that is conditioned, without a condition.
    """
    _check_condition(denoiser, source, condition, sources)
    preprocessing, size = for_network(preprocessing, denoiser), size_of(denoiser)
    images = open_collection(source, value_range)
    rows = _held_out_rows(images, denoiser, config, trained_on)
    pixels = np.stack([images.pixels(row, size, preprocessing) for row in rows])
    facts = {
        "name": images.name,
        "count": len(rows),
        "of": len(images.rows),
        "sha256": images.digest,
        "preprocessing": images.treatment(size, preprocessing),
        "held_out": None if trained_on is None else True,
    }
    if condition is not None:
        condition = conditions.at(condition, np.array(rows))
    elif conditioned_on(denoiser):
        condition, facts["conditions"] = condition_of(denoiser, images, rows, sources, preprocessing)
    return _labeled(pixels, condition, config, facts)


def _check_condition(
    denoiser: Examinable, source: str | Path | np.ndarray, condition: PyTree, sources: ConditionSources
) -> None:
    """Checks that the images have the condition that the network takes, and none that it does not take."""
    conditions_of = conditioned_on(denoiser)
    if condition is None and conditions_of and not _tells_condition(denoiser, source):
        way_out = "leave them out to examine it on its own samples"
        if not isinstance(denoiser, Denoiser):
            way_out = "let its function return (denoiser, images, condition)"
        if conditions.taken(denoiser.network).classes:
            way_out = "give a folder with a sub-folder for each class, or an .npz file with their 'labels'"
        raise DataError(
            f"{denoiser.name} is conditioned on {conditions_of}, which other images come without; "
            f"{way_out}; or give what study.inputs.images_from makes of an array and its condition"
        )
    if condition is not None and not isinstance(source, np.ndarray):
        raise DataError(f"a condition goes with the images of an array, in their order; not with {source}")
    if not conditions_of and (sources.classes or sources.conditions):
        flag = "--classes" if sources.classes else "--conditions"
        raise ConfigError(f"{flag} has no effect on {denoiser.name}, which takes no condition; leave it out")


def _held_out_rows(
    images: Collection, denoiser: Examinable, config: SweepConfig, trained_on: Container[str] | None
) -> list[int]:
    """Rows of as many images as the settings ask for, none of which the model was trained on; fewer where
    no ablation needs those for reference."""
    rows = rows_to_examine(images, trained_on)
    needed = images_taken(len(rows), config)
    if not needed:
        left_out = len(images.rows) - len(rows)
        trained = f" and {left_out} that {denoiser.name} was trained on" if left_out else ""
        kept = {images.digests[row] for row in rows}  # of an array copies too
        different = "different images" if len(kept) == len(rows) else "images"
        raise DataError(f"{images.name}: {len(rows)} {different}{trained}, {_too_few(config)}")
    return rows[:needed]


def rows_to_examine(images: Collection, trained_on: Container[str] | None) -> list[int]:
    """Rows of the images that a model was not trained on; see `images_from` for `trained_on`."""
    recorded = images.recorded if trained_on else images.digests
    return [row for row in images.rows if recorded[row][:DIGEST_LENGTH] not in (trained_on or ())]


def _too_few(config: SweepConfig) -> str:
    """The rest of the line where images are too few."""
    scored, reference = images_to_evaluate(config), config.reference_images
    sum_of = f"{scored} + {reference} = {scored + reference}" if reference else str(scored)
    return f"but {settings_in_words(config)} = {sum_of}; lower them, or give more images"


def accompanying_images(
    denoiser: Examinable, config: SweepConfig, images: np.ndarray, condition: PyTree = None
) -> EvalImages:
    """The images that a user's function returned with its denoiser, prepared as `images_from` does an array;
    of any shape that the network takes, and floats unchanged.

    Raises:
      DataError: images of another shape or type, too few of them, or a condition that is not given.
    """
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(
            f"{denoiser.name} came with images of type {images.dtype}; give floats, or bytes (uint8), of "
            "which 0 and 255 become -1 and 1"
        )
    images = to_float(images) if images.dtype == np.uint8 else np.asarray(images, np.float32)
    if images.shape[1:] != denoiser.image_shape:
        raise DataError(
            f"{denoiser.name} came with images of shape {images.shape}; it takes (images, "
            f"{', '.join(map(str, denoiser.image_shape))})"
        )
    if not np.isfinite(images).all():
        raise DataError(f"{denoiser.name} came with images that hold NaN or Inf; expected finite numbers")
    needed = images_taken(len(images), config)
    if not needed:
        raise DataError(f"{denoiser.name} came with {len(images)} images, {_too_few(config)}")
    if condition is None and conditioned_on(denoiser):
        raise DataError(
            f"{denoiser.name} is conditioned on {conditioned_on(denoiser)}; let its function return "
            "(denoiser, images, condition)"
        )
    facts = {
        "name": "what its function gave",
        "count": needed,
        "of": len(images),
        "sha256": digests.digest_arrays(images),
        "preprocessing": "as they are",
        "held_out": None,
    }
    condition = conditions.at(condition, slice(needed))
    return _labeled(images[:needed], condition, config, facts)


def _labeled(pixels: np.ndarray, condition: PyTree, config: SweepConfig, facts: dict) -> EvalImages:
    """Images to score and for reference, with their condition and what is known of them."""
    images = dataclasses.replace(split_images(pixels, config, _label(facts, config)), facts=facts)
    return images if condition is None else conditioned(images, condition, config)


def _label(facts: dict, config: SweepConfig) -> str:
    """Description of the images: how many are scored, how many others serve replacements, of which."""
    scored = min(facts["count"], images_to_evaluate(config))
    others = facts["count"] - scored if config.needs_reference else 0
    count = f"{scored} of {facts['of']} images of {facts['name']}"
    count += f" and {others} more for replacements" if others else ""
    held_out = "none was trained on"
    if not facts["held_out"]:
        held_out = "not known whether the model was trained on them"
    prepared = f"sha256 {facts['sha256'][:12]}; {facts['preprocessing']}"
    prepared = "; ".join([prepared, *facts.get("conditions", ())])
    return f"{count} ({prepared}); {held_out}"


def for_network(preprocessing: Preprocessing, denoiser: Examinable) -> Preprocessing:
    """The preprocessing, in the channels that a network takes.

    Raises:
      DataError: a network of other channels than RGB or gray, or whose channels are not last.
    """
    shape = tuple(denoiser.image_shape)
    if channels_first(shape):
        raise DataError(
            f"{denoiser.name} takes rows of shape {shape}; images are (height, width, channels), so let its "
            "function return (denoiser, images) in its own layout, or move channels inside of the function"
        )
    channels = shape[-1]
    if channels not in CHANNELS:
        raise DataError(
            f"{denoiser.name} takes {channels} channels; images are made RGB or gray (3 or 1), so leave them "
            "out to examine it on its own samples"
        )
    return dataclasses.replace(preprocessing, channels=CHANNELS[channels])


def channels_first(shape: Sequence[int]) -> bool:
    """Whether rows of this shape are images whose channels are the first axis."""
    return len(shape) == 3 and shape[0] in CHANNELS and shape[-1] not in CHANNELS


def size_of(denoiser: Examinable) -> int:
    """The side of the square images that a network takes.

    Raises:
      DataError: it takes others.
    """
    height, width, _ = denoiser.image_shape
    if height != width:
        raise DataError(f"{denoiser.name} takes images of {width}x{height}; only squares are made of images")
    return height


def conditioned_on(denoiser: Examinable) -> str:
    """The condition of a network in words; empty for an unconditional one."""
    if not isinstance(denoiser, Denoiser):
        return "what its function takes" if getattr(denoiser.network, "conditioned", False) else ""
    return " and ".join(conditions.takes(denoiser.unet))


def _tells_condition(denoiser: Examinable, source: str | Path | np.ndarray) -> bool:
    """Whether the condition of a network can be read from a folder or file."""
    takes = conditions.taken(denoiser.network)
    return not isinstance(source, np.ndarray) and bool(takes.classes or takes.channels)
