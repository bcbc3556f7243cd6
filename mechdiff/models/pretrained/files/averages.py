"""Raw and averaged (EMA) weights, told apart by the names of folders, files and tensors."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from mechdiff.core.errors import CheckpointError

OTHER = {"raw": "ema", "ema": "raw"}
POOL = "(?!_?pool)"  # average pooling, a layer
SHADOW = "shadow(?=$|[.]|_?(ema|params?|weights?|model))"  # else what networks remove from images
AVERAGE = f"ema|{SHADOW}|averaged?{POOL}|avg{POOL}|swa|polyak"
DENIED = f"(non?|not|without|w_?o|pre)[^a-z]?({AVERAGE})"
RAW = re.compile(rf"(^|[^a-z])({DENIED}|raw|online)([^a-z]|$)")
WORD_BEGINS = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # in `netEMA`, `EMAModel`
AVERAGED = re.compile(rf"(^|[^a-z])({AVERAGE})([^a-z]|$)")


def named(name: str) -> str:
    """`raw` or `ema`, if a name says so, else nothing.

    Example:
      >>> [named(name) for name in ("unet_ema", "unet_without_ema", "netEMA", "schema")]
      ['ema', 'raw', 'ema', '']
    """
    name = spaced(name).lower()
    return "raw" if RAW.search(name) else "ema" if AVERAGED.search(name) else ""


def spaced(name: str) -> str:
    """A name with its words apart, which may just begin with a capital: `netEMA` as `net_EMA`."""
    return WORD_BEGINS.sub("_", name)


def unaveraged(name: str) -> str:
    """A `spaced` name without the word that says it is an average.

    Example:
      >>> unaveraged("generator_ema."), unaveraged("ema_unet."), unaveraged("netEMA.")
      ('generator', 'unet.', 'net')
    """
    return re.sub(AVERAGED.pattern, "", spaced(name), flags=re.IGNORECASE)


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
    outer = folder.parent.parent
    if not kind and (outer / folder.name).is_dir():  # `unet/` beside `ema/unet/`
        kind = named(folder.parent.name)
    elif not kind:  # `train/unet/` beside it; other folders of whatever name are other runs
        alike = [path.parent.name for path in outer.glob(f"*/{glob.escape(folder.name)}")]
        kind = kind_of(folder.parent.name, alike) if any(not unaveraged(name) for name in alike) else ""
    if kind != weights and (kind or weights == "ema"):
        said = {"ema": "is the averaged one", "raw": "is the raw one", "": "names nothing averaged"}[kind]
        raise CheckpointError(f"--weights={weights}: {file} {said}; leave it out to read these")
