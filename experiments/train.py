"""Trains a denoiser: `python -m experiments.train --preset=cpu16 --workdir=runs/faces`.

Start it again with the same flags to go on after an interruption. Real pictures:
`--set=data.name=celeba --set=data.path=PATH`. The trained model is left in WORKDIR/model.
"""

from mechdiff.training.loop import train

from . import _launch


def main(config, workdir):
    _launch.spread_over_cores(share=config.train.batch // config.train.accumulate)
    print(train(config, workdir))


if __name__ == "__main__":
    _launch.use_huge_pages()
    _launch.run(main)
