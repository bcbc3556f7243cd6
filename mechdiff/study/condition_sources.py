"""Conditions of a user's images: their classes by sub-folder or label, condition images by name."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechdiff.core.config import Preprocessing
from mechdiff.core.errors import ConfigError, DataError, shorten
from mechdiff.core.types import PyTree
from mechdiff.data.arrays import SUFFIXES
from mechdiff.data.collection import Collection, open_collection
from mechdiff.data.images import enlarged
from mechdiff.data.subfolders import class_folders
from mechdiff.models import conditions
from mechdiff.models.denoiser import Examinable

CLASS_NAMES = "class_names"  # key of a training record: names of the network's classes, in their order
CHANNELS = {1: "gray", 3: "rgb"}  # of images in files


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionSources:
    """The user's statements on the conditions of images.

    Attributes:
      classes: class of the images of a sub-folder (or with a label in an `.npz` file),
        `NAME=NUMBER,NAME=NUMBER`; or one NUMBER for all images; empty: by the network's class names.
      conditions: a folder of condition images, each with the name of the image it belongs to; or, if images
        are an array in a file, such a file in the same order.
      names: names of the network's classes, in their order; empty: unknown.
    """

    classes: str = ""
    conditions: str = ""
    names: tuple[str, ...] = ()


def with_class_names(record: Mapping[str, Any] | None, sources: ConditionSources) -> ConditionSources:
    """The sources with the class names that a model's record holds."""
    names = (record or {}).get(CLASS_NAMES) or sources.names
    return dataclasses.replace(sources, names=tuple(names))


def condition_of(
    denoiser: Examinable,
    images: Collection,
    rows: Sequence[int],
    sources: ConditionSources,
    preprocessing: Preprocessing,
) -> tuple[PyTree, tuple[str, ...]]:
    """The condition of images, leaves `(rows, ...)` as `predict` takes it, and its description in words.

    Args:
      images: all of them; `rows` are those that are examined, in order.
      preprocessing: of condition images, in whatever channels the network takes.

    Raises:
      DataError: a class or a condition image that is missing or ambiguous.
    """
    takes = conditions.taken(denoiser.network)
    entries, descriptions = {}, []
    if takes.classes:
        entries["label"], description = _labels(denoiser, images, rows, sources)
        descriptions.append(description)
    if takes.channels:
        entries["image"], description = _condition_images(denoiser, images, rows, sources, preprocessing)
        descriptions.append(description)
    return (entries if len(entries) > 1 else next(iter(entries.values()))), tuple(descriptions)


def _labels(
    denoiser: Examinable, images: Collection, rows: Sequence[int], sources: ConditionSources
) -> tuple[Int[np.ndarray, " rows"], str]:
    takes = conditions.taken(denoiser.network)
    if sources.classes.isdecimal():
        label = _checked(int(sources.classes), takes, "--classes")
        return np.full(len(rows), label, np.int32), f"each as class {_called(label, sources)}"
    if images.files is not None:
        folders = class_folders([images.names[row] for row in rows])
        _check_copies(images)
        if "" in folders:
            raise DataError(
                f"{images.name}: {folders.count('')} of {len(rows)} images lie in no sub-folder, which would "
                f"say their class ({denoiser.name} has {takes.classes}); --classes=NUMBER is one for all"
            )
        return _numbers(folders, takes, sources, f"{images.name}, sub-folder"), "classes by sub-folder"
    labels = images.labels
    if labels is None:
        raise DataError(
            f"{images.name} holds no labels, and {denoiser.name} has {takes.classes} classes; save them as "
            "'labels' in an .npz file, or give --classes=NUMBER for all"
        )
    labels = labels[list(rows)]
    if labels.dtype.kind == "U":
        return _numbers(labels.tolist(), takes, sources, f"{images.name}, label"), "classes by label"
    for label in labels:
        _checked(int(label), takes, f"{images.name}, label")
    return labels.astype(np.int32), "classes by label"


def _numbers(
    names: Sequence[str], takes: conditions.Takes, sources: ConditionSources, where: str
) -> Int[np.ndarray, " rows"]:
    """The class of each name, by `--classes` or the network's class names."""
    numbers = (
        _stated(sources.classes, takes) if sources.classes else {n: i for i, n in enumerate(sources.names)}
    )
    unknown = sorted(set(names) - set(numbers))
    if unknown:
        valid = f"known: {shorten(', '.join(numbers))[1:-1]}" if numbers else "the model's record names none"
        stated = ",".join(f"{name}=NUMBER" for name in unknown[:3])
        raise DataError(
            f"{where} {shorten(unknown[0])}: which of {takes.classes} classes it is, is not known ({valid}); "
            f"state it: --classes={stated}{',...' if len(unknown) > 3 else ''}"
        )
    return np.array([numbers[name] for name in names], np.int32)


