"""A whole study, trained and examined: `python -m experiments.study --preset=study64 --celeba=CELEBA`.

Trains `--seeds` networks of each data set of `--data`, examines each as soon as it is trained (CelebA and
synthetic faces of complexity 4 in full, the others under mean ablation), then the snapshots of `train.keep`
(a step that a training had passed before that named it is left out, with a warning).
What is worth most comes first: pairs of CelebA and synthetic faces, seed by seed, then controls and the
ladder, seed by seed. A line after each network says how long it took and how long the others will; the first
of a start also compiles, which the others need not. The same command goes on after an interruption, wherever
it was, and finds what it had compiled; with other settings it is refused. WORKDIR holds
  settings.json   those settings
  runs/NAME       the trainings
  examined/NAME   the examinations
  pieces/         all packed networks so far in files of less than 16 MiB: unpacked into one folder they are
                  what `experiments.collect --examined=FOLDER` takes
  cache/          decoded images, and compiled programs unless --compilation_cache says where
"""

import dataclasses
import sys
import time

import jax
from absl import flags

from mechdiff.core.config import from_dict, to_dict
from mechdiff.core.errors import CheckpointError, ConfigError
from mechdiff.core.text_table import counted
from mechdiff.data.celeba import find_packs
from mechdiff.models import load
from mechdiff.storage import files, locks, mismatch
from mechdiff.study import choosing, examination, packing, plan
from mechdiff.training import loop

from . import _flags, _launch

SEEDS = flags.DEFINE_integer("seeds", 6, "Trainings of each data set.", lower_bound=1, upper_bound=1000)
DATA = flags.DEFINE_list(
    "data",
    ["celeba", "synthetic", "synthetic-level0", "synthetic-level2", "scrambled", "gaussian"],
    "Data sets, in the order of training.",
)
# Settings that may change in a study that has begun: of memory, and those that decide no number.
FREE = ("name", "study.models", "sweep.image_block", "sweep.chunk", "train.fsdp", "train.keep")
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)


def main(config, workdir):
    if not config.data.cache:  # images are decoded once for all trainings
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=f"{workdir}/cache"))
    planned = plan.networks(config, DATA.value, SEEDS.value, CELEBA.value)
    if any(network.config.data.name == "celeba" for network in planned):
        find_packs(CELEBA.value)  # may refuse, hours before the first of them is trained
    examined, folder = workdir / "examined", workdir / "pieces"
    with locks.lock(workdir):
        _check_same_study(config, workdir / "settings.json", any(examined.glob(f"*/{packing.CELLS}/*.zip")))
        _keep_programs(workdir / "cache" / "programs")
        todo = [network for network in planned if not _packed(network.name, workdir).exists()]
        before = len(planned) - len(todo)
        print(f"{counted(len(planned), 'network')}, {before} of them packed before", flush=True)
        for number, network in enumerate(todo, start=1):
            trained, examined_in = _make(network, config, workdir)
            print(plan.progress(network.name, trained, examined_in, len(todo) - number), flush=True)
            plan.write_pieces(examined, folder)
        plan.write_pieces(examined, folder)  # the last time it may have been stopped before it
        for network in planned:
            for step in _exported(network, workdir):
                _examine(f"{network.name}@{step}", plan.of_ladder(config), workdir)
                plan.write_pieces(examined, folder)
    pieces = sorted(folder.glob("*.zip"))
    print(*pieces, sep="\n")
    return {"pieces": pieces}


def _check_same_study(config, path, begun):
    """What is packed already is not made again: a study that has begun goes on with its settings."""
    settings = to_dict(dataclasses.replace(config, data=dataclasses.replace(config.data, cache="")))
    if begun and path.exists():
        saved = files.read_record(path, ("name",))
        try:
            before = to_dict(from_dict(saved))  # with defaults of what is new
        except ConfigError as error:
            way_out = "go on with the version that began it, or choose another --workdir"
            raise CheckpointError(f"{path}: {error}; {way_out}") from None
        mismatch.compare_configs(before, settings, path.parent, FREE)
    files.write_json(path, settings)


def _keep_programs(folder):
    """Programs of a training are the same for all seeds and data sets, so few are kept."""
    if jax.config.jax_compilation_cache_dir is None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # compiled programs are code: private
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _packed(name, workdir):
    return examination.packed_path(workdir / "examined" / name, name)


def _make(network, config, workdir):
    """Trains and examines one network; seconds that each took."""
    start = time.monotonic()
    loop.train(network.config, workdir / "runs" / network.name)
    trained = time.monotonic() - start
    sampled = network.full and network.config.seed == plan.SAMPLED_SEED
    _examine(network.name, config if network.full else plan.of_ladder(config), workdir, sampled)
    return trained, time.monotonic() - start - trained


def _exported(network, workdir):
    """Steps of a trained network that are examined; a warning for those that `train.keep` named too late."""
    run = workdir / "runs" / network.name
    packed = {step for step in network.snapshots if _packed(f"{network.name}@{step}", workdir).exists()}
    there = packed | load.steps_of(run).keys()
    for step in [step for step in network.snapshots if step not in there]:
        why = "is left out: the training exported no model of that step, which train.keep did not name then"
        print(f"warning: {network.name}@{step} {why}", file=sys.stderr, flush=True)
    return [step for step in network.snapshots if step in there]


def _examine(name, config, workdir, samples=False):
    """One trained network, RUN or RUN@STEP, examined and packed, unless it is packed already."""
    where = workdir / "examined" / name
    if not _packed(name, workdir).exists():
        choose = choosing.ImageChoice(config, CELEBA.value, workdir / "cache")
        run = str(workdir / "runs" / name)
        examination.examine_and_pack(name, run, choose, config, where, samples=samples)


prepare = _launch.use_huge_pages  # before any work

if __name__ == "__main__":
    prepare()
    _launch.run(main)
