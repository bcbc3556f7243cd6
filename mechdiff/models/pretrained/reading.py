"""Opens a folder of any known layout: finds which one it is, and calls its reader."""

import dataclasses
from pathlib import Path
from types import ModuleType

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained import consistency, ddim, foreign
from mechdiff.models.pretrained.adm import reader as adm
from mechdiff.models.pretrained.diffusers import reader as diffusers
from mechdiff.models.pretrained.edm import reader as edm
from mechdiff.models.pretrained.files.configs import sections
from mechdiff.models.pretrained.files.folders import locate
from mechdiff.models.pretrained.imported import Imported, ImportedFunction, Stated
from mechdiff.models.pretrained.lucidrains import reader as lucidrains


def read(folder: Path | str, stated: Stated | None = None) -> Imported | ImportedFunction:
    """The model in a folder of any known layout.

    Args:
      folder: of the network; or a saved pipeline, or a trainer's checkpoint, with `unet/` in it.
      stated: the user's statements of what the files leave open.

    Raises:
      CheckpointError: a file is missing, truncated or a pickle; tensors are missing, unused or misshapen.
      ConfigError: an option is unknown or not supported, or is neither in the files nor stated; it is named.
      DataError: a config that can't be read.

    Example:
      >>> imported = read("ddpm-celebahq-256")  # doctest: +SKIP
      >>> apply_unet(imported.unet, imported.params, identity, x_t, t)  # doctest: +SKIP
    """
    stated = stated or Stated()
    source = locate(Path(folder), stated.weights)
    config = source.config
    if consistency.recognizes(config, source.scheduler):
        _check_bearing(stated, consistency)
        return consistency.read(source, stated)
    if config.get("_class_name") == "UNet2DModel":
        _check_bearing(stated, diffusers)
        return diffusers.read(source, stated)
    if "_class_name" not in config and not foreign.unsupported(config):
        for layout in (ddim, edm, adm, lucidrains):
            if layout.recognizes(config):
                _check_bearing(stated, layout)
                return layout.read(source, stated)
    inner = list(sections(config))
    for _, options in (("", config), *inner):
        if unsupported := foreign.unsupported(options):
            raise ConfigError(f"{source.described_by} describes {unsupported}")
    for where, options in inner:
        told = any(layout.recognizes(options) for layout in (ddim, edm, adm))
        told = told or not options.keys().isdisjoint((*lucidrains.TELLING, diffusers.TELLING))
        if "_class_name" not in config and told:
            raise ConfigError(
                f"{source.described_by} has options of a network under {shorten(where)[1:-1]}, too deep to "
                "be read; write them at its top level"
            )
    name = config.get("_class_name")
    if name is None and diffusers.TELLING in config:
        raise ConfigError(
            f"{source.described_by} has options of diffusers, but not which class they are of; write "
            f"_class_name: {diffusers.WHAT} if they are of that one"
        )
    shown = shorten(name)[1:-1] if isinstance(name, str) else "no model known here"
    raise ConfigError(
        f"{source.described_by} describes {shown}; supported: diffusers' UNet2DModel (_class_name), "
        "guided-diffusion's flags (num_channels, ...), ddim's config (model: ch, ...), lucidrains' "
        f"(dim_mults, ...), EDM's (sigma_data, ...); another network: {foreign.WAY_OUT}"
    )


def _check_bearing(stated: Stated, layout: ModuleType) -> None:
    """Refuses a statement that has no effect on networks of a layout: it may be a mistake.

    Raises:
      ConfigError: names the statement.
    """
    for field in dataclasses.fields(Stated):
        if getattr(stated, field.name) is not None and field.name not in layout.STATED:
            raise ConfigError(f"--{field.name} has no effect on a network of {layout.WHAT}; leave it out")
