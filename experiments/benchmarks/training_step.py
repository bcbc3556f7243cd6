"""How fast one training step is, against PyTorch with diffusers' `UNet2DModel` of the same config.

`python -m experiments.benchmarks.training_step --preset=cpu32 --rounds=5 --images=16`

Both sides do the same: noise, loss, gradients, clipping, AdamW, moving average of the parameters, in
float32. Every arm runs in its own process, the arms take turns, and the table gives medians over the
rounds. Needs the `torch` extra. For numbers worth telling, nothing else should run on the machine.
"""

from absl import flags

from experiments import _launch
from experiments.benchmarks import _rounds

ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns that each arm takes.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 16, "Pictures in a batch.", lower_bound=1)


def main(config, workdir):
    found = _rounds.compare("training_step", config, IMAGES.value, ROUNDS.value)
    # A backward pass costs about two forward passes.
    print(f"training step, preset {config.name}, batch {IMAGES.value}")
    print(_rounds.table(found, "images", work=3))


if __name__ == "__main__":
    _launch.run(main)
