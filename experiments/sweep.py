"""Ablates each component of a trained model in turn and measures the relative loss increase.

`python -m experiments.sweep --model=checkpoints/cpu32-synthetic-seed0 --set=sweep.images=64 --workdir=runs/s`
`--images=FOLDER` (or `.npy`, `.npz`) gives the images to examine it on, `--celeba=PATH` those of CelebA that
were held out; without either, a model that was not trained on synthetic faces is examined on its own samples,
and the result says so. `--model=RUN@STEP` is the model as it was after STEP steps (`train.keep`). Start it
again to go on after an interruption. Results: WORKDIR/subjects/NAME, with the manifest of their command.
`--set=sweep.ablations=zero,mean,resample,noise,optimal` chooses what components are replaced with (see
`mechdiff/sweeps/replacements.py` and `optimal_ablation.py`); the last takes many times as long as the others.
At the end it prints the ten components of the largest relative loss increase, with --json as JSON.

Any number of processes, on one machine or on many that share WORKDIR, may run the same command: they share
one sweep, and those that are still alive finish it. They need not know of each other; if they do
(--coordinator, or --distributed on SLURM and TPU pods), they begin evenly spread, but when one dies JAX ends
the others too: the same command goes on.
"""

from absl import flags

from mechdiff.cli import tables
from mechdiff.core.config import to_dict
from mechdiff.core.devices import use_all_cores
from mechdiff.models.load import name_of
from mechdiff.stats import few_images, units_of
from mechdiff.storage import exchange, files, manifest
from mechdiff.study import examine

from . import _flags, _launch, _opening

MODEL = flags.DEFINE_string("model", None, _flags.MODEL_HELP, required=True)
CELEBA = flags.DEFINE_string("celeba", None, _flags.CELEBA_HELP)
IMAGES = flags.DEFINE_string("images", None, _flags.IMAGES_HELP)

least_images = 2


def main(config, workdir):
    use_all_cores()
    exchange.check_shared(files.ensure_writable(workdir))
    name = name_of(MODEL.value)
    made_with = manifest.run_manifest(to_dict(config), models=[name])
    choose = _opening.chooser(config, workdir, CELEBA.value, IMAGES.value)
    target = workdir / "subjects" / name
    swept = examine.examine(name, MODEL.value, choose, config.sweep, config.seed, target).sweep
    # Not before: what is refused would leave it beside others' results. Of several models that are swept into
    # one folder each keeps its own.
    for folder in (workdir, target):
        manifest.write(folder, made_with)
    top = {ablation: tables.top_components(swept, ablation) for ablation in config.sweep.ablations}
    units = units_of(swept)
    few = few_images(units.count, units.effective)
    for ablation, rows in top.items():
        tables.print_top(rows, f"{name}, {ablation} ablation: largest relative loss increases{few}")
    print(target)
    return {"folder": target, "top": [row for rows in top.values() for row in rows]}


joins = True  # several processes share the work

if __name__ == "__main__":
    _launch.run(main)
