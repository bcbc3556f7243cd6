"""Sweeps of models on the same images and noise: whether they can be paired, what is saved of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mechdiff.analysis.changes import changes
from mechdiff.api.classes import check_labels, for_other
from mechdiff.api.images import Given, eval_images
from mechdiff.api.result import Result, images_wanted, references, sweep
from mechdiff.core.config import UNetConfig, to_dict
from mechdiff.core.errors import ConfigError
from mechdiff.storage import files, labelled
from mechdiff.study.eval_images import EvalImages

SHARED = ("inputs", "images_sha256", "noise_seed", "preprocessing", "schedule")  # by all that are compared


def swept(
    models: Sequence[Any],
    images: Given,
    chooser: Any,
    settings: dict[str, Any],
    background: str = "",
    white: int = 0,
) -> list[Result]:
    """Sweeps of all models on the same images; where none are given, on those of `chooser`.

    Args:
      chooser: the model whose own images are taken then.
      settings: of `result.sweep`.
      background, white: of image files, see `images.eval_images`.

    Raises:
      ConfigError: the models would be swept on different images, or on images of other classes.
    """
    n, ablation = settings.get("n"), settings.get("ablation", "zero")
    of_files: dict[str, Any] = {"background": background, "white": white}
    choosing = [chooser] if images is None else models
    n = min(images_wanted(model, images, n, ablation) for model in choosing)
    if images is None:
        images = _of_one(chooser, models, eval_images(chooser, None, n, n, **of_files))
    reference = references(ablation, n)
    # All are prepared before the first sweep: whether they are the same is known before anything is computed.
    prepared = [eval_images(model, images, n, reference, **of_files) for model in models]
    if isinstance(images, EvalImages):
        prepared = [for_other(images, chooser, model) for model in models]
    for model, own in zip(models[1:], prepared[1:], strict=True):
        _check_same_images(models[0].name, prepared[0], model.name, own)
        check_labels(prepared[0], models[0], own, model)
    return [sweep(model, own, **settings) for model, own in zip(models, prepared, strict=True)]


def _of_one(chooser: Any, models: Sequence[Any], images: EvalImages) -> EvalImages:
    """Its own images, which say so where another of the models was trained on other data."""
    trained_on = [None if model.config is None else model.config.data for model in models]
    distinct = {data and (data.name, data.complexity) for data in trained_on}
    if len(distinct) == 1 or chooser.name in images.label:
        return images
    return dataclasses.replace(
        images, label=f"{images.label}, of the data that {chooser.name} was trained on"
    )


def _check_same_images(name: str, images: EvalImages, other: str, others: EvalImages) -> None:
    """Refuses scored images that differ: with those that each model prepares, effects can't be paired.

    Args:
      name, images: of one model, and those that it would be swept on.
      other, others: the same of another.

    Raises:
      ConfigError: they differ; says why, and the way out.
    """
    if np.array_equal(images.scored, others.scored):
        return
    prepared, otherwise = (str(side.facts.get("preprocessing")) for side in (images, others))
    if prepared != otherwise:
        raise ConfigError(
            f"{name} and {other} prepare images differently ({prepared} / {otherwise}), so effects can't be "
            "paired image by image; give an array of images in the models' own size (.npy), which is taken "
            "as it is"
        )
    raise ConfigError(
        f"{name} and {other} would be swept on different images: those that a model was trained on are left "
        "out, and they were not trained on the same; give images that none of them was trained on"
    )


def check_comparable(before: Any, after: Any) -> None:
    """Refuses two models whose effects can't be paired at each image and timestep.

    Raises:
      ConfigError: they have images of different shape, or different noise schedules.
    """
    shapes = [tuple(model.denoiser.image_shape) for model in (before, after)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"models of images {shapes[0]} and {shapes[1]} can't be paired image by image")
    log_snr, other = (np.asarray(model.denoiser.schedule.log_snr) for model in (before, after))
    if log_snr.shape != other.shape or not np.allclose(log_snr, other, atol=1e-4):
        raise ConfigError(f"{before.name} and {after.name} have different noise schedules: can't be paired")


def common_unet(models: Sequence[Any]) -> UNetConfig | None:
    """The UNet that all models are, where they are one."""
    unets = [getattr(model.denoiser, "unet", None) for model in models]
    return unets[0] if all(unet == unets[0] for unet in unets) else None


def together(
    results: Sequence[Result], labels: Sequence[str], unet: UNetConfig | None, **facts: Any
) -> xr.Dataset:
    """Effects of all sweeps and their differences, see `changes.changes`; attributes: `SHARED`, `facts`."""
    kept = {name: results[0].dataset.attrs.get(name) for name in SHARED}
    digests = [result.dataset.attrs.get("parameters_sha256") for result in results]
    kept["parameters_sha256"] = digests if all(digests) else None
    if unet is not None:
        facts["unet"] = to_dict(unet)
    facts = {name: value for name, value in {**kept, **facts}.items() if value is not None}
    return changes([result.dataset for result in results], labels, results[0].ablation, facts)


def save(folder: Path, dataset: xr.Dataset, frame: pd.DataFrame) -> Path:
    """Writes the dataset, the table and the page "what changed" into `folder`; returns the page's path."""
    from mechdiff.report import changes as page

    folder = files.ensure_writable(folder)
    labelled.replace(folder / f"{page.NAME}.zarr", dataset)
    files.write_atomic(folder / f"{page.NAME}.csv", frame.to_csv(index=False))
    return page.build(folder)
