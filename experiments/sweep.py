"""Leaves out each component of a trained model in turn and measures the damage.

`python -m experiments.sweep --model=checkpoints/cpu32-synthetic-seed0 --set=sweep.images=64 --workdir=runs/s`
`--celeba=PATH` gives real pictures to examine a CelebA model on; without it the model's own samples are
used, and the result says so. Start it again to go on after an interruption. Results: WORKDIR/subjects/NAME.
`--set=sweep.ablations=zero,mean,resample,noise,optimal` chooses what components are replaced with; see
`mechdiff.replacements` and `mechdiff.optimal`. The last takes many times as long as the others.

Any number of processes, on one machine or on many that share WORKDIR, may run the same command: they fill one
sweep, and those that live finish it. They need not know of each other; if they do (--coordinator, or
--distributed on SLURM and TPU pods), they begin evenly spread.
"""

from pathlib import Path

from absl import flags

from mechdiff.core.config import to_dict
from mechdiff.models.load import name_of
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.study import examine, inputs

from . import _launch

MODEL = flags.DEFINE_string("model", None, "Folder of a trained model.", required=True)
CELEBA = flags.DEFINE_string("celeba", None, "CelebA in its official layout; several folders with commas.")


def main(config, workdir):
    _launch.spread_over_cores()
    folder = Path(MODEL.value)
    files.ensure_writable(workdir)
    name = name_of(folder)
    files.write_json(workdir / "manifest.json", run_manifest(to_dict(config), models=[name]))
    choose = inputs.chooser(config, CELEBA.value, workdir / "cache")
    target = workdir / "subjects" / name
    examine.examine(name, folder, choose, config.sweep, config.seed, target)
    print(target)


if __name__ == "__main__":
    _launch.run(main)
