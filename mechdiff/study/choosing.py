"""Which images a model is examined on: a user's, held-out ones of its data, or its own samples."""

import dataclasses
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from mechdiff.core.config import DRAWN, DataConfig, ExperimentConfig, Preprocessing, SweepConfig
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data.celeba_folder import celeba_folder
from mechdiff.data.images import DEFAULT
from mechdiff.models import conditions, factories
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.study.condition_sources import ConditionSources, with_class_names
from mechdiff.study.eval_images import EvalImages, with_phases
from mechdiff.study.held_out import held_out_images, own_samples
from mechdiff.study.inputs import (
    TRAINING_IMAGES,
    accompanying_images,
    conditioned_on,
    for_network,
    images_from,
    size_of,
)


@dataclasses.dataclass(frozen=True)
class ImageChoice:
    """Which images models are examined on; called with a model, it gives that model's.

    They are prepared like the model's training images, but for the fields of `config.data.preprocessing` that
    are not its defaults, or that `stated` names.

    Attributes:
      celeba: folder of CelebA in its layout, of which held-out images are taken; None: models that were not
        trained on synthetic faces are examined on their own samples.
      cache: folder where prepared images are kept.
      images: a folder of images, or an `.npy` or `.npz` file, that all models are examined on. Of a folder in
        the layout of CelebA, held-out images are taken, as of `celeba`.
      sources: the user's statements on the conditions of these images.
      stated: names of fields of `config.data.preprocessing` that hold for every model, defaults or not.

    Raises:
      ConfigError: both `celeba` and `images` are given, or a condition without images.
    """

    config: ExperimentConfig
    celeba: str | None
    cache: Path
    images: str | None = None
    sources: ConditionSources = ConditionSources()
    stated: Container[str] = ()

    def __post_init__(self) -> None:
        if self.celeba and self.images:
            raise ConfigError(
                f"--celeba={self.celeba} and --images={self.images} both name the images; give one of them"
            )
        if not self.images and (self.sources.classes or self.sources.conditions):
            raise ConfigError(
                "--classes and --conditions say what the images of --images=FOLDER are; give that too"
            )

    def __call__(
        self, denoiser: Examinable, trained: ExperimentConfig, record: Mapping[str, Any] | None = None
    ) -> EvalImages:
        """The images that a model is examined on: the user's, held-out ones of its data, or its own samples.

        Args:
          record: what is saved with the model, see `load.load_denoiser`.
        """
        record, sweep, preprocessing = record or {}, self.config.sweep, self._prepared(trained)
        # A model that was trained on a folder of images knows which; of CelebA's own splits they are not.
        told = not self.images or TRAINING_IMAGES in record
        of_celeba = None if told else celeba_folder(self.images)
        faces = str(of_celeba) if of_celeba else self.celeba
        if self.images and not faces:
            return _of_user(self.images, denoiser, sweep, preprocessing, self.sources, record)
        if factories.WITH_IMAGES in record and not faces:
            of_model, condition = record[factories.WITH_IMAGES]
            return accompanying_images(denoiser, sweep, of_model, condition)
        if trained.data.name in DRAWN and not self.images:
            return drawn_images(denoiser, trained.data, sweep, self.cache)
        if not faces:
            return own_samples(denoiser, sweep, self.config.seed)
        if self.sources.classes or self.sources.conditions:
            raise ConfigError(
                f"--classes and --conditions have no effect on CelebA, which {faces} is; its classes are "
                "attributes: --set=data.classes=NAME"
            )
        classes = self.config.data.classes or trained.data.classes
        return held_out_faces(denoiser, trained.data, faces, sweep, preprocessing, classes, self.cache)

    def _prepared(self, trained: ExperimentConfig) -> Preprocessing:
        """The preprocessing of a model's training images, with what is changed of it."""
        wanted = dataclasses.asdict(self.config.data.preprocessing)
        changed = {
            name: value
            for name, value in wanted.items()
            if name in self.stated or value != getattr(DEFAULT, name)
        }
        return dataclasses.replace(trained.data.preprocessing, **changed)


def drawn_images(denoiser: Examinable, data: DataConfig, config: SweepConfig, cache: Path) -> EvalImages:
    """Held-out images of a data set that is drawn, with their classes for a network that takes these.

    Raises:
      DataError: a network of other channels, or whose condition is not known of these images.
    """
    classes = classes_for(denoiser, data)
    return _matching(held_out_images(data, size_of(denoiser), config, cache, classes), denoiser)


def _of_user(
    path: str,
    denoiser: Examinable,
    config: SweepConfig,
    preprocessing: Preprocessing,
    sources: ConditionSources,
    record: Mapping[str, Any],
) -> EvalImages:
    """Images of a user's folder or file, without those that the model was trained on, where that is known."""
    trained_on = record.get(TRAINING_IMAGES)
    return images_from(
        path,
        denoiser,
        config,
        preprocessing=preprocessing,
        trained_on=None if trained_on is None else frozenset(trained_on),
        sources=with_class_names(record, sources),
    )


def held_out_faces(
    denoiser: Examinable,
    trained: DataConfig | None,
    path: str,
    config: SweepConfig,
    preprocessing: Preprocessing,
    classes: str,
    cache: Path,
) -> EvalImages:
    """Held-out images of CelebA, labeled by whether it is known that the model was not trained on them.

    Args:
      trained: data that the model was trained on; None: not known.
      path: folder of CelebA.
      classes: the attribute that is the class, for a network that takes one; empty: not stated.

    Raises:
      DataError: a folder that lacks something, or too few images.
    """
    faces = DataConfig(
        name="celeba", path=path, preprocessing=for_network(preprocessing, denoiser), classes=classes
    )
    images = held_out_images(faces, size_of(denoiser), config, cache, classes_for(denoiser, faces))
    if trained is not None and trained.name in ("celeba", "tfds"):
        return images
    label = f"CelebA images of {path}; not known whether the model was trained on them"
    label = with_phases(label, images.facts["preprocessing"])
    return dataclasses.replace(images, label=label, facts={**images.facts, "held_out": None})


def classes_for(denoiser: Examinable, data: DataConfig) -> int:
    """The number of a data set's classes that a network takes; 0: it is unconditional.

    Raises:
      DataError: its condition is something that the data set does not have.
    """
    if not isinstance(denoiser, Denoiser) or not conditions.takes(denoiser.unet):
        return 0
    if conditions.takes(denoiser.unet) != ("label",) or not denoiser.unet.classes:
        raise DataError(
            f"{denoiser.name} is conditioned on {conditioned_on(denoiser)}, which a data set "
            "of images does not hold; give what study.inputs.images_from makes of an array and its condition"
        )
    if not data.classes:
        drawn = "give images of known classes: --images=FOLDER --classes=SUBFOLDER=NUMBER,..."
        raise DataError(
            f"{denoiser.name} has {denoiser.unet.classes} classes; which label of {data.name} they are is "
            f"not known; {drawn if data.name in DRAWN else 'state it: --set=data.classes=NAME'}"
        )
    return denoiser.unet.classes


def _matching(images: EvalImages, denoiser: Examinable) -> EvalImages:
    """The images, if they have as many channels as the network takes."""
    channels, expected = images.scored.shape[-1], denoiser.image_shape[-1]
    if channels != expected:
        raise DataError(
            f"{denoiser.name} takes {expected} channel(s), but its data has {channels}; give others "
            "(--images=FOLDER)"
        )
    return images
