"""Denoisers returned by a user's function: `module:function` in place of a model's folder.

    def denoiser():
        return mechdiff.models.traced.wrap(fn, params, schedule=schedule, example=(x, t))

The function takes no arguments and returns the denoiser; or `(denoiser, images)`, or `(denoiser, images,
condition)`, with the images on which it is examined if no others are given.
"""

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mechdiff.core.config import DataConfig, DiffusionConfig, ExperimentConfig
from mechdiff.core.errors import ConfigError, MechdiffError, shorten, unknown
from mechdiff.core.types import PyTree
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.models.traced.denoiser import TracedDenoiser

FUNCTION_FACTS = "function"  # key of a record: facts of a network that a function returned; see `facts`
WITH_IMAGES = "images_and_condition"  # key of a record: the images returned with it; not JSON-ready
_NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)")
_HOW = "return mechdiff.models.traced.wrap(fn, params, schedule=..., example=(x, t))"


class FactoryResult(NamedTuple):
    """The result of a factory.

    Attributes:
      denoiser: to be examined.
      images: to examine it on, `(images, height, width, channels)` in [-1, 1] or bytes; None: not given.
      condition: of the images, leaves `(images, ...)`.
    """

    denoiser: Examinable
    images: np.ndarray | None = None
    condition: PyTree = None


def is_factory(model: str | Path) -> bool:
    """Whether `model` names a function, not a folder.

    Example:
      >>> is_factory("experiments.examples.nnx_unet:denoiser"), is_factory("runs/faces/model")
      (True, False)
    """
    return _NAME.fullmatch(str(model)) is not None and not Path(model).exists()


def name_of(model: str | Path) -> str:
    """The name of a factory's denoiser in results.

    Example:
      >>> name_of("experiments.examples.nnx_unet:denoiser")
      'nnx_unet.denoiser'
    """
    module, _, function = str(model).partition(":")
    return f"{module.rpartition('.')[2]}.{function}"


def make(model: str | Path, name: str = "") -> FactoryResult:
    """Calls the factory that `model` names.

    The module is searched for on Python's path and in the working directory.

    Args:
      model: `module:function`.
      name: of the denoiser in results; `name_of(model)` if empty.
    Raises:
      ConfigError: no such module or function, an error in it, or a result that is not a denoiser.
    """
    function = _function(str(model))
    try:
        result = function()
    except MechdiffError as error:
        raise ConfigError(f"{model}: {error}") from error
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(f"{model}() failed: {_line(error)}; it is called without arguments") from error
    returned = result if isinstance(result, tuple) else (result,)
    if not 1 <= len(returned) <= 3 or not isinstance(returned[0], Denoiser | TracedDenoiser):
        raise ConfigError(f"{model} returns {shorten(result)}, which is not a denoiser; {_HOW}")
    denoiser, *extras = returned
    named = dataclasses.replace(denoiser, name=name or name_of(model))
    return FactoryResult(named, *extras)


def config_of(denoiser: Examinable) -> ExperimentConfig:
    """A config for a network whose training is unknown: only T and, for a UNet, its configuration are set."""
    data, steps = DataConfig(name="unknown", n_train=0, n_test=0), denoiser.schedule.steps
    config = ExperimentConfig(name=denoiser.name, data=data, diffusion=DiffusionConfig(steps=steps))
    return dataclasses.replace(config, unet=denoiser.unet) if isinstance(denoiser, Denoiser) else config


def facts(model: str | Path, denoiser: Examinable) -> dict[str, Any]:
    """Facts of a network that its config can't hold, JSON-ready: size, image shape, noise levels."""
    return {
        "name": str(model),
        "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(denoiser.params)),
        "image_shape": list(denoiser.image_shape),
        "log_snr": np.asarray(denoiser.schedule.log_snr, np.float64).tolist(),
    }


def record_of(model: str | Path, result: FactoryResult) -> dict[str, Any]:
    """The record of a network without a training record: its facts, and the images returned with it."""
    images = {} if result.images is None else {WITH_IMAGES: (np.asarray(result.images), result.condition)}
    return {FUNCTION_FACTS: facts(model, result.denoiser), **images}


def _function(model: str) -> Any:
    match = _NAME.fullmatch(model)
    if match is None:
        raise ConfigError(f"{model!r} is not of the form module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(match["module"])
    except ModuleNotFoundError as error:
        if error.name is None or not match["module"].startswith(error.name):
            raise ConfigError(f"module {match['module']!r} can't be imported: {_line(error)}") from error
        raise ConfigError(
            f"no module {match['module']!r} for --model={model}; run in the folder that holds it, or put "
            "that on PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"module {match['module']!r} can't be imported: {_line(error)}") from error
    function = getattr(module, match["function"], None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        raise ConfigError(unknown(f"function of {match['module']}", match["function"], names))
    return function


def _line(error: Exception) -> str:
    """An error's type and its first line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
