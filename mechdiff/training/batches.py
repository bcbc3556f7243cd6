"""The data of a training run: images and classes of both splits, and the batch of every step."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Int

from mechdiff.core import processes
from mechdiff.core.config import ExperimentConfig
from mechdiff.core.errors import ConfigError
from mechdiff.data import Dataset, batch_at, batch_indices, class_labels, class_names, load


@dataclasses.dataclass(frozen=True, eq=False)
class RunData:
    """The data of a run.

    Attributes:
      train, test: images, the latter held out.
      train_labels, test_labels: the class of each; None for a network without classes.
    """

    config: ExperimentConfig
    train: Dataset
    test: Dataset
    train_labels: Int[np.ndarray, " train_images"] | None
    test_labels: Int[np.ndarray, " test_images"] | None


def load_run_data(config: ExperimentConfig, cache: Path) -> RunData:
    """Both splits; decoded images are cached in `cache`, unless the config names another folder.

    Raises:
      ConfigError: images or classes that don't fit the network.
      DataError: what `data.load` raises.
    """
    train, test = _load(config, "train", cache), _load(config, "test", cache)
    _check_channels(config, train)
    return RunData(config, train, test, _labels(config, train, all_classes=True), _labels(config, test))


def _load(config: ExperimentConfig, split: str, cache: Path) -> Dataset:
    """Images of a split; the first process decodes them, where others find them then."""
    read = functools.partial(load, config.data, config.unet.image_size, split, 0, cache)
    images = processes.in_first(read)
    return read() if images is None else images


def placed_batch(data: RunData, sharding: Sharding, step: int) -> tuple[Array, Array | None]:
    """The images of a step and their classes (None: no classes), on the devices; every process reads only the
    images of its own devices."""
    config, batch = data.config, data.config.train.batch

    def images(index: tuple[slice, ...]) -> np.ndarray:
        return batch_at(data.train, config.seed, step, batch, config.data.flip, index[0])

    placed = jax.make_array_from_callback((batch, *data.train.images.shape[1:]), sharding, images)
    if data.train_labels is None:
        return placed, None
    labels = data.train_labels[batch_indices(len(data.train), config.seed, step, batch)]
    return placed, jax.make_array_from_callback((batch,), sharding, labels.__getitem__)


def _labels(
    config: ExperimentConfig, dataset: Dataset, all_classes: bool = False
) -> Int[np.ndarray, " images"] | None:
    """The class of each image, for a network with classes.

    Args:
      all_classes: each class must have an image.
    """
    unet, names = config.unet, config.data.classes
    if unet.condition_channels or unet.class_embedding != "table":
        raise ConfigError(
            f"unet.condition_channels={unet.condition_channels}, class_embedding={unet.class_embedding!r}: "
            "training takes classes of a table only (unet.classes, data.classes)"
        )
    if bool(names) != bool(unet.classes):
        raise ConfigError(
            f"unet.classes={unet.classes} and data.classes={names!r}: both are needed, or neither (how many "
            "classes, and which label of the data they are)"
        )
    if not names:
        return None
    labels = class_labels(dataset, names, unet.classes)
    missing = np.setdiff1d(np.arange(unet.classes), labels)
    if all_classes and missing.size:
        called = class_names(dataset, names, unet.classes)[missing[0]]
        raise ConfigError(
            f"data.classes={names}: no training image is of class {missing[0]} ({called}) of {unet.classes}; "
            f"take more training images (now {len(labels)}), or fewer classes"
        )
    return labels


def _check_channels(config: ExperimentConfig, dataset: Dataset) -> None:
    channels, unet = dataset.images.shape[-1], config.unet
    if (channels, channels) != (unet.in_channels, unet.out_channels):
        raise ConfigError(
            f"images of data.name={dataset.name} have {channels} channel(s), but unet.in_channels="
            f"{unet.in_channels} and out_channels={unet.out_channels}; set these, or "
            "data.preprocessing.channels=gray (or rgb)"
        )
