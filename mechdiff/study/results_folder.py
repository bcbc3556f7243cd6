"""Reads a results folder, checks it, and gives its models as records."""

import re
from dataclasses import replace
from pathlib import Path

import xarray as xr

from mechdiff.core.config import from_dict
from mechdiff.core.errors import CheckpointError, shorten
from mechdiff.storage import files, image_grid, labelled
from mechdiff.storage.run_log import progress
from mechdiff.study import packing
from mechdiff.study.eval_images import with_phases
from mechdiff.study.examined_model import ExaminedModel
from mechdiff.study.network_results import STATISTICS, NetworkResults
from mechdiff.sweeps.activations import over_many_keys

RECORD = ("steps", "images", "levels", "test_loss", "train_loss", "memorization", "log", "manifest")


def read(folder: Path) -> tuple[dict, list[ExaminedModel]]:
    """The manifest of a results folder, and its models sorted by name, snapshots of one run by step.

    Raises:
      DataError, CheckpointError: a file is absent, damaged or unfinished.
    """
    manifest = files.read_json(folder / "manifest.json")
    folders = {path.parent.name: path.parent for path in (folder / "subjects").glob("*/subject.json")}
    shipped = {path.stem: path for path in (folder / packing.CELLS).glob("*.zip")}
    if not folders and not shipped:
        raise CheckpointError(
            f"no examined models in {folder / 'subjects'}; `sweep` and `reproduce` make some (--workdir: "
            "their folder)"
        )
    names = sorted({*folders, *shipped}, key=_by_step)
    models = []
    with progress(len(names), desc=f"reading {folder}", unit="network") as bar:
        for name in names:
            models.append(_examined(folders[name]) if name in folders else _shipped(shipped[name]))
            bar.update()
    return manifest, models


def _by_step(name: str) -> tuple[list[str | int], float]:
    """The run and the step of a model RUN@STEP; seed 2 comes before seed 10, the end of training last."""
    run, _, step = name.partition("@")
    tokens = [int(token) if token.isdecimal() else token for token in re.split(r"(\d+)", run)]
    return tokens, float(step) if step.isdecimal() else float("inf")


def _examined(folder: Path) -> ExaminedModel:
    about = files.read_json(folder / "subject.json")
    _check_facts(folder / "subject.json", about)
    sweep, attention = (labelled.read(folder / f"{name}.zarr") for name in ("sweep", "attention"))
    _check(folder / "sweep.zarr", sweep, ("loss", "clean_loss", "change"))
    _check(folder / "attention.zarr", attention, STATISTICS)
    _check_same(folder, about, sweep, attention)
    attention = over_many_keys(attention)  # older results hold heads over one key
    sheet = folder / image_grid.SHEET
    with files.plain_errors(sheet):
        samples = sheet.read_bytes() if about.get("samples", True) else b""
    model = _model(about, {"sweep": sweep, "attention": attention, **_studied(folder)}, samples)
    shown = folder / "examples.zarr"
    return replace(model, examples=labelled.read(shown)) if shown.exists() else model


def _shipped(path: Path) -> ExaminedModel:
    """A model from a file of `packing.pack`."""
    about, results, members = packing.unpack(path)
    _check_facts(path, about)
    results["attention"] = over_many_keys(results["attention"])
    return _model(about, _with_circuits(results), members.get(image_grid.SHEET, b""))


def _check_facts(path: Path, about: dict) -> None:
    absent = sorted({"name", "inputs", "seed", "config", "record"} - set(about))
    if absent:
        raise CheckpointError(
            f"{path} lacks {', '.join(absent)}; make it again (mechdiff reproduce or examine)"
        )
    packing.check_finished(path.parent, about)


def _check_same(folder: Path, about: dict, *results: xr.Dataset) -> None:
    """Refuses results of other images or noise than the description: an interrupted run of a version before
    `unfinished` was noted. Results that don't say what they are of are taken as they are."""
    for fact in ("inputs", "seed", "trained_on"):
        for result in results:
            if fact in about and result.attrs.get(fact, about[fact]) != about[fact]:
                raise CheckpointError(
                    f"{folder} is unfinished: its numbers are of {fact} {shorten(result.attrs[fact])}, but "
                    f"subject.json says {shorten(about[fact])}; {packing.GO_ON}"
                )


def _model(about: dict, results: dict, samples: bytes) -> ExaminedModel:
    config, images_facts = from_dict(about["config"]), about.get("images", {})
    data = config.data
    return ExaminedModel(
        name=about["name"],
        inputs=with_phases(about["inputs"], str(images_facts.get("preprocessing", ""))),
        seed=about["seed"],
        config=config,
        record=dict.fromkeys(RECORD) | about["record"],
        results=NetworkResults(
            name=about["name"],
            data=f"{data.name} scrambled" if data.preprocessing.phases == "random" else data.name,
            complexity=data.complexity,
            seed=config.seed,
            steps=int(about["record"].get("steps") or 0),
            **results,
        ),
        samples=samples,
        images_facts=images_facts,
        load_check=about.get("load_check", {}),
    )


def _studied(folder: Path) -> dict:
    """Results of `further_results.run_study`, those that study.json lists."""
    path = folder / "study.json"
    names = files.read_json(path)["results"] if path.exists() else []
    return _with_circuits({name: labelled.read(folder / f"{name}.zarr") for name in names})


def _with_circuits(results: dict[str, xr.Dataset]) -> dict:
    """Results by field of `NetworkResults`: those named circuit_ABLATION together, by ablation."""
    circuits = {
        name.removeprefix("circuit_"): result
        for name, result in results.items()
        if name.startswith("circuit_")
    }
    others = {name: result for name, result in results.items() if not name.startswith("circuit_")}
    return others | {"circuits": circuits}


def _check(path: Path, dataset: xr.Dataset, required: tuple[str, ...]) -> None:
    absent = [name for name in required if name not in dataset]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; delete that folder and run again")
