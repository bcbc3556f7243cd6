"""Conditions of foreign networks: channels of the input, and rows of a class embedding table."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.models.pretrained.files.tensors import State

IMAGE_CHANNELS = (1, 3)  # gray or RGB


@dataclasses.dataclass(frozen=True)
class Channels:
    """Channels of a network's input and output.

    Attributes:
      image: of the noisy image.
      condition: of what the noisy image is joined with; 0: nothing.
      position: of the condition among the input channels.
      variances: whether half of the output are learned variances.
    """

    image: int
    condition: int
    position: Literal["last", "first"]
    variances: bool


def channels(
    what: str, inputs: int, outputs: int, position: Literal["last", "first"] | None = None, image: int = 0
) -> Channels:
    """The channels of a network's input and output: image, condition, variances.

    Args:
      what: the format, for messages.
      position: of the condition among the input channels, if it was stated.
      image: channels of the image, if known; 0: to be inferred from `inputs` and `outputs`.

    Raises:
      ConfigError: channels that are not those of images; a condition whose position was not stated, or a
        stated one that does not exist.
    """
    image = image or _image(what, inputs, outputs, position is not None)
    condition = inputs - image
    if condition and position is None:
        raise ConfigError(
            f"{what} option in_channels={inputs} with out_channels={outputs}: a network conditioned by "
            f"channels; no file says where these {condition} lie, so state it: --condition=last (behind the "
            "noisy image) or --condition=first"
        )
    if position and not condition:
        raise ConfigError(f"--condition={position}: this network has no condition channels; leave it out")
    return Channels(image, condition, position or "last", outputs == 2 * image)


def _image(what: str, inputs: int, outputs: int, conditioned: bool) -> int:
    """Channels of the image, the smallest reading: an output of 6 is an image with variances, but 6 in and 6
    out are one only if it is `conditioned`."""
    for image in IMAGE_CHANNELS:
        if outputs == image and inputs >= image:
            return image
        if outputs == 2 * image and inputs >= image and (conditioned or inputs != outputs):
            return image
    if inputs not in IMAGE_CHANNELS:
        doubled = inputs == outputs and outputs in [2 * image for image in IMAGE_CHANNELS]
        way_out = "; a condition beside the image, and learned variances: state --condition=last or first"
        raise ConfigError(
            f"{what} option in_channels={inputs} with out_channels={outputs} is not supported; images have "
            f"1 or 3 channels (latents are not images){way_out if doubled else ''}"
        )
    raise ConfigError(
        f"{what} option out_channels={outputs} is not supported; only {inputs}, or {2 * inputs} with learned "
        f"variances, of in_channels={inputs}"
    )


def condition_last(state: State, name: str, split: Channels) -> State:
    """The state with the first convolution, tensor `name`, reordered: the condition comes after the noisy
    image."""
    kernel = state.get(name)
    inputs = split.image + split.condition
    if not split.condition or split.position == "last" or kernel is None or kernel.shape[1:2] != (inputs,):
        return state
    order = np.roll(np.arange(inputs), -split.condition)
    return {**state, name: np.ascontiguousarray(kernel[:, order])}


def table_rows(state: State, name: str) -> int:
    """Rows of a table of classes in a file; 0 if there is none."""
    return len(state[name]) if name in state and state[name].ndim == 2 else 0


def classes(rows: int, null_class: bool | None, what: str) -> dict[str, int | bool]:
    """The fields `classes` and `null_class` of a network with an embedding table of `rows` rows.

    Raises:
      ConfigError: a null class is stated for a table without room for one.
    """
    if null_class and rows < 2:
        raise ConfigError(f"--null_class: {what} has a table of {rows} classes; a null class needs another")
    return {"classes": rows - bool(null_class), "null_class": bool(null_class)} if rows else {}


def check_told(state: State, names: tuple[str, ...], path: Path, way_out: str) -> None:
    """Refuses tensors of classes if the config does not mention classes.

    Raises:
      CheckpointError: it names the tensor.
    """
    for name in names:
        if name in state:
            raise CheckpointError(f"{path} has {name}, but its config says nothing of classes; {way_out}")
