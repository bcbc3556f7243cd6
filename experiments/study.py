"""A whole study, trained and examined: `python -m experiments.study --preset=study64 --celeba=CELEBA`.

Trains `--seeds` networks of each data set of `--data`, seed by seed, examines each as soon as it is trained
(CelebA and synthetic faces of complexity 4 in full, the others under mean ablation), then the snapshots of
`train.keep`. The same command goes on after an interruption, wherever it was. WORKDIR holds
  runs/NAME       the trainings
  examined/NAME   the examinations
  pieces/         all packed networks so far in files of less than 16 MiB: unpacked into one folder they are
                  what `experiments.collect --examined=FOLDER` takes
"""

import dataclasses

from absl import flags

from mechdiff.core.config import to_dict
from mechdiff.models.load import model_folder
from mechdiff.storage import files, locks
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import controls, examine, inputs, packing, plan
from mechdiff.training import loop

from . import _launch

SEEDS = flags.DEFINE_integer("seeds", 6, "Trainings of each data set.", lower_bound=1)
DATA = flags.DEFINE_list(
    "data",
    ["celeba", "synthetic", "synthetic-level0", "synthetic-level2", "scrambled", "gaussian"],
    "Data sets, in the order of training.",
)
CELEBA = flags.DEFINE_string("celeba", None, _launch.CELEBA_HELP)


def main(config, workdir):
    if not config.data.cache:  # images are decoded once for all trainings
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=f"{workdir}/cache"))
    planned = plan.networks(config, DATA.value, SEEDS.value, CELEBA.value)
    with locks.lock(workdir):
        for number, network in enumerate(planned, start=1):
            print(f"{network.name}: {number} of {len(planned)}", flush=True)
            if not _packed(workdir, network.name).exists():
                loop.train(network.config, workdir / "runs" / network.name)
            _examine(network.name, network.name, network.full, config, workdir)
        for network in planned:
            for step in network.snapshots:
                _examine(f"{network.name}@{step}", f"{network.name}@{step}", False, config, workdir)
    pieces = sorted((workdir / "pieces").glob("*.zip"))
    print(*pieces, sep="\n")
    return {"pieces": pieces}


def _packed(workdir, name):
    return workdir / "examined" / name / packing.CELLS / f"{name}.zip"


def _examine(name, run, full, config, workdir):
    """One trained network examined and packed, unless it is packed already."""
    path = _packed(workdir, name)
    if path.exists():
        return
    where = path.parents[1]
    config = config if full else plan.of_ladder(config)
    choose = inputs.chooser(config, CELEBA.value, workdir / "cache")
    model = model_folder(str(workdir / "runs" / run))
    examined = examine.examine(name, model, choose, config.sweep, config.seed, where / "subjects" / name)
    controls.run_study(examined, config, where / "subjects" / name)
    files.write_json(where / "manifest.json", run_manifest(to_dict(config), models=[name]))
    packing.pack(where / "subjects" / name, path, samples=full and examined.trained.seed == plan.SAMPLED_SEED)
    plan.write_pieces(workdir / "examined", workdir / "pieces")


if __name__ == "__main__":
    _launch.run(main)
