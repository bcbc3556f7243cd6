"""Which launchers there are, where they lie, and how one is imported.

In a checkout they are `experiments/NAME.py`; in a wheel the same files are `mechdiff/launchers/NAME.py`.
"""

import ast
import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType

from mechdiff.core.errors import ConfigError, unknown
from mechdiff.storage.digests import PACKAGE

ROOMS = {  # in the order of their use: room -> launchers, by the names of their files
    "training": ("train", "sample"),
    "models": ("import_checkpoint", "export_checkpoint"),
    "sweeps": (
        "sweep",
        "sweep_sequential",
        "sweep_sampling",
        "sweep_scaling",
        "sweep_patterns",
        "interchange",
    ),
    "circuits": ("screen", "interactions", "circuits"),
    "analysis": ("compare", "phases", "roles", "entropy"),
    "study": ("reproduce", "study", "examine", "collect", "claims"),
    "validation": ("planted", "calibrate"),
    "report": ("report",),
}
SHORT = {"import_checkpoint": "import", "export_checkpoint": "export"}  # what `mechdiff` calls them


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A launcher: its file's name, its name as a subcommand, its room, and its first line."""

    module: str
    command: str
    room: str
    summary: str


def all_launchers() -> list[Launcher]:
    """All launchers, by room; their first lines are read, and nothing is imported."""
    folder = home()
    return [
        Launcher(module, command_of(module), room, _summary(folder / f"{module}.py"))
        for room, modules in (ROOMS | {"others": _others(folder)}).items()
        for module in modules
        if (folder / f"{module}.py").is_file()
    ]


def command_of(module: str) -> str:
    """The subcommand of a launcher.

    Example:
      >>> command_of("import_checkpoint"), command_of("sweep_sampling")
      ('import', 'sweep-sampling')
    """
    return SHORT.get(module, module).replace("_", "-")


def load(module: str) -> ModuleType:
    """Imports a launcher, which defines its flags.

    Raises:
      ConfigError: an unknown launcher (closest named).
    """
    if module not in [launcher.module for launcher in all_launchers()]:
        raise ConfigError(unknown("launcher", module, [launcher.module for launcher in all_launchers()]))
    folder = home()
    if folder.parent == PACKAGE:
        return importlib.import_module(f"{PACKAGE.name}.{folder.name}.{module}")
    if str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))
    return importlib.import_module(f"{folder.name}.{module}")


def home() -> Path:
    """The folder of the launchers."""
    beside = PACKAGE.parent / "experiments"
    return beside if (beside / "_launch.py").is_file() else PACKAGE / "launchers"


def _others(folder: Path) -> tuple[str, ...]:
    listed = {module for modules in ROOMS.values() for module in modules}
    there = {path.stem for path in folder.glob("[a-z]*.py")}
    return tuple(sorted(there - listed))


def _summary(path: Path) -> str:
    """The first sentence of its docstring."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    line = " ".join(text.partition("\n\n")[0].split())
    return line.partition(": `")[0].partition(". ")[0].removesuffix(".") + "."
