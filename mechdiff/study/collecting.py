"""Collects packed networks of many examinations in one folder, the input of verdicts and the report.

Each examination leaves `cells/NAME.zip` and `manifest.json` in its folder. Together they make
  cells/NAME.zip   of every network
  manifest.json    settings shared by most of them, and of each network: command, code, start, other settings
  images.csv       every image used, once for each set of images: its name in its source, its use
                   (`scored` or `reference`), and the person in it where known
Folders of the machine that made them are left out of all three.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mechdiff.core.errors import ConfigError
from mechdiff.stats.clusters import PERSON
from mechdiff.storage import files, packed
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import packing

COLUMNS = ("images", "sha256", "place", "id", "use", "person")
MADE_WITH = ("command", "started", "code", "commit", "numerics", "devices")  # kept of each network's manifest


@dataclasses.dataclass(frozen=True)
class Examination:
    """A packed network and the manifest of its examination."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.path.stem


def find(folders: Sequence[str | Path]) -> list[Examination]:
    """All packed networks of results folders, or of folders that hold results folders.

    Raises:
      ConfigError: no packed network in a folder, or two different ones of one name.
    """
    examinations: dict[str, Examination] = {}
    for searched in map(Path, folders):
        cells = [*searched.glob(f"{packing.CELLS}/*.zip"), *searched.glob(f"*/{packing.CELLS}/*.zip")]
        if not cells:
            raise ConfigError(
                f"no {packing.CELLS}/*.zip in {searched} or its sub-folders; make some first "
                "(mechdiff examine)"
            )
        for path in cells:
            earlier = examinations.get(path.stem)
            if earlier is not None and earlier.path.read_bytes() != path.read_bytes():
                raise ConfigError(f"{earlier.path} and {path} are different networks of one name; rename one")
            examinations[path.stem] = Examination(
                path,
                files.read_record(
                    path.parents[1] / "manifest.json", {"config": dict}, {"command": (list, NoneType)}
                ),
            )
    return [examinations[name] for name in sorted(examinations)]


def collect(folders: Sequence[str | Path], folder: Path) -> list[str]:
    """Puts packed networks, and how they were made, into `folder`; those already there stay, and none of them
    is replaced by another.

    Args:
      folders: as in `find`.

    Returns:
      Names of all networks that `folder` then holds.

    Raises:
      ConfigError, CheckpointError, DataError: nothing to collect, a network of the same name as a different
        one there, or a damaged file.
    """
    examinations = find(folders)
    anew = {examination.name: _made_with(examination) for examination in examinations}
    before = _before(folder)
    cells = folder / packing.CELLS
    contents = {cells / examination.path.name: _content(examination.path) for examination in examinations}
    for (target, content), examination in zip(contents.items(), examinations, strict=True):
        if target.exists() and target.read_bytes() != content:
            raise ConfigError(
                f"{target} and {examination.path} are different networks of one name; rename one, or remove "
                "the first if the other is to take its place"
            )
    files.ensure_writable(cells)
    for target, content in contents.items():
        files.write_atomic(target, content)
    made = dict(sorted((before | anew).items()))
    images = images_table([cells / f"{name}.zip" for name in made])
    files.write_atomic(folder / "images.csv", images.to_csv(index=False))
    files.write_json(folder / "manifest.json", _manifest(made))
    return list(made)


def _content(path: Path) -> bytes:
    """A packed network, without folders of the machine."""
    about = packing.unpack(path).about
    cleaned = packing.without_paths(about)
    return path.read_bytes() if cleaned == about else packed.with_about(path, cleaned)


def images_table(paths: Iterable[Path]) -> pd.DataFrame:
    """Every image that packed networks were examined on, with columns `images` (the set's name), `sha256` (of
    the set), `place` (from 0), `id`, `use` and `person`; equal sets of several networks once.

    Sets without saved ids (a network's own samples, a user's folder) are left out.

    Raises:
      CheckpointError: a file is absent or damaged.
    """
    tables = {}
    for content in map(packing.unpack, paths):
        facts = content.about.get("images", {})
        ids = facts.get("ids", ())
        image_set = (facts.get("sha256"), len(ids))
        if ids and image_set not in tables:
            tables[image_set] = _set_of_images(facts, content.results["sweep"])
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(tables.values(), ignore_index=True)


def _set_of_images(facts: Mapping[str, Any], sweep: xr.Dataset) -> pd.DataFrame:
    """The table of one set: those scored first, timestep by timestep, as `EvalImages.facts` lists them."""
    ids = facts["ids"]
    scored = int(sweep.attrs.get("images_total", sweep.sizes["image"]))
    people = [int(person) for person in np.ravel(sweep[PERSON])] if PERSON in sweep.coords else []
    columns = {
        "images": facts["name"],
        "sha256": facts["sha256"][:12],
        "place": np.arange(len(ids)),
        "id": ids,
        "use": ["scored"] * scored + ["reference"] * (len(ids) - scored),
        "person": pd.array(people + [None] * (len(ids) - len(people)), dtype="Int64"),
    }
    return pd.DataFrame(columns)[list(COLUMNS)]


def _before(folder: Path) -> dict[str, dict]:
    """How the networks that are already in `folder` were made."""
    if not (folder / "manifest.json").exists():
        return {}
    manifest = files.read_record(folder / "manifest.json", ())
    if "networks" not in manifest:
        raise ConfigError(
            f"{folder}/manifest.json is of another kind of results; collect into a folder of its own"
        )
    with files.interpreting(folder / "manifest.json"):
        return {
            name: {**facts, "config": _changed(manifest["config"], facts["other_settings"])}
            for name, facts in manifest["networks"].items()
        }


def _made_with(examination: Examination) -> dict:
    facts = packing.without_paths(examination.manifest)
    made = {name: facts.get(name) for name in MADE_WITH} | {"config": facts["config"]}
    return made | {"command": _without_folders(facts.get("command") or [])}


def _without_folders(command: Sequence[str]) -> list[str]:
    """A command whose paths are cut to their last part."""
    return [re.sub(r"[^=,\s]*/(?=[^/])", "", word) for word in command]


def _manifest(made: Mapping[str, dict]) -> dict:
    """The manifest of the collection; of a network it has the settings in which it differs from most."""
    flat = {name: _flat(facts["config"]) for name, facts in made.items()}
    common = collections.Counter(json.dumps(values, sort_keys=True) for values in flat.values())
    shared = json.loads(common.most_common(1)[0][0])
    networks = {}
    for name, facts in made.items():
        other = {setting: value for setting, value in flat[name].items() if shared.get(setting) != value}
        networks[name] = {key: facts[key] for key in MADE_WITH} | {"other_settings": other}
    manifest = run_manifest(_changed({}, shared), models=list(made), networks=networks)
    return manifest | {"command": _without_folders(manifest["command"])}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names, `section.field`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _changed(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict:
    """The config with some settings, by their full names, put in."""
    changed = json.loads(json.dumps(config))
    for name, value in settings.items():
        *sections, field = name.split(".")
        section = changed
        for section_name in sections:
            section = section.setdefault(section_name, {})
        section[field] = value
    return changed
