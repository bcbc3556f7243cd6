"""Examines one trained network for a study: `python -m experiments.examine --preset=study --model=RUN`.

RUN is the folder of a training, or RUN@STEP one of its snapshots; `--celeba=PATH` where CelebA lies. Results
are collected in WORKDIR/subjects/NAME, from where the same command goes on after an interruption; finished,
they are packed into WORKDIR/cells/NAME.zip, of which `experiments.claims` and `experiments.report` read
everything. `--part=ladder` takes only what the claim about complexity asks of faces of lower complexity and
of snapshots: a sweep under mean ablation and circuits.
"""

from absl import flags

from mechdiff.core import ranges
from mechdiff.core.errors import ConfigError
from mechdiff.models import load
from mechdiff.storage import locks
from mechdiff.study import examination, plan

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_string("model", None, "Folder RUN of a training, or RUN@STEP.")
NAME = flags.DEFINE_string("name", None, "Of the network in results; default: that of its run.")
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
PART = flags.DEFINE_enum("part", "all", ["all", "ladder"], "What is examined.")
SAMPLES = flags.DEFINE_boolean("samples", False, "Keep the sheet of samples in the packed file.")


def main(config, workdir):
    if not MODEL.value:
        raise ConfigError("no network; give one with --model=RUN or --model=RUN@STEP")
    name = ranges.folder_name("--name", NAME.value or load.name_of(MODEL.value))
    config = plan.of_ladder(config) if PART.value == "ladder" else config
    with locks.lock(workdir):
        choose = _opening.chooser(config, workdir, CELEBA.value, None, mixed=True)
        path = examination.examine_and_pack(name, MODEL.value, choose, config, workdir, samples=SAMPLES.value)
    print(path)
    return {"cells": path}


prepare = _launch.use_huge_pages  # before any work

if __name__ == "__main__":
    prepare()
    _launch.run(main)
