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

from mechdiff.storage import locks
from mechdiff.study import choosing, examination, plan
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
    examined, folder = workdir / "examined", workdir / "pieces"
    with locks.lock(workdir):
        for number, network in enumerate(planned, start=1):
            print(f"{network.name}: {number} of {len(planned)}", flush=True)
            if not examination.packed_path(examined / network.name, network.name).exists():
                loop.train(network.config, workdir / "runs" / network.name)
            sampled = network.full and network.config.seed == plan.SAMPLED_SEED
            _examine(network.name, config if network.full else plan.of_ladder(config), workdir, sampled)
            plan.write_pieces(examined, folder)
        for network in planned:
            for step in network.snapshots:
                _examine(f"{network.name}@{step}", plan.of_ladder(config), workdir)
                plan.write_pieces(examined, folder)
    pieces = sorted(folder.glob("*.zip"))
    print(*pieces, sep="\n")
    return {"pieces": pieces}


def _examine(name, config, workdir, samples=False):
    """One trained network, RUN or RUN@STEP, examined and packed, unless it is packed already."""
    where = workdir / "examined" / name
    if not examination.packed_path(where, name).exists():
        choose = choosing.chooser(config, CELEBA.value, workdir / "cache")
        run = str(workdir / "runs" / name)
        examination.examine_and_pack(name, run, choose, config, where, samples=samples)


prepare = _launch.use_huge_pages  # before any work

if __name__ == "__main__":
    prepare()
    _launch.run(main)
