"""Building blocks of plants: networks as functions of a gain, lists of heads."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import jax
import numpy as np

from mechdiff.core.config import UNetConfig
from mechdiff.core.types import PyTree
from mechdiff.models.stages import stages
from mechdiff.validation.planted import datasets

STEPS = 1000  # timesteps of the noise schedule
BRANCHES = ("down0.block0", "down1.block0", "mid.block0", "mid.block1")  # with norms that hidden has alone
Pair = tuple[str, str, int]  # two components, and the sign of their interaction (positive: redundant)
Quarter = tuple[int, int]  # row and column, 0 or 1

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Wired:
    """A planted network before its gain is fitted.

    Attributes:
      draw_images: `(rng, count, side)` -> images.
      params_of: gain -> parameters.
      signs: planted component -> 1 if ablating it raises the loss, -1 if it lowers the loss.
      fit: `best`, the gain of the first planted component that denoises best, as training would find it;
        `balanced`, the one at which its pooled relative loss increase is hardly above 0; None: gain 1.
      pairs: components that act jointly.
      window: half-open interval of t outside of which the planted components have no effect.
      quarter: of the image outside of which they have no effect.
    """

    draw_images: datasets.PlantedImages
    params_of: Callable[[float], PyTree]
    signs: dict[str, int]
    fit: Literal["best", "balanced"] | None = "best"
    pairs: tuple[Pair, ...] = ()
    window: tuple[int, int] | None = None
    quarter: Quarter | None = None


def all_heads(unet: UNetConfig) -> list[tuple[str, int]]:
    """Stage and number of every head, in the order of the forward pass."""
    attention = [stage for stage in stages(unet) if stage.op == "attention"]
    return [(stage.name, head) for stage in attention for head in range(unet.heads[stage.level])]


def head_name(head: tuple[str, int]) -> str:
    """The component's name of a head."""
    stage, index = head
    return f"{stage}.head{index}"


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, drawn at random."""
    return options[int(rng.integers(len(options)))]


def copied(params: PyTree) -> PyTree:
    """Parameters whose arrays can be written to."""
    return jax.tree.map(np.copy, params)
