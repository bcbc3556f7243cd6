"""Builds denoisers from imported networks, just read or saved."""

from collections.abc import Mapping
from typing import Any

from mechdiff.core.config import DiffusionConfig, UNetConfig
from mechdiff.core.errors import CheckpointError, unknown
from mechdiff.core.types import PyTree
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.pretrained import consistency
from mechdiff.models.pretrained.edm import reader as edm
from mechdiff.models.pretrained.imported import Imported, ImportedFunction
from mechdiff.models.pretrained.lucidrains import reader as lucidrains
from mechdiff.models.traced import TracedDenoiser
from mechdiff.models.unet import identity_intervention

BUILDERS = {layout.WHAT: layout.build for layout in (lucidrains, edm, consistency)}


def build(
    layout: str, options: Mapping[str, Any], params: PyTree, diffusion: DiffusionConfig, *, name: str = ""
) -> TracedDenoiser:
    """The denoiser of an imported function.

    Args:
      layout, options, params, diffusion: attributes of `ImportedFunction`.
      name: shown in results; the layout's if empty.
    Raises:
      CheckpointError: an unknown layout.
    """
    if layout not in BUILDERS:
        raise CheckpointError(unknown("layout of a foreign network", layout, BUILDERS))
    return BUILDERS[layout](options, params, diffusion, name or layout)


def denoiser_of(imported: Imported | ImportedFunction, name: str) -> Denoiser | TracedDenoiser:
    """An imported network as a denoiser."""
    if isinstance(imported, ImportedFunction):
        return build(imported.layout, imported.options, imported.params, imported.diffusion, name=name)
    identity = identity_intervention(imported.unet)
    return Denoiser(name, imported.unet, imported.schedule, imported.params, identity)


def unet_of(imported: Imported | ImportedFunction) -> UNetConfig:
    """The network's configuration; for a function, `shape_of` it."""
    return shape_of(imported) if isinstance(imported, ImportedFunction) else imported.unet


def shape_of(imported: ImportedFunction) -> UNetConfig:
    """A placeholder configuration in which only the shape of images is true: one level, all else default."""
    size, channels = imported.options["image_size"], imported.options["channels"]
    one_level = {"widths": (32,), "down_attention": (False,), "up_attention": (False,), "heads": (1,)}
    return UNetConfig(image_size=size, in_channels=channels, out_channels=channels, **one_level)
