"""Examines one trained network for a study: `python -m experiments.examine --preset=study --model=RUN`.

RUN is the folder of a training, or RUN@STEP one of its snapshots; `--celeba=PATH` where CelebA lies. Results
are collected in WORKDIR/subjects/NAME, from where the same command goes on after an interruption; finished,
they are packed into WORKDIR/cells/NAME.zip, of which `experiments.claims` and `experiments.report` read
everything. `--part=ladder` takes only what the claim about complexity asks of faces of lower complexity and
of snapshots: a sweep under mean ablation and circuits.
"""

from absl import flags

from mechdiff.core.config import to_dict
from mechdiff.core.errors import ConfigError
from mechdiff.models.load import model_folder
from mechdiff.storage import files, locks
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import controls, examine, inputs, packing, plan

from . import _launch

MODEL = flags.DEFINE_string("model", None, "Folder RUN of a training, or RUN@STEP.")
NAME = flags.DEFINE_string("name", None, "Of the network in results; default: the last part of --model.")
CELEBA = flags.DEFINE_string("celeba", None, _launch.CELEBA_HELP)
PART = flags.DEFINE_enum("part", "all", ["all", "ladder"], "What is examined.")
SAMPLES = flags.DEFINE_boolean("samples", False, "Keep the sheet of samples in the packed file.")


def main(config, workdir):
    if not MODEL.value:
        raise ConfigError("no network; give one with --model=RUN or --model=RUN@STEP")
    name = NAME.value or MODEL.value.rstrip("/").rpartition("/")[2]
    config = plan.of_ladder(config) if PART.value == "ladder" else config
    folder, path = workdir / "subjects" / name, workdir / packing.CELLS / f"{name}.zip"
    with locks.lock(workdir):
        choose = inputs.chooser(config, CELEBA.value, workdir / "cache")
        model = model_folder(MODEL.value)
        examined = examine.examine(name, model, choose, config.sweep, config.seed, folder)
        controls.run_study(examined, config, folder)
        packing.pack(folder, path, samples=SAMPLES.value)
        files.write_json(workdir / "manifest.json", run_manifest(to_dict(config), models=[name]))
    print(path)
    return {"cells": path}


if __name__ == "__main__":
    _launch.run(main)
