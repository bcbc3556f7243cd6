"""Denoisers of foreign functions, from what was read or saved of them."""

from collections.abc import Mapping
from typing import Any

from mechdiff.core.config import DiffusionConfig, UNetConfig
from mechdiff.core.errors import CheckpointError, unknown
from mechdiff.core.types import PyTree
from mechdiff.models.pretrained import lucidrains
from mechdiff.models.pretrained.imported import ImportedFunction
from mechdiff.models.traced import TracedDenoiser

BUILDERS = {lucidrains.WHAT: lucidrains.build}


def build(
    layout: str, options: Mapping[str, Any], params: PyTree, diffusion: DiffusionConfig, *, name: str = ""
) -> TracedDenoiser:
    """The denoiser of a layout.

    Args:
      layout, options, params, diffusion: as of `ImportedFunction`.
      name: shown in results; the layout's if empty.
    Raises:
      CheckpointError: a layout that is not known.
    """
    if layout not in BUILDERS:
        raise CheckpointError(unknown("layout of a foreign network", layout, BUILDERS))
    return BUILDERS[layout](options, params, diffusion, name or layout)


def shape_of(found: ImportedFunction) -> UNetConfig:
    """A config that says the shape of images and nothing else of the network: one level, all else default."""
    size, channels = found.options["image_size"], found.options["channels"]
    one_level = {"widths": (32,), "down_attention": (False,), "up_attention": (False,), "heads": (1,)}
    return UNetConfig(image_size=size, in_channels=channels, out_channels=channels, **one_level)
