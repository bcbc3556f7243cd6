"""Trains a denoiser: `python -m experiments.train --preset=cpu16 --workdir=runs/faces`.

Start it again with the same flags to go on after an interruption. Your own images:
`--set=data.name=folder --set=data.path=PATH` (or `celeba`, `tfds`). The trained model is left in
WORKDIR/model. With --tensorboard, `tensorboard --logdir=WORKDIR` shows how it goes.
"""

from absl import flags

from mechdiff.core.devices import use_all_cores
from mechdiff.training.loop import train

from . import _launch

TENSORBOARD = flags.DEFINE_boolean("tensorboard", False, "Log for TensorBoard too, to WORKDIR/tensorboard.")


def main(config, workdir):
    use_all_cores(share=config.train.batch // config.train.accumulate)
    folder = train(config, workdir, tensorboard=TENSORBOARD.value)
    print(folder)
    return {"model": folder}


joins = True  # several processes share the work
prepare = _launch.use_huge_pages  # before any work

if __name__ == "__main__":
    prepare()
    _launch.run(main)
