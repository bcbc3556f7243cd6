"""Files of a foreign folder: the network's config, its scheduler, and related files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechdiff.core.errors import ConfigError, DataError
from mechdiff.models.pretrained.configs import config_file, read_config
from mechdiff.storage import files

NETWORKS = {"raw": "unet", "ema": "unet_ema"}  # sub-folders of pipelines and of trainers' checkpoints
SCHEDULER = "scheduler_config.json"
INDEX = "model_index.json"
LATENT = ("vae", "vqvae", "vqmodel", "vq_model", "movq", "first_stage_model", "autoencoder")
LATENT_CLASSES = ("Autoencoder", "VQModel")  # how their names begin


@dataclasses.dataclass(frozen=True)
class Place:
    """A foreign network's folder.

    Attributes:
      home: folder of its weights.
      config: its options, as the file `described_by` holds them.
      scheduler: options of its scheduler; empty if there is none.
      notes: which of several things was read.
    """

    home: Path
    described_by: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]
    notes: tuple[str, ...]


def locate(folder: Path, weights: str | None = None) -> Place:
    """Reads what describes the network in a folder: itself, a pipeline, or a trainer's checkpoint.

    Args:
      weights: `raw` or `ema`, where `unet/` and `unet_ema/` lie side by side.

    Raises:
      DataError: a file that is absent or can't be read.
      ConfigError: a latent-space network; configs that are ambiguous.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name the folder that holds it")
    home, notes = _home(folder, weights)
    bases = [home, *_parents(home)]
    _refuse_latents(bases)
    described_by = config_file(home)
    if not described_by.exists():
        raise DataError(_undescribed(described_by))
    config = read_config(described_by)
    scheduler, more = _scheduler(home, bases)
    return Place(home, described_by, config, scheduler, (*notes, *more))


def _home(folder: Path, weights: str | None) -> tuple[Path, tuple[str, ...]]:
    """The network's own folder, and which others there are."""
    there = {kind: folder / name for kind, name in NETWORKS.items() if config_file(folder / name).is_file()}
    if there and config_file(folder).is_file():
        names = ", ".join(f"{home.name}/" for home in there.values())
        raise ConfigError(
            f"{folder} describes a network and holds others ({names}); name one of those folders"
        )
    if not there:
        beside = {kind: name for kind, name in NETWORKS.items() if name != folder.name}
        others = [folder.parent / name for name in beside.values() if folder.name in NETWORKS.values()]
        others = [other.name for other in others if config_file(other).is_file()]
        return folder, (f"read {folder.name}/; {others[0]}/ beside it is not read",) if others else ()
    kind = weights if weights in NETWORKS else next(iter(there))
    if kind not in there:
        raise ConfigError(
            f"--weights={kind}: no {NETWORKS[kind]}/ in {folder}, only {next(iter(there.values())).name}/"
        )
    note = "read unet/ (raw weights); " if kind == "raw" else "read unet_ema/ (averaged weights); "
    other = "ema" if kind == "raw" else "raw"
    note += f"for {NETWORKS[other]}/ give --weights={other} or --from={folder / NETWORKS[other]}"
    return there[kind], (note,) if len(there) > 1 else ()


def _undescribed(path: Path) -> str:
    """The line for a folder without a config: which folders below have one, or what to write."""
    folder = path.parent
    below = [place for pattern in ("*", "*/*") for place in sorted(folder.glob(pattern)) if place.is_dir()]
    described = [str(place.relative_to(folder)) for place in below if config_file(place).is_file()]
    line = f"{path}: no such file or folder; "
    if described:
        return f"{line}networks are described in {', '.join(described[:3])}: name one of these folders"
    return f"{line}it has the network's options (or config.yaml, or its command line in flags.txt)"


def _parents(home: Path) -> Iterator[Path]:
    """Folders above that belong to the network: its pipeline, its trainer's checkpoint, and its run."""
    parent = home.resolve().parent
    if home.name.startswith("unet") or home.name in _index(parent):
        yield parent
        if parent.name.startswith("checkpoint"):
            yield parent.parent


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
                f"{base} has a {parts[0]}: its network lives in the latents of that, which are no images; "
                "only networks on pixels are supported"
            )


def _scheduler(home: Path, bases: list[Path]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The nearest scheduler's options, and notes if it is not in the network's own folder."""
    places = [path for base in bases for path in (base / SCHEDULER, base / "scheduler" / SCHEDULER)]
    places = [path for path in places if path.is_file()]
    if not places:
        return {}, ()
    contents = [read_config(path) for path in places]
    notes = [] if home in places[0].parents else [f"noise levels are those of {places[0]}"]
    notes += [
        f"{path} says otherwise and was not read"
        for path, content in zip(places[1:], contents[1:], strict=True)
        if content != contents[0]
    ]
    return contents[0], tuple(notes)
