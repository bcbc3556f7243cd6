"""Which images a model is examined on."""

import dataclasses
from pathlib import Path
from typing import Any

from mechdiff.api.cache_folders import cache_folder
from mechdiff.core import ranges
from mechdiff.core.config import DRAWN, SweepConfig
from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.core.types import AnyArray
from mechdiff.data import celeba
from mechdiff.data.arrays import whole_array
from mechdiff.data.celeba_folder import celeba_folder
from mechdiff.data.collection import open_collection
from mechdiff.data.images import BACKGROUNDS, DEFAULT
from mechdiff.models import factories
from mechdiff.models.load import check_stated
from mechdiff.study import condition_sources
from mechdiff.study.choosing import drawn_images, held_out_faces
from mechdiff.study.eval_images import EvalImages
from mechdiff.study.held_out import own_samples, stored_samples
from mechdiff.study.inputs import TRAINING_IMAGES, accompanying_images, images_from, rows_to_examine

Given = str | Path | AnyArray | EvalImages | None


def how_many(model: Any, images: Given) -> int | None:
    """How many images there are that a model was not trained on; None: as many as are wanted are found or
    drawn."""
    if isinstance(images, EvalImages):
        return len(images.scored)
    if images is None:
        own_images, _ = model.record.get(factories.WITH_IMAGES, (None, None))
        return None if own_images is None else len(own_images)
    if faces := _celeba_folder(model, images):
        return int((celeba.open_source(faces).splits > 0).sum())
    there = open_collection(images if isinstance(images, str | Path) else whole_array(images))
    return len(rows_to_examine(there, _trained_on(model)))


def eval_images(
    model: Any,
    images: Given,
    n: int,
    reference: int = 0,
    *,
    brief: bool = False,
    background: str = "",
    white: int = 0,
) -> EvalImages:
    """`n` images to examine a model on, and `reference` others, prepared as those it was trained on.

    Args:
      model: a `Model`.
      images: a folder (of one in the layout of CelebA held-out images are taken, and it is known who is on
        them), an `.npy` or `.npz` file, or an array: bytes, or floats in [-1, 1]; or what this function or
        `study.inputs.images_from` returned, as it is, its labels taken for this model's. None: what a user's
        function gave with its denoiser, held-out synthetic or Gaussian images for a model that was trained on
        these, and samples of the model's own for any other.
      brief: for a first answer: None means the samples that are stored with the model, if there are any; its
        own samples are drawn in few steps, see `held_out.own_samples`.
      background: `white` or `black`, put under transparent pixels of image files; empty: that with which
        the model was trained, without which they are refused.
      white: its value in image files of 16 bits, see `core.data_config.Preprocessing`; 0: as in training.

    Raises:
      DataError: too few images, or any that can't be read without a guess.
      ConfigError: an imported network whose noise levels were not stated; another background, or one (or a
        white) without image files.
    """
    check_stated(model.record, model.name)
    if background and background not in BACKGROUNDS:
        raise ConfigError(unknown("background", background, BACKGROUNDS))
    files = isinstance(images, str | Path) and Path(images).suffix not in (".npy", ".npz")
    if (background or white) and not files:
        stated = f"background={background!r}" if background else f"white={white}"
        raise ConfigError(f"{stated} is for pixels of image files, of which none are given")
    if isinstance(images, EvalImages):
        return images
    n = ranges.whole("n", n, 1, meaning="how many images")
    ablation = "mean" if reference else "zero"  # references that are wanted must be there
    config = SweepConfig(ablations=(ablation,), images=n, reference_images=reference)
    trained = model.config
    given_images, condition = model.record.get(factories.WITH_IMAGES, (None, None))
    if images is None and given_images is not None:
        return accompanying_images(model.denoiser, config, given_images, condition)
    if images is None and brief and (stored := stored_samples(Path(model.origin), model.denoiser, config)):
        return stored
    if images is None and trained is not None and trained.data.name in DRAWN:
        return drawn_images(model.denoiser, trained.data, config, cache_folder())
    if images is None:
        return own_samples(model.denoiser, config, seed=0, brief=brief)
    prepared = DEFAULT if trained is None else trained.data.preprocessing
    prepared = dataclasses.replace(
        prepared, background=background or prepared.background, white=white or prepared.white
    )
    if faces := _celeba_folder(model, images):
        data = None if trained is None else trained.data
        classes = "" if data is None else data.classes
        return held_out_faces(model.denoiser, data, faces, config, prepared, classes, cache_folder())
    return images_from(
        images if isinstance(images, str | Path) else whole_array(images),
        model.denoiser,
        config,
        preprocessing=prepared,
        trained_on=_trained_on(model),
        sources=condition_sources.with_class_names(model.record, condition_sources.ConditionSources()),
    )


def _celeba_folder(model: Any, images: Given) -> str | None:
    """The folder of CelebA that `images` is, of which held-out ones are taken; None for a model that was
    trained on a folder of images, and knows which."""
    if not isinstance(images, str | Path) or _trained_on(model) is not None:
        return None
    folder = celeba_folder(images)
    return None if folder is None else str(folder)


def number_wanted(
    model: Any, images: Given, n: int | None, most: int, *, least: int = 1, with_others: bool = False
) -> int:
    """`n`, how many images are wanted; None: all that are given, at most `most`, and of what is prepared
    already all.

    Args:
      least: that are wanted, however few are given: then `eval_images` says what is missing.
      with_others: whether as many others are taken for replacements, so that half of those given are left.

    Raises:
      ConfigError: another `n` than there are in what is prepared already.
    """
    if isinstance(images, EvalImages):
        there = len(images.scored)
        if n not in (None, there):
            raise ConfigError(
                f"n={shorten(n)}: {there} images are prepared already; leave n out, or prepare others"
            )
        return there
    if n is not None:
        return n
    there = how_many(model, images)
    return most if there is None else max(least, min(most, there // (1 + with_others)))


def _trained_on(model: Any) -> frozenset[str] | None:
    """Digests of the images that a model was trained on; None: not known."""
    digests = model.record.get(TRAINING_IMAGES)
    return None if digests is None else frozenset(digests)
