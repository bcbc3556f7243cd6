"""Loads an exported model, as a denoiser or as its parts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechdiff.core.config import ExperimentConfig, from_dict
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.core.types import PyTree
from mechdiff.diffusion.schedules import make_schedule
from mechdiff.interventions.record import Intervention
from mechdiff.models import factories, shipped
from mechdiff.models.denoiser import Denoiser, Examinable
from mechdiff.models.pretrained import builders
from mechdiff.models.pretrained.files import configs
from mechdiff.models.unet import identity_intervention, init_shapes
from mechdiff.storage import checksums, exported, files
from mechdiff.storage.mismatch import check_shapes

IMPORTED_FUNCTION = "function"  # key in the config of an imported function (`pretrained.ImportedFunction`)
IMPORTED = "imported"  # key in the record of an imported network: `Imported.facts`
FOREIGN = ("model_index.json", *configs.NAMES)  # files by which others describe their networks
RESULTS = ("subjects", "cells")  # folders of results by model, which the report reads
WRITTEN = ("manifest.json", "screen.json", "circuits")  # beside these, by commands that examine models
SNAPSHOTS = "snapshots"  # folder of a training run with the steps that `train.keep` names


def load_trained(folder: str | Path) -> tuple[ExperimentConfig, PyTree, Intervention, dict[str, Any]]:
    """An exported model: its config, EMA parameters, identity intervention and training record.

    Args:
      folder: the folder, another name of it (see `model_folder`), or a shipped name.

    Raises:
      CheckpointError: no such model, a damaged one, or a network that is not a UNet of this package.
    """
    folder = shipped.find(model_folder(folder))
    _refuse_foreign(folder)
    refuse_results(folder)
    params, config, record = exported.load_model(folder)
    if IMPORTED_FUNCTION in config:
        layout = config[IMPORTED_FUNCTION]["layout"]
        raise CheckpointError(
            f"{folder} is a network of {layout}, not a UNet of this package; only load_denoiser reads it"
        )
    config = from_dict(config)
    check_shapes(params, init_shapes(config.unet)[0], folder)
    return config, params, identity_intervention(config.unet), record


def load_denoiser(model: str | Path, name: str = "") -> tuple[Examinable, ExperimentConfig, dict]:
    """An exported model as a denoiser, its config, and its training record.

    An imported function (`pretrained.ImportedFunction`) is loaded as a `TracedDenoiser`; the `unet` of its
    config holds only the shape of images, and its record has the facts of `factories.facts`.

    Args:
      model: its folder, a run's folder, or `RUN@STEP`, see `model_folder`; or a shipped name; or
        `module:function`, a function that returns a denoiser, see `factories`.
      name: shown in results; `name_of(model)` if empty.

    Raises:
      CheckpointError, ConfigError: as `load_trained` and `factories.make`.
    """
    if factories.is_factory(model):
        made = factories.make(model, name)
        return made.denoiser, factories.config_of(made.denoiser), factories.record_of(model, made)
    folder = shipped.find(model_folder(model))
    if _is_function(folder):
        return _function(folder, name or name_of(model))
    trained, params, identity, record = load_trained(model)
    schedule = make_schedule(trained.diffusion)
    return Denoiser(name or name_of(model), trained.unet, schedule, params, identity), trained, record


def _refuse_foreign(folder: Path) -> None:
    """Refuses another program's folder with the way to import it: launchers take exported models only."""
    ours = any((folder / name).exists() for name in (checksums.NAME, "record.json"))
    if not ours and any((folder / name).is_file() for name in FOREIGN):
        raise CheckpointError(
            f"{folder} is no exported model; if it is another program's network, import it first: mechdiff "
            f"import {folder} --to=FOLDER, then --model=FOLDER (mechdiff.load in Python reads it as it is)"
        )


def refuse_results(folder: Path) -> None:
    """Refuses the folder of an examination or of a training that is not finished, with what to do."""
    if (folder / checksums.NAME).exists():
        return
    if (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} is a training that is not finished; start the command again that began it (it is in "
            "manifest.json there)"
        )
    home = _home_of_results(folder)
    if home is not None:
        raise CheckpointError(
            f"{folder} holds results of models, and is none; mechdiff report --workdir={home} shows them; to "
            f"go on, name the model that they are of, and give --workdir={home}"
        )
    if any((folder / name).exists() for name in WRITTEN):
        raise CheckpointError(
            f"{folder} holds results of a model, and is none; name the model that they are of"
        )


