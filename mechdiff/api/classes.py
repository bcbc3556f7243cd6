"""Labels of images, from one model to another: numbers of classes mean something to one network alone."""

import dataclasses
from typing import Any

import numpy as np

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.core.types import PyTree
from mechdiff.models import conditions, factories
from mechdiff.study.condition_sources import CLASS_NAMES
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.inputs import conditioned_on

NONE = "no class"  # what the null label is called


def for_other(images: EvalImages, of: Any, model: Any) -> EvalImages:
    """The images of one `Model` for another: labels become its numbers of the classes of the same names.

    A network that takes no condition is given none. Images and conditions that a user's function gave stay
    as they are.

    Args:
      images: with labels of `of`.

    Raises:
      ConfigError: classes that can't be matched by name, or images without what `model` is conditioned on.
    """
    if model is of or factories.WITH_IMAGES in of.record:
        return images
    wanted = conditioned_on(model.denoiser)
    if wanted and images.condition is None:
        raise ConfigError(
            f"{model.name} is conditioned on {wanted}, which images of {of.name} come without; compare them "
            "the other way round, or give images in a sub-folder for each class"
        )
    if not wanted:
        return dataclasses.replace(images, condition=None, reference_condition=None)
    return dataclasses.replace(
        images,
        condition=_for_other(images.condition, of, model),
        reference_condition=_for_other(images.reference_condition, of, model),
    )


def check_labels(images: EvalImages, of: Any, others: EvalImages, model: Any) -> None:
    """Checks that no image is of classes of different names to two models, where both name theirs.

    Args:
      images: as `of` sees them.
      others: the same, as `model` sees them.

    Raises:
      ConfigError: one is.
    """
    first, second = _label(images.scored_condition, of), _label(others.scored_condition, model)
    if first is None or second is None or not (_names(of) and _names(model)):
        return
    called, otherwise = _numbered(of), _numbered(model)
    for row, (number, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        if called[number] != otherwise[other]:
            raise ConfigError(
                f"image {row} would be {called[number]} to {of.name}, but {otherwise[other]} to "
                f"{model.name}; give images in sub-folders that are called as classes of both"
            )


def _for_other(condition: PyTree, of: Any, model: Any) -> PyTree:
    label, theirs, ours = _label(condition, of), _names(of), _names(model)
    if label is None or _alike(of, model):
        return condition
    numbers = {name: number for number, name in _numbered(model).items()}
    called = [_numbered(of).get(number) for number in label.tolist()]
    if sorted(theirs) != sorted(ours) or len(set(theirs)) < len(theirs) or not set(called) <= set(numbers):
        first, second = (shorten(", ".join(side))[1:-1] if side else "not named" for side in (theirs, ours))
        raise ConfigError(
            f"classes of {of.name} ({first}) and of {model.name} ({second}) can't be matched by name, so "
            "labels of the one say nothing to the other; name them alike: mechdiff compare "
            "--after_class_names=NAME,... (or mechdiff import --class_names), or in Python "
            "dataclasses.replace(model, record={**model.record, 'class_names': [...]})"
        )
    renumbered = np.array([numbers[name] for name in called], label.dtype)
    return condition | {"label": renumbered} if isinstance(condition, dict) else renumbered


def _alike(of: Any, model: Any) -> bool:
    """Whether numbers of classes mean the same to both: by their names, or by the labels they learned."""
    if conditions.taken(of.denoiser.network) != conditions.taken(model.denoiser.network):
        return False
    if _names(of) or _names(model) or of.config is None or model.config is None:
        return bool(_names(of)) and _names(of) == _names(model)
    first, second = of.config.data, model.config.data
    learned = bool(first.classes) and first.name != "folder"  # whose classes are its own sub-folders
    return learned and (first.name, first.classes) == (second.name, second.classes)


def _label(condition: PyTree, model: Any) -> np.ndarray | None:
    """The numbers of classes in a condition of a model; None where it is of something else."""
    if not conditions.taken(model.denoiser.network).classes:
        return None
    label = condition.get("label") if isinstance(condition, dict) else condition
    return None if label is None else np.asarray(label)


def _names(model: Any) -> tuple[str, ...]:
    """Names of a model's classes, in their order; empty: unknown."""
    return tuple(model.record.get(CLASS_NAMES) or ())


def _numbered(model: Any) -> dict[int | None, str]:
    """Number -> name of a model's classes, and of none, where it has a number for that."""
    null = conditions.taken(model.denoiser.network).null_label
    return ({} if null is None else {null: NONE}) | dict(enumerate(_names(model)))
