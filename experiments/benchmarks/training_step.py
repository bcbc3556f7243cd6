"""How fast one training step is, against PyTorch with diffusers' `UNet2DModel` of the same config.

`python -m experiments.benchmarks.training_step --net=c32` (or a preset: `--preset=cpu16`, `--preset=cpu32`)

Both sides do the same: noise, loss, gradients, clipping, AdamW, moving average of the parameters, in
float32. Every arm runs in its own process, the arms take turns, and the table gives medians over the
rounds. Needs the `torch` extra. For numbers worth telling, nothing else should run on the machine.
"""

import dataclasses

from absl import flags

from experiments import _launch
from experiments.benchmarks import _harness

ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns that each arm takes.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 32, "Images in a batch.", lower_bound=1)
NET = flags.DEFINE_enum(
    "net", None, list(_harness.NETS), "A network of the table of targets, not the preset's."
)


def main(config, workdir):
    if NET.value:
        config = dataclasses.replace(config, name=NET.value, unet=_harness.NETS[NET.value])
    measured = _harness.compare("training_step", config, IMAGES.value, ROUNDS.value)
    # A backward pass costs about two forward passes.
    print(f"training step, {config.name}, batch {IMAGES.value}")
    print(_harness.table(measured, "images", work=3))


if __name__ == "__main__":
    _launch.run(main)