def _home_of_results(folder: Path) -> Path | None:
    """The work folder that holds what was examined, of which `folder` is a part or the whole; None: none."""
    if (folder / "subject.json").is_file():
        return folder.parent.parent
    if folder.name in RESULTS and any(folder.glob("*/subject.json")):
        return folder.parent
    return folder if any((folder / name).is_dir() for name in RESULTS) else None


def check_stated(record: Mapping[str, Any], name: str) -> None:
    """Refuses an imported network if something that decides its numbers was not stated.

    Raises:
      ConfigError: names what is to be stated, such as its noise levels.
    """
    asks = record.get(IMPORTED, {}).get("asks")
    if asks:
        raise ConfigError(f"{name}: {asks} when it is imported or loaded")


def model_folder(model: str | Path) -> Path:
    """The folder of the exported model that `model` names.

    Args:
      model: that folder; or the folder RUN of a training (its `model/` is meant); or RUN@STEP (or
        RUN/checkpoints/STEP), the model after STEP steps, which `train.keep` exports to
        RUN/snapshots/STEP; or a shipped network's name, if there is no folder of that name.

    Raises:
      CheckpointError: a step that was not exported; those that were are listed.
    """
    path = Path(model)
    if _is_export(path):
        return path
    if _is_export(path / "model"):
        return path / "model"
    run, at, step = path.name.rpartition("@")
    if at and step.isdecimal():
        return _snapshot(path.with_name(run) if run else path.parent, int(step))
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        return _snapshot(path.parent.parent, int(path.name))
    is_shipped = str(model) in shipped.names() and not path.exists()
    return shipped.folder(str(model)) if is_shipped else path


def name_of(model: str | Path) -> str:
    """A model's name in results: that of its folder, or of the run whose `model/` or snapshot (`RUN@STEP`) it
    is; for `module:function` the module's last word and the function.

    Example:
      >>> name_of("runs/faces/model"), name_of("checkpoints/cpu32-celeba-seed0")
      ('faces', 'cpu32-celeba-seed0')
      >>> name_of("runs/faces/snapshots/3200")
      'faces@3200'
    """
    if factories.is_factory(model):
        return factories.name_of(model)
    model = Path(os.path.realpath(model_folder(model)))  # of a link to itself too
    if model.parent.name == SNAPSHOTS:
        return f"{model.parent.parent.name}@{model.name}"
    return model.parent.name if model.name == "model" and model.parent.name else model.name


def steps_of(run: str | Path) -> dict[int, Path]:
    """Step -> folder of every exported model of a run, ascending, with the end of training.

    Args:
      run: folder of the training, or its `model/`.
    """
    run = Path(run)
    run = run.parent if run.name == "model" and _is_export(run) else run
    folders = [path for path in (run / SNAPSHOTS).glob("*") if path.name.isdecimal() and _is_export(path)]
    exported = {int(path.name): path for path in folders}
    if _is_export(run / "model"):
        path = run / "model" / "record.json"
        with files.interpreting(path):
            record = files.read_record(path, {"record": dict})["record"]
            exported[int(record.get("steps") or 0)] = run / "model"
    return dict(sorted(exported.items()))


def _snapshot(run: Path, step: int) -> Path:
    exported = steps_of(run)
    if step in exported:
        return exported[step]
    steps = ", ".join(map(str, exported))
    there = f"exported there: {steps}" if exported else "no step was exported there"
    raise CheckpointError(f"{run} has no model of step {step} ({there}); train.keep=STEP,... exports more")


def _function(folder: Path, name: str) -> tuple[Examinable, ExperimentConfig, dict]:
    """An imported function, as `import_checkpoint` saved it."""
    params, config, record = exported.load_model(folder)
    made = config.pop(IMPORTED_FUNCTION)
    trained = from_dict(config)
    denoiser = builders.build(made["layout"], made["options"], params, trained.diffusion, name=name)
    return denoiser, trained, record | {factories.FUNCTION_FACTS: factories.facts(made["layout"], denoiser)}


def _is_function(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and IMPORTED_FUNCTION in files.read_record(config, ())


def _is_export(folder: Path) -> bool:
    return (folder / checksums.NAME).is_file()
