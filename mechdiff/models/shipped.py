"""Networks that come with the package, by name: a checkout has all of them, a wheel three."""

from pathlib import Path

from mechdiff.core.errors import CheckpointError, unknown
from mechdiff.storage import checksums
from mechdiff.storage.digests import PACKAGE

# Of a checkout, and of an installed wheel (where setup.py puts a part of it).
HOMES = (PACKAGE.parent / "checkpoints", PACKAGE / "checkpoints")


def home() -> Path:
    """The folder of shipped networks; empty or absent where none were installed."""
    return next((path for path in HOMES if path.is_dir()), HOMES[-1])


def names() -> tuple[str, ...]:
    """Names of all shipped networks, sorted."""
    return tuple(sorted(path.parent.name for path in home().glob(f"*/{checksums.NAME}")))


def folder(name: str) -> Path:
    """The exported folder of a shipped network; its digests are checked when it is loaded.

    Args:
      name: such as `cpu32-celeba-seed0`, see `names`.

    Raises:
      CheckpointError: no such network; the closest names, or all.
    """
    if name not in names():
        raise CheckpointError(unknown("shipped network", name, names()))
    return home() / name


def find(model: str | Path) -> Path:
    """`model` itself if something is there, else the shipped network of that name.

    Raises:
      CheckpointError: neither a folder nor the name of a shipped network.
    """
    path = Path(model)
    if path.exists():
        return path
    if str(model) in names():
        return folder(str(model))
    raise CheckpointError(f"no folder {path}, and no shipped network of that name: {', '.join(names())}")