def _stated(text: str, takes: conditions.Takes) -> dict[str, int]:
    """`NAME=NUMBER,...`, in which names may hold commas and equality signs."""
    pairs = re.findall(r"(.+?)=(\d+)(?:,|$)", text)
    if ",".join("=".join(pair) for pair in pairs) != text:
        raise ConfigError(
            f"--classes={shorten(text)[1:-1]} is neither NAME=NUMBER,NAME=NUMBER nor one NUMBER for all"
        )
    return {name: _checked(int(number), takes, f"--classes: {name}") for name, number in pairs}


def _checked(label: int, takes: conditions.Takes, where: str) -> int:
    if 0 <= label < takes.classes or label == takes.null_label:
        return label
    null = "" if takes.null_label is None else f", or {takes.null_label} for none"
    raise ConfigError(f"{where}={label} is out of range; classes are 0 to {takes.classes - 1}{null}")


def _called(label: int, sources: ConditionSources) -> str:
    return f"{label} ({sources.names[label]})" if label < len(sources.names) else str(label)


def _check_copies(images: Collection) -> None:
    """Checks that no image is in two classes."""
    folders, first = class_folders(images.names), {}
    for name, digest, folder in zip(images.names, images.digests, folders, strict=True):
        earlier, where = first.setdefault(digest, (name, folder))
        if where != folder:
            raise DataError(
                f"{images.name}: {earlier} and {name} are one image in two classes; keep one of them"
            )


def _condition_images(
    denoiser: Examinable,
    images: Collection,
    rows: Sequence[int],
    sources: ConditionSources,
    preprocessing: Preprocessing,
) -> tuple[Float[np.ndarray, "rows height width channels"], str]:
    channels, side = conditions.taken(denoiser.network).channels, denoiser.image_shape[0]
    if not sources.conditions:
        raise DataError(
            f"{denoiser.name} is conditioned on an image of {channels} channels; give one for each image: "
            "--conditions=FOLDER, called as those they belong to"
        )
    is_file = Path(sources.conditions).suffix.lower() in SUFFIXES
    if is_file != (images.files is None):
        raise DataError(
            f"--conditions={sources.conditions} and --images are a folder and a file; both must be folders, "
            "paired by name, or both files of arrays, paired by position"
        )
    if channels not in CHANNELS:
        raise DataError(
            f"{denoiser.name} is conditioned on {channels} channels; files hold 1 or 3, so give arrays to "
            "study.inputs.images_from in Python"
        )
    others = open_collection(sources.conditions)
    indices = list(rows) if is_file else _paired(images, rows, others)
    if is_file and len(others.array) != len(images.array):
        raise DataError(
            f"--conditions={sources.conditions} holds {len(others.array)} images, but {images.name} "
            f"{len(images.array)}; they are paired by position"
        )
    preprocessing = dataclasses.replace(preprocessing, channels=CHANNELS[channels])
    condition_images = np.stack([_prepared(others, index, side, preprocessing) for index in indices])
    return condition_images, f"condition images of {others.name} (sha256 {others.digest[:12]})"


def _prepared(others: Collection, index: int, side: int, preprocessing: Preprocessing) -> np.ndarray:
    if others.files is not None:
        return enlarged(others.files.read(index), side, others.files.names[index], preprocessing)
    assert others.array is not None  # files or an array
    if others.array.dtype == np.uint8 and others.array.shape[1:3] != (side, side):
        return enlarged(others.array[index], side, f"{index} of {others.name}", preprocessing)
    return others.pixels(index, side, preprocessing)


def _paired(images: Collection, rows: Sequence[int], others: Collection) -> list[int]:
    """The index of each image's condition among `others`: the one of its path, whatever the ending."""
    index_of: dict[str, int] = {}
    for index, name in enumerate(others.names):
        stem = str(Path(name).with_suffix(""))
        if stem in index_of:
            raise DataError(f"{others.name} holds several images called {stem}; keep one of them")
        index_of[stem] = index
    paired = []
    for row in rows:
        name = images.names[row]
        if str(Path(name).with_suffix("")) not in index_of:
            raise DataError(f"{others.name} holds no condition image for {name}; it must have the same name")
        paired.append(index_of[str(Path(name).with_suffix(""))])
    return paired
