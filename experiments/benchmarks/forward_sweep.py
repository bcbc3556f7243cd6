"""How fast a teacher-forced leave-one-out sweep is, against a loop over forward hooks in PyTorch.

`python -m experiments.benchmarks.forward_sweep --preset=cpu32 --rounds=5 --images=16`

Ours is `mechdiff.sweep.teacher_forced` as a user calls it, with the writing of its result; the rival is
diffusers' `UNet2DModel` of the same config, once with one hook at a time and once in batches of many
ablations by masks per row, of whatever size is fastest. The unit is one picture under one
changed component at one timestep. Arithmetic is counted as whole forward passes: a sweep that shares
work between components can show more than it did. Every arm runs in its own process, the arms take turns,
and the table gives medians over the rounds. Needs the `torch` extra. For numbers worth telling, nothing
else should run on the machine.
"""

from absl import flags

from experiments import _launch
from experiments.benchmarks import _rounds

ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns that each arm takes.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 16, "Pictures that are scored.", lower_bound=1)


def main(config, workdir):
    found = _rounds.compare("forward_sweep", config, IMAGES.value, ROUNDS.value)
    print(f"leave-one-out sweep, preset {config.name}, {IMAGES.value} pictures, {_rounds.LEVELS} timesteps")
    print(_rounds.table(found, "config-images", work=1))


if __name__ == "__main__":
    _launch.run(main)
