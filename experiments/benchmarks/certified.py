"""Time to a certified answer for every component, against the fixed exact design.

`python -m experiments.benchmarks.certified --model=checkpoints/cpu16-synthetic-seed0 --images=256`; shorter
with --width=20, --set=sweep.timesteps=2.

Adaptive: `certify`, which drops components once their intervals are certain; with pictures crossed with
timesteps, and with every timestep's own (nested). Fixed: an exact sweep of all components on one number of
pictures, crossed, the smallest with which an ordinary interval (no looking in between) of each would pass
the same rule. That number comes from what the crossed adaptive arm found, so the fixed arm knows the
deviations beforehand, which no planner does. All arms run in one process, compiled beforehand, in turns.
"""

import functools
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from absl import flags

from experiments import _launch
from experiments.benchmarks import _operations
from mechdiff import keys, pipeline
from mechdiff.adaptive import certify
from mechdiff.config import SweepConfig, override
from mechdiff.schedules import timesteps_by_log_snr
from mechdiff.sweep import teacher_forced

MODEL = flags.DEFINE_string("model", None, "Folder of a trained model.", required=True)
CELEBA = flags.DEFINE_string("celeba", None, "CelebA in its official layout; several folders with commas.")
WIDTH = flags.DEFINE_float("width", 5.0, "In percent of the clean loss; certain enough wherever it lies.")
IMAGES = flags.DEFINE_integer("images", 256, "Pictures that the adaptive arm may spend.", lower_bound=16)
ROUNDS = flags.DEFINE_integer("rounds", 1, "Turns that each arm takes.", lower_bound=1)


def main(config, workdir):
    _launch.spread_over_cores()
    asked = [f"sweep.images={IMAGES.value}", "sweep.mean_images=1", "sweep.nested=true"]
    config = override(config, asked)
    subject, trained, _ = pipeline.load_subject(Path(MODEL.value))
    given = pipeline.chooser(config, CELEBA.value, workdir / "cache")(subject, trained)
    levels = timesteps_by_log_snr(subject.schedule, config.sweep.timesteps)
    key, block = keys.stream(jax.random.key(config.seed), "scored noise"), config.sweep.image_block

    def adaptive(images):
        with TemporaryDirectory() as folder:
            return certify(subject, images, levels, key, Path(folder), width=WIDTH.value, block=block)

    shown = {"adaptive, nested": given.nested, "adaptive, crossed": given.scored}
    found = {name: adaptive(images) for name, images in shown.items()}  # compiles
    crossed = found["adaptive, crossed"]
    count, needed = len(crossed.components), crossed.fixed // len(crossed.components)
    pictures = given.scored[np.arange(needed) % IMAGES.value]  # repeated if too few: only time counts

    def fixed():
        with TemporaryDirectory() as folder:
            settings = SweepConfig(kinds=("zero",), image_block=block)
            teacher_forced(subject, pictures, levels, key, Path(folder), config=settings)

    fixed()
    arms = {name: functools.partial(adaptive, images) for name, images in shown.items()} | {"fixed": fixed}
    seconds = {name: [] for name in arms}
    for turn in range(ROUNDS.value):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    spent = {name: one.spent for name, one in found.items()} | {"fixed": crossed.fixed}
    left = {name: int((~one.decided).sum()) for name, one in found.items()} | {"fixed": 0}
    print(
        f"{count} components of {subject.name}, {len(levels)} timesteps, to {WIDTH.value} % or apart from 0; "
        f"at most {IMAGES.value} pictures a timestep, fixed {needed}; medians of {ROUNDS.value} rounds\n"
        f"{'arm':20}{'components x pictures':>24}{'seconds':>10}{'fixed over it':>16}{'in runs':>10}"
        f"{'undecided':>12}"
    )
    for name, took in middle.items():
        ratios = f"{middle['fixed'] / took:14.2f} x{spent['fixed'] / spent[name]:8.2f} x"
        print(f"{name:20}{spent[name]:24,}{took:10.1f}{ratios}{left[name]:12}")
    print(_operations.ceiling())
    if any(left.values()):
        print("not a certified answer where components stayed undecided: give more pictures (--images)")


if __name__ == "__main__":
    _launch.run(main)
