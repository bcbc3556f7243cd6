"""Raw and averaged (EMA) weights, told apart by the names of folders, files and tensors."""

import re
from collections.abc import Iterable
from pathlib import Path

from mechdiff.core.errors import CheckpointError

OTHER = {"raw": "ema", "ema": "raw"}
AVERAGE = "ema|shadow|averaged?|avg|swa"
DENIED = f"(non?|not|without|w_?o|pre)[^a-z]?({AVERAGE})"
RAW = re.compile(rf"(^|[^a-z])({DENIED}|raw|online)([^a-z]|$)")
AVERAGED = re.compile(rf"(^|[^a-z])({AVERAGE})([^a-z]|$)")


def named(name: str) -> str:
    """`raw` or `ema`, if a name says so, else nothing.

    Example:
      >>> [named(name) for name in ("unet_ema", "unet_without_ema", "ema_0.9999_100", "schema")]
      ['ema', 'raw', 'ema', '']
    """
    name = name.lower()
    return "raw" if RAW.search(name) else "ema" if AVERAGED.search(name) else ""


def unaveraged(name: str) -> str:
    """A name without the word that says it is an average.

    Example:
      >>> unaveraged("generator_ema."), unaveraged("ema_unet.")
      ('generator', 'unet.')
    """
    return re.sub(AVERAGED.pattern, "", name, flags=re.IGNORECASE)


def kind_of(name: str, beside: Iterable[str]) -> str:
    """`raw` or `ema`: what a name says, else what the names next to it leave open; empty if they don't say
    either.

    Example:
      >>> kind_of("unet", ["unet_ema", "unet"]), kind_of("unet", ["unet_non_ema"]), kind_of("unet", ["vae"])
      ('raw', 'ema', '')
    """
    others = {named(other) for other in beside} - {""}
    return named(name) or (OTHER[others.pop()] if len(others) == 1 else "")


def check_stated(weights: str | None, file: Path) -> None:
    """Refuses a statement on weights that the name of their file or folder denies, or, of averages, does not
    bear out. Files beside it count, and folders whose names contain its folder's (`unet`, `unet_ema`).

    Raises:
      CheckpointError: names the file.
    """
    if weights not in OTHER:
        return
    folder = file.absolute().parent
    folders = [path.name for path in folder.parent.glob("*") if folder.name in path.name]
    kind = kind_of(file.stem, [path.stem for path in folder.glob("*.safetensors")])
    kind = kind or kind_of(folder.name, folders)
    if not kind and (folder.parent.parent / folder.name).is_dir():  # `unet/` beside `ema/unet/`
        kind = named(folder.parent.name)
    if kind != weights and (kind or weights == "ema"):
        said = {"ema": "is the averaged one", "raw": "is the raw one", "": "names nothing averaged"}[kind]
        raise CheckpointError(f"--weights={weights}: {file} {said}; leave it out to read these")
