"""How fast a single-step leave-one-out sweep is, against what a user would write in PyTorch.

`python -m experiments.benchmarks.forward_sweep --net=c32 --images=8` (or `--images=1`; `--net=tiny16`; or a
preset: `--preset=cpu16`, `--preset=cpu32`)

One arm is `ablation.ablation_sweep` as a user calls it, with the writing of its result. The baselines run
diffusers' `UNet2DModel` of the same config: with one hook at a time; in batches of many ablations by masks
with one entry a row, of whatever size is fastest; and those batches through `torch.compile`. The unit is one
image under one changed component at one timestep, for every arm. The share of the ceiling counts for
mechdiff only what a sweep needs that computes nothing before a site twice, and whole forward passes for
the baselines. Compiling is stated apart. Every arm runs in its own process, the arms take turns, and the
table gives medians over the rounds. Needs the `torch` extra and, for `torch.compile`, a C++ compiler. For
numbers worth telling, nothing else should run on the machine.
"""

import dataclasses

from absl import flags

from experiments import _launch
from experiments.benchmarks import _harness

ROUNDS = flags.DEFINE_integer("rounds", 2, "Turns that each arm takes.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 8, "Images that are scored.", lower_bound=1)
TIMESTEPS = flags.DEFINE_integer("timesteps", 1, "Of the sweep; each costs the same.", lower_bound=1)
ARMS = flags.DEFINE_string("arms", ".*", "Baselines to run: a regular expression that their names match.")
NET = flags.DEFINE_enum(
    "net", None, list(_harness.NETS), "A network of the table of targets, not the preset's."
)


def main(config, workdir):
    if NET.value:
        config = dataclasses.replace(config, name=NET.value, unet=_harness.NETS[NET.value])
    config = dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, timesteps=TIMESTEPS.value))
    measured = _harness.compare("forward_sweep", config, IMAGES.value, ROUNDS.value, ARMS.value)
    print(f"leave-one-out sweep, {config.name}, {IMAGES.value} images, {TIMESTEPS.value} timesteps")
    print(_harness.table(measured, "config-images", work=1))


if __name__ == "__main__":
    _launch.run(main)
