"""Models of others, read into ours, and ours written for others.

`read(folder)` opens a diffusers `UNet2DModel` folder or a guided-diffusion (ADM) state dict with its flags;
`write_diffusers(folder, ...)` is the way out. Tensors come from safetensors files: no torch, and a pickle is
never opened.
"""

from pathlib import Path

from mechdiff.core.errors import ConfigError
from mechdiff.models.pretrained import adm, diffusers
from mechdiff.models.pretrained.diffusers import write_diffusers
from mechdiff.models.pretrained.imported import Imported
from mechdiff.storage import files

__all__ = ["Imported", "read", "write_diffusers"]


def read(folder: Path | str) -> Imported:
    """The model in a folder of any layout that is known.

    Raises:
      CheckpointError: a file is absent, truncated or a pickle; tensors are missing, unused or misshapen.
      ConfigError: an option that is unknown or not supported, by its name.
      DataError: a JSON file that can't be read.
    """
    folder = Path(folder)
    home = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder  # of a saved pipeline
    config = files.read_json(home / "config.json")
    if isinstance(config, dict) and config.get("_class_name") == "UNet2DModel":
        return diffusers.read(home, config, _scheduler(folder, home))
    if isinstance(config, dict) and "num_channels" in config:
        return adm.read(home, config)
    name = config.get("_class_name") if isinstance(config, dict) else None
    raise ConfigError(
        f"{home / 'config.json'} describes {name or 'no model known here'}; supported: diffusers' "
        "UNet2DModel (_class_name), and guided-diffusion's flags (num_channels, ...)"
    )


def _scheduler(folder: Path, home: Path) -> dict:
    """The scheduler's config, beside the network or in the pipeline's folder; empty without one."""
    for path in (home / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json"):
        if path.is_file():
            return files.read_json(path)
    return {}
