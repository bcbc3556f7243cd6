"""Files of a foreign folder: the network's config, its scheduler, and related files."""

import dataclasses
import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mechdiff.core.errors import ConfigError, DataError
from mechdiff.models.pretrained.files.averages import OTHER, kind_of, named
from mechdiff.models.pretrained.files.configs import NAMES, config_file, describe, read_config, unread
from mechdiff.storage import files

SCHEDULER = "scheduler_config.json"
INDEX = "model_index.json"
LATENT = ("vae", "vqvae", "vqmodel", "vq_model", "movq", "first_stage_model", "autoencoder")
CLASS = "_class_name"
KINDS = {"raw": "raw weights", "ema": "averaged weights", "": "not said of which kind"}
LATENT_CLASSES = ("Autoencoder", "VQModel")  # how their names begin
SHOWN = 4  # names of folders in one line


@dataclasses.dataclass(frozen=True)
class ForeignFolder:
    """What was read of the folder of a foreign network.

    Attributes:
      home: folder of its weights.
      config: its options, as the file `described_by` holds them.
      scheduler: options of its scheduler; empty if there is none.
      notes: which of several things was read.
      text: whether the options are flags of a command line.
      runs: whether a command gives them; see `configs.Description`.
    """

    home: Path
    described_by: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]
    notes: tuple[str, ...]
    text: bool = False
    runs: bool = False


def locate(folder: Path, weights: str | None = None) -> ForeignFolder:
    """Reads what describes the network in a folder: itself, a pipeline, or a trainer's checkpoint.

    Args:
      weights: `raw` or `ema`, where folders of both lie side by side, such as `unet/` and `unet_ema/`.

    Raises:
      DataError: a file that is absent or can't be read.
      ConfigError: a latent-space network; configs that are ambiguous.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name the folder that holds it")
    home, notes = _home(folder, weights)
    bases = _bases(home, folder)
    _refuse_latents(bases)
    described_by = config_file(home)
    if not described_by.exists():
        raise DataError(_undescribed(described_by))
    described = describe(described_by)
    scheduler, more = _scheduler(home, bases)
    if others := unread(described_by):
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        more += (f"described by {described_by.name}; beside it, not read: {shown}",)
    if others := _undescribed_weights(home):
        more += (f"weights without a config lie in {_listed(others)}; not read",)
    notes += (*described.notes, *more)
    options, text, runs = described.options, described.text, described.runs
    return ForeignFolder(home, described_by, options, scheduler, notes, text, runs)


def _home(folder: Path, weights: str | None) -> tuple[Path, tuple[str, ...]]:
    """The network's own folder, and which others there are."""
    inside = _networks(folder)
    if not inside:
        home = folder.absolute()
        siblings = _networks(home.parent) if _may_hold(home.name) else []
        names = [str(other.relative_to(home.parent)) for other in siblings if other != home]
        names = names if named(folder.absolute().name) else [name for name in names if named(name)]
        return folder, (f"read {folder.name}/; {_listed(names)} beside it is not read",) if names else ()
    names = {path: str(path.relative_to(folder)) for path in inside}
    names |= {folder: ""} if config_file(folder).is_file() else {}
    kinds = {path: kind_of(name, names.values()) for path, name in names.items()}
    said = [path for path in names if weights in OTHER and kinds[path] == weights]
    plain = [path for path in names if not named(names[path])]
    chosen = said or (plain if weights not in OTHER else []) or list(names)
    if len(chosen) > 1:
        which = f"--weights={weights}: {folder}" if weights in OTHER else str(folder)
        itself = "describes a network and holds others" if folder in names else "holds several networks"
        raise ConfigError(f"{which} {itself} ({_listed(filter(None, names.values()))}); name one of them")
    notes = [_which(chosen[0], path, names, kinds) for path in names if path != chosen[0]]
    return chosen[0], tuple(notes)


def _which(read: Path, other: Path, names: dict[Path, str], kinds: dict[Path, str]) -> str:
    """The note on networks that were not read."""
    flag = f"--weights={kinds[other]} or " if kinds[other] != kinds[read] else ""
    shown, others = (names[path] or path.name for path in (read, other))
    return f"read {shown}/ ({KINDS[kinds[read]]}); for {others}/ give {flag}--from={other}"


def _networks(folder: Path) -> list[Path]:
    """Folders in a folder that describe a network: those called `unet`; or `raw`, `ema` and what they lie
    beside."""
    described = [p for p in sorted(folder.glob("*")) if any((p / name).is_file() for name in NAMES)]
    called = [path for path in described if _may_hold(path.name)]
    called += _in_folders_of_kinds(folder, described)
    return called if any("unet" in path.name.lower() for path in called) or not called else described


def _in_folders_of_kinds(folder: Path, described: list[Path]) -> list[Path]:
    """Networks one folder deeper, in one called raw or averaged that describes none: `ema/unet/`; and, where
    none of that name lies in `folder`, those of other folders, `train/unet/`: then of the other kind."""
    kinds = [path for path in sorted(folder.glob("*")) if named(path.name) and path not in described]
    inner = [path for kind in kinds for path in sorted(kind.glob("*")) if _may_hold(path.name)]
    inner = [path for path in inner if any((path / name).is_file() for name in NAMES)]
    for name in sorted({path.name for path in inner} - {path.name for path in described}):
        beside = sorted(folder.glob(f"*/{glob.escape(name)}"))
        inner += [path for path in beside if path not in inner and any((path / n).is_file() for n in NAMES)]
    return inner


