"""Reads a results folder, checks it, and gives its models as records."""

import re
from dataclasses import replace
from pathlib import Path
from types import NoneType

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

WAY_OUT = "give the --workdir of reproduce, sweep, examine or collect, or let `mechdiff reproduce` fill it"
NUMBER = (float, int, NoneType)  # None: not finite, or not known
ABOUT = {"name": str, "inputs": str, "seed": int, "config": dict, "record": dict}  # what subject.json holds
ABOUT_MORE = {"images": dict, "load_check": dict}  # and newer ones
RECORD = {  # what a training notes that the report shows; imported models lack most
    **dict.fromkeys(("steps", "images", "test_loss", "train_loss"), NUMBER),
    **dict.fromkeys(("levels", "log", "class_names"), (list, NoneType)),
    **dict.fromkeys(("memorization", "manifest"), (dict, NoneType)),
}
MANIFEST = {
    **dict.fromkeys(("command", "devices", "models"), (list, NoneType)),
    **dict.fromkeys(("started", "code", "commit", "python"), (str, NoneType)),
    **dict.fromkeys(("config", "packages"), dict),
    "wall_seconds": NUMBER,
}


def read(folder: Path) -> tuple[dict, list[ExaminedModel]]:
    """The manifest of a results folder, and its models sorted by name, snapshots of one run by step.

    Raises:
      DataError, CheckpointError: a file is absent, damaged or unfinished.
    """
    folders = {path.parent.name: path.parent for path in (folder / "subjects").glob("*/subject.json")}
    shipped = {path.stem: path for path in (folder / packing.CELLS).glob("*.zip")}
    if not folders and not shipped:
        raise CheckpointError(
            f"no examined models in {folder} (subjects/NAME/subject.json or cells/NAME.zip); {WAY_OUT}"
        )
    manifest = files.read_record(folder / "manifest.json", (), MANIFEST)
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
    described = folder / "subject.json"
    about = _checked(described, files.read_json(described))
    sweep, attention = (labelled.read(folder / f"{name}.zarr") for name in ("sweep", "attention"))
    _check(folder / "sweep.zarr", sweep, ("loss", "clean_loss", "change"))
    _check(folder / "attention.zarr", attention, STATISTICS)
    _check_same(folder, about, sweep, attention)
    with files.interpreting(folder / "attention.zarr"):
        attention = over_many_keys(attention)  # older results hold heads over one key
    sheet = folder / image_grid.SHEET
    with files.plain_errors(sheet):
        samples = sheet.read_bytes() if about.get("samples", True) else b""
    model = _model(described, about, {"sweep": sweep, "attention": attention, **_studied(folder)}, samples)
    shown = folder / "examples.zarr"
    if not shown.exists():
        return model
    examples = labelled.read(shown)
    _check(shown, examples, (), ("steps", "strongest_t"))
    return replace(model, examples=examples)


def _shipped(path: Path) -> ExaminedModel:
    """A model from a file of `packing.pack`."""
    about, results, members = packing.unpack(path)
    _checked(path, about)
    results["attention"] = over_many_keys(results["attention"])
    return _model(path, about, _with_circuits(results), members.get(image_grid.SHEET, b""))


def _checked(path: Path, about: dict) -> dict:
    """The description of an examination in `path`, if it is one, and finished."""
    files.check_record(path, about, ABOUT, ABOUT_MORE)
    files.check_record(path, about["record"], (), RECORD)
    packing.check_finished(path.parent, about)
    return about


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


def _model(path: Path, about: dict, results: dict, samples: bytes) -> ExaminedModel:
    images_facts, record = about.get("images", {}), dict.fromkeys((*RECORD,)) | about["record"]
    with files.interpreting(path):
        config = from_dict(about["config"])
    data = config.data
    return ExaminedModel(
        name=about["name"],
        inputs=with_phases(about["inputs"], str(images_facts.get("preprocessing", ""))),
        seed=about["seed"],
        config=config,
        record=record,
        results=NetworkResults(
            name=about["name"],
            data=f"{data.name} scrambled" if data.preprocessing.phases == "random" else data.name,
            complexity=data.complexity,
            seed=config.seed,
            steps=int(record["steps"] or 0),
            **results,
        ),
        samples=samples,
        images_facts=images_facts,
        load_check=about.get("load_check", {}),
    )


def _studied(folder: Path) -> dict:
    """Results of `further_results.run_study`, those that study.json lists."""
    path = folder / "study.json"
    names = files.read_record(path, {"results": list})["results"] if path.exists() else []
    results = {name: labelled.read(folder / f"{name}.zarr") for name in names}
    for name, result in results.items():
        if name.startswith("circuit_"):
            _check(folder / f"{name}.zarr", result, (), ("sizes",))
    return _with_circuits(results)


def _with_circuits(results: dict[str, xr.Dataset]) -> dict:
    """Results by field of `NetworkResults`: those named circuit_ABLATION together, by ablation."""
    circuits = {
        name.removeprefix("circuit_"): result
        for name, result in results.items()
        if name.startswith("circuit_")
    }
    others = {name: result for name, result in results.items() if not name.startswith("circuit_")}
    return others | {"circuits": circuits}


def _check(
    path: Path, dataset: xr.Dataset, required: tuple[str, ...], attributes: tuple[str, ...] = ()
) -> None:
    absent = [name for name in required if name not in dataset]
    absent += [f"attribute {name}" for name in attributes if name not in dataset.attrs]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; delete that folder and run again")
