"""Names of version 0.1, so that its saved configs, models, results and reports stay readable, its commands
run, and scripts find modules that moved into rooms."""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# class of a config -> its field then -> its field now
CONFIG_FIELDS = {
    "DataConfig": {"level": "complexity"},
    "SweepConfig": {"kinds": "ablations", "mean_images": "reference_images"},
}

# of saved datasets: dimensions and variables then -> now
DATASET_NAMES = {
    "kind": "ablation",
    "part": "component_type",
    "normalised_entropy": "normalized_entropy",
    "synergy": "interaction",
    "dose": "gate",
    "damage": "relative_increase",  # of random sets of channels
}

# of a training record: entries then -> now
RECORD_NAMES = {"memorisation": "memorization"}

# of launchers: flags then -> now
FLAG_NAMES = {"doses": "gates", "kinds": "sources", "every_level": "every_timestep"}

# of saved datasets: attributes then -> now
ATTRIBUTE_NAMES = {"subject": "denoiser", "pictures": "images_total"}

# of the package: modules then -> now. Names within them may have changed too.
MODULES = {
    "attention": "models.attention",
    "attribution": "circuits.attribution",
    "capture": "sweeps.activations",
    "config": "core.config",
    "devices": "core.devices",
    "effects": "analysis.effects",
    "engine": "sweeps.execution.engine",
    "errors": "core.errors",
    "interchange": "sweeps.interchange",
    "interop": "models.pretrained",
    "layers": "models.layers",
    "planted": "validation.planted",
    "presets": "core.presets",
    "replacements": "sweeps.replacements",
    "sampler": "diffusion.samplers",
    "schedules": "diffusion.schedules",
    "screening": "circuits.screening",
    "types": "core.types",
    "unet": "models.unet",
}


class OldModules(MetaPathFinder, Loader):
    """Finds modules of `MODULES` by their old names, where Python has found none; last of `sys.meta_path`.

    Example:
      >>> from mechdiff.layers import GroupNorm
      >>> GroupNorm.__module__
      'mechdiff.models.layers'
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == "mechdiff" and name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        package, _, name = module.__name__.rpartition(".")
        sys.modules[module.__name__] = importlib.import_module(f"{package}.{MODULES[name]}")