def _may_hold(name: str) -> bool:
    return "unet" in name.lower() or bool(named(name))


def _listed(names: Iterable[str]) -> str:
    """Names of folders in a line, the first `SHOWN` of them."""
    names = [f"{name}/" for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _undescribed_weights(home: Path) -> list[str]:
    """Names of folders in a network's, or beside it, that by their names hold raw or averaged weights, but
    no config: a trainer may have left it out."""
    beside = home.absolute().parent.glob("*") if _may_hold(home.absolute().name) else ()
    folders = [path for path in sorted((*home.glob("*"), *beside)) if named(path.name) and path != home]
    return [p.name for p in folders if any(p.glob("*.safetensors")) and not unread(p / SCHEDULER)]


def _undescribed(path: Path) -> str:
    """The line for a folder without a config: which folders below have one, or what to write."""
    folder = path.parent
    below = [inner for pattern in ("*", "*/*") for inner in sorted(folder.glob(pattern)) if inner.is_dir()]
    described = [str(inner.relative_to(folder)) for inner in below if config_file(inner).is_file()]
    line = f"{path}: no such file or folder; "
    if described:
        return f"{line}networks are described in {', '.join(described[:3])}: name one of these folders"
    return f"{line}it has the network's options (or config.yaml or .toml, or its command line in flags.txt)"


def _bases(home: Path, folder: Path) -> list[Path]:
    """The network's folder, those above that belong to it, and the one that was named, in which it lies."""
    bases = [home, *_parents(home)]
    absolute = {base.absolute() for base in bases}
    return bases if folder.absolute() in absolute else [*bases, folder]


def _parents(home: Path) -> Iterator[Path]:
    """Folders above that belong to the network: its pipeline, its trainer's checkpoint, and its run. Of a
    link, those above the link come first. What lies above a folder with a scheduler is another's."""
    names = {home.absolute().name, home.resolve().name}  # of `.`, and of a link to it
    for parent in dict.fromkeys([home.absolute().parent, home.resolve().parent]):
        if any(_belongs(name, parent) for name in names):
            yield parent
            complete = any((parent / name).exists() for name in (INDEX, "scheduler", SCHEDULER))
            if parent.name.startswith("checkpoint"):
                yield parent.parent
            elif _may_hold(parent.name) and not complete:  # `unet/ema/`
                yield from _parents(parent)


def _belongs(name: str, parent: Path) -> bool:
    """Whether the folder above a network's is its pipeline or run: to be called `ema` or `my_unet` does not
    say so, as a folder of unrelated networks may hold it."""
    if name.lower().startswith("unet") or name in _index(parent):
        return True
    described = any((parent / usual).is_file() for usual in (INDEX, *NAMES))
    holds = any(path.is_dir() for path in parent.glob("[uU][nN][eE][tT]*"))
    return _may_hold(name) and (
        described or holds or parent.name == "unet" or parent.name.startswith("checkpoint")
    )


def _index(folder: Path) -> dict[str, Any]:
    """The parts of a saved pipeline, by name; empty if there is no index."""
    if not (folder / INDEX).is_file():
        return {}
    parts = files.read_json(folder / INDEX)
    return parts if isinstance(parts, dict) else {}


def _refuse_latents(bases: list[Path]) -> None:
    for base in bases:
        parts = [name for name in LATENT if (base / name).is_dir()]
        for name, value in _index(base).items():
            named = [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
            if (named and name in LATENT) or any(word.startswith(LATENT_CLASSES) for word in named):
                parts.append(name)
        if parts:
            raise ConfigError(
                f"{base} has a {parts[0]}: its network lives in the latents of that, which are not images; "
                "only networks on pixels are supported"
            )


def _indexed(base: Path) -> dict[str, str]:
    """The schedulers of a saved pipeline by its index: folder -> class."""
    classes = {name: value[-1] for name, value in _index(base).items() if isinstance(value, list) and value}
    return {name: kind for name, kind in classes.items() if str(kind).endswith("Scheduler")}


def _scheduler(home: Path, bases: list[Path]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The nearest scheduler's options, and notes if it is not in the network's own folder."""
    folders = [base / name for base in bases for name in dict.fromkeys(("", "scheduler", *_indexed(base)))]
    paths = [folder / SCHEDULER for folder in folders]
    present = [path for path in paths if path.is_file() or path.is_symlink()]
    if present and not present[0].exists():  # a link behind another scheduler is not needed
        raise DataError(
            f"{present[0]} is a link to {present[0].readlink()}, which is absent; fetch that file"
        )
    saved = [path for path in present if path.is_file()]
    if not saved:
        return {}, ()
    contents = [read_config(path) for path in saved]
    notes = [] if home in saved[0].parents else [f"noise levels are those of {saved[0]}"]
    said = contents[0].get(CLASS)
    indexed = _indexed(saved[0].parent.parent).get(saved[0].parent.name, said)
    if indexed != said:
        contents[0] = contents[0] | {CLASS: indexed}
        notes.append(
            f"read as {indexed}, which {INDEX} names, as diffusers does; the file says {said or 'no class'}"
        )
    notes += [
        f"{path} says otherwise and was not read"
        for path, content in zip(saved[1:], contents[1:], strict=True)
        if content != contents[0]
    ]
    return contents[0], tuple(notes)
