"""Examined networks as small files from which verdicts and the report are computed without any network.

`cells/NAME.zip` of a results folder replaces `subjects/NAME`, see `examine`. For a sweep it holds the loss
increase of each image under each ablation, rounded (`storage.packed`), the exact clean losses, and the
largest change of predictions over timesteps and images, the only number of these that is used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechdiff.analysis.saved_effects import without_effects
from mechdiff.core.errors import CheckpointError
from mechdiff.storage import files, image_grid, labelled, packed
from mechdiff.storage.packed import Packed

CELLS = "cells"
GO_ON = "run the command that was interrupted again: it goes on"
# Of the scatter over images: what is rounded, and how finely.
SHARES = {
    "increase": 1 / 8,
    "entropy": 1 / 8,
    "effect": 1 / 4,
    "error": 1 / 4,
    "mutual_information": 1 / 2,
    "distance": 1 / 2,
    "identity_mass": 1 / 2,
}
SWEEPS, ATTENTION = ("sweep", "control"), ("attention", "control_attention")


def pack(folder: Path, path: Path, *, samples: bool = False) -> None:
    """Writes the results of one examined network into one file.

    Args:
      folder: of `examine.examine`, and of `further_results.run_study` if that was run.
      samples: whether images sampled from the network are kept too.

    Raises:
      CheckpointError, DataError: the examination is not finished, or a result is damaged.
    """
    about = files.read_record(folder / "subject.json", ("config",))
    check_finished(folder, about)
    study = folder / "study.json"
    names = [
        "sweep",
        "attention",
        *(files.read_record(study, {"results": list})["results"] if study.exists() else []),
    ]
    results = {name: _slim(name, labelled.read(folder / f"{name}.zarr")) for name in names}
    members = {}
    if samples and (folder / image_grid.SHEET).is_file():
        members[image_grid.SHEET] = (folder / image_grid.SHEET).read_bytes()
    packed.write(path, without_paths(about), results, SHARES, members)


def check_finished(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuses the results of an examination that was interrupted, or of further results that were.

    Args:
      folder: the model's.
      about: of its subject.json; versions before `unfinished` was noted lack it.

    Raises:
      CheckpointError: they are unfinished.
    """
    if about.get("unfinished"):
        raise CheckpointError(f"{folder} is unfinished; {GO_ON}")


def without_paths(about: Mapping[str, Any]) -> dict[str, Any]:
    """Facts (or a manifest) without folders of the machine: where images lay, and where they were kept."""
    config = about.get("config", {})
    if "data" not in config:
        return dict(about)
    return {**about, "config": {**config, "data": {**config["data"], "path": "", "cache": ""}}}


def unpack(path: Path) -> Packed:
    """Reads a file of `pack`; results have the form in which sweeps and statistics return them.

    Raises:
      CheckpointError: a file that lacks the sweep or the attention statistics.
    """
    content = packed.read(path)
    absent = [name for name in ("sweep", "attention") if name not in content.results]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; pack it again")
    return content._replace(results=_restored(content.results))


def _restored(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    restored = {}
    for name, result in results.items():
        if name in SWEEPS:
            result = _whole_sweep(result)
        if name in ATTENTION:
            keys = np.log(result["tokens"].astype(np.float64))
            result = result.assign(normalized_entropy=(result["entropy"] / keys).astype(np.float32))
        restored[name] = result
    return restored


def _slim(name: str, result: xr.Dataset) -> xr.Dataset:
    if name in SWEEPS:
        result = without_effects(result)  # they are computed again, from the rounded losses
        largest = result["change"].max(("t", "image"))
        increase = (result["loss"].astype(np.float64) - result["clean_loss"]).transpose(*result["loss"].dims)
        return result.drop_vars(["loss", "change"]).assign(increase=increase, largest_change=largest)
    if name in ATTENTION:
        return result.drop_vars(["normalized_entropy", "effective_keys"], errors="ignore")
    return result


def _whole_sweep(result: xr.Dataset) -> xr.Dataset:
    increase = result["increase"]
    loss = (result["clean_loss"].astype(np.float64) + increase).transpose(*increase.dims).astype(np.float32)
    change = result["largest_change"].broadcast_like(increase).transpose(*increase.dims)
    return result.drop_vars(["increase", "largest_change"]).assign(loss=loss, change=change)
