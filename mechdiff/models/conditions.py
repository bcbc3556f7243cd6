"""Conditions of a UNet besides the noisy image and t: the class of each image, or another image.

A condition is `{"label": ..., "image": ...}` with the entries that the network's configuration names; a
network that takes one of them may be given that array alone. Leaves have one entry per row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from mechdiff.core.config import UNetConfig
from mechdiff.core.errors import ConfigError, shorten
from mechdiff.core.types import AnyArray, PyTree

Rows = Shaped[AnyArray, "rows ..."]
NAMES = ("label", "image")


@dataclasses.dataclass(frozen=True)
class Takes:
    """The conditions of a network that can be read from image files.

    Attributes:
      classes: number of classes; 0: unconditional.
      null_label: the label that stands for no class; None: there is none.
      channels: of the image condition; 0: none.
    """

    classes: int = 0
    null_label: int | None = None
    channels: int = 0


def taken(network: Any) -> Takes:
    """The conditions of a network: a UNet's configuration, or a traced network.

    For a traced network they are the attributes `classes` and `null_label` of its function
    (`TracedNetwork.fn`), if it has them.

    Example:
      >>> taken(UNetConfig(classes=10))
      Takes(classes=10, null_label=10, channels=0)
    """
    if isinstance(network, UNetConfig):
        return Takes(network.classes, network.null_label, network.condition_channels)
    function = getattr(network, "fn", None)
    return Takes(getattr(function, "classes", 0), getattr(function, "null_label", None))


def takes(config: UNetConfig) -> tuple[str, ...]:
    """Which of `label` and `image` a network takes."""
    taken = (config.takes_labels, config.condition_channels > 0)
    return tuple(name for name, is_taken in zip(NAMES, taken, strict=True) if is_taken)


def resolve(config: UNetConfig, condition: Any) -> tuple[Rows | None, Rows | None]:
    """The labels and the images of a condition, checked; None for one that the network does not take.

    Args:
      condition: a mapping of `label` and `image`, or one of them alone. Labels: integers in [0,
        `config.classes`), `config.null_label` for no class; real numbers for `class_embedding` `timestep`,
        `(rows, width)` for `identity`. Images: NHWC of the noisy image's side, `config.condition_channels`.

    Raises:
      ConfigError: a condition that is missing, not taken by the network, or of another shape or range.

    Example:
      >>> resolve(UNetConfig(classes=10), np.array([3, 10]))
      (array([ 3, 10]), None)
    """
    names = takes(config)
    if condition is None and names:
        raise ConfigError(
            f"this network is conditioned on {_described(config)}; give one per row as the condition "
            "(EvalSet(..., condition=...), predict(..., condition=...))"
        )
    if condition is None:
        return None, None
    if not names:
        raise ConfigError("this network takes no condition: it has no classes and no condition channels")
    by_name = dict(condition) if isinstance(condition, dict) else {names[0]: condition}
    if set(by_name) != set(names):
        raise ConfigError(
            f"condition with {', '.join(map(str, by_name))}: this network takes {' and '.join(names)}"
        )
    label, image = by_name.get("label"), by_name.get("image")
    if label is not None:
        label = _checked_label(config, label)
    if image is not None:
        image = _checked_image(config, image)
    return label, image


def example(config: UNetConfig) -> dict[str, Rows] | None:
    """A condition of zeros, of one row, in the right shapes; None for a network that takes none."""
    side, by_name = config.image_size, {}
    if config.takes_labels:
        width = config.embedding_width
        shape = (1, width) if config.class_embedding == "identity" else (1,)
        by_name["label"] = np.zeros(shape, np.int32 if config.class_embedding == "table" else np.float32)
    if config.condition_channels:
        by_name["image"] = np.zeros((1, side, side, config.condition_channels), np.float32)
    return by_name or None


def at(condition: PyTree, indices: Any) -> PyTree:
    """The entries of a condition at `indices`: ints, a slice, or a tuple of them for its first axes; of None,
    None.

    Example:
      >>> at({"label": np.array([3, 5, 8])}, slice(2))
      {'label': array([3, 5])}
    """
    return jax.tree.map(lambda leaf: np.asarray(leaf)[indices], condition)


def check(network: Any, condition: Any) -> None:
    """Checks a condition as `resolve` does, if `network` is a UNet's configuration; of a traced network with
    classes (`taken`), that labels are whole numbers in range: its function would take any without a word.

    Raises:
      ConfigError: as `resolve`.
    """
    if isinstance(network, UNetConfig):
        resolve(network, condition)
    elif taken(network).classes:
        _check_labels_of_function(condition, taken(network))


def of_rows(network: Any, condition: Any, rows: int) -> Any:
    """A condition as a user gives it, with arrays for lists and numbers; checked as by `check`.

    Args:
      rows: how many images it is for.

    Raises:
      ConfigError: as `resolve`, or another number of entries than images.

    Example:
      >>> of_rows(UNetConfig(classes=10), [3, 10], 2)
      array([ 3, 10])
    """
    condition = jax.tree.map(_as_array, condition, is_leaf=_of_numbers)
    check(network, condition)
    for leaf in jax.tree.leaves(condition):
        if leaf.shape[:1] != (rows,):
            raise ConfigError(
                f"a condition of shape {leaf.shape} for {rows} images; give one entry for each of them, such "
                "as a list of classes"
            )
    return condition


def _of_numbers(value: Any) -> bool:
    """Whether it is a list of numbers, or of lists of them, in place of an array; a list of arrays is a
    condition of several entries."""
    leaves = jax.tree.leaves(value)
    return isinstance(value, list) and not any(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves)


def _as_array(value: Any) -> AnyArray:
    if isinstance(value, jax.Array):
        return value
    try:
        return np.asarray(value)
    except ValueError:  # of lists of several lengths
        raise ConfigError(f"condition {shorten(value)}: expected an array, one entry per image") from None


def _described(config: UNetConfig) -> str:
    text = {
        "label": f"one of {config.classes} classes" if config.classes else "a class embedding",
        "image": f"an image of {config.condition_channels} channels",
    }
    return " and ".join(text[name] for name in takes(config))


def _checked_label(config: UNetConfig, label: Any) -> Rows:
    label = label if isinstance(label, jax.Array) else np.asarray(label)
    rank = 2 if config.class_embedding == "identity" else 1
    if label.ndim != rank:
        expected = "(rows, width)" if rank == 2 else "(rows,): one for each image"
        raise ConfigError(f"labels of shape {label.shape}: expected {expected}")
    if config.class_embedding != "table":
        return label
    _check_range(label, taken(config))
    return label


def _check_labels_of_function(condition: Any, takes: Takes) -> None:
    """Checks what a function with classes is given; it may be told them as vectors too."""
    if isinstance(condition, dict) and set(condition) == {"label"}:
        raise ConfigError("a function is given the labels alone, not under a name: one integer per row")
    if not isinstance(condition, np.ndarray | jax.Array):
        return
    if condition.ndim == 1:
        _check_range(condition, takes)
    elif jnp.issubdtype(condition.dtype, jnp.integer) and condition.shape[1:] != (takes.classes,):
        raise ConfigError(
            f"labels of shape {condition.shape}: expected (rows,), one for each image; or vectors of "
            f"{takes.classes} classes"
        )


def _check_range(label: Any, takes: Takes) -> None:
    label = label if isinstance(label, jax.Array) else np.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ConfigError(f"labels of type {label.dtype}: expected integers, one per row")
    if isinstance(label, jax.core.Tracer):
        return
    values = np.asarray(label)
    wrong = values[((values < 0) | (values >= takes.classes)) & (values != takes.null_label)]
    if wrong.size:
        null = "" if takes.null_label is None else f", or {takes.null_label} for none"
        raise ConfigError(f"label {wrong[0]} is out of range; 0 to {takes.classes - 1}{null}")


def _checked_image(config: UNetConfig, image: Any) -> Rows:
    expected = (config.image_size, config.image_size, config.condition_channels)
    if np.ndim(image) != 4 or tuple(np.shape(image)[1:]) != expected:
        raise ConfigError(f"condition images of shape {np.shape(image)}: expected (rows, {expected})")
    return image
