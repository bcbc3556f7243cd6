"""Time to a certified answer for every component, against the fixed exact design.

`python -m experiments.benchmarks.certified --model=checkpoints/cpu16-synthetic-seed0 --images=256`; shorter
with --width=20, --set=sweep.timesteps=2.

Adaptive: `certify`, which drops components once their intervals are certain. Fixed: an exact sweep of all
components on one number of pictures, the smallest with which an ordinary interval (no looking in between) of
each would pass the same rule. That number comes from what the adaptive arm found, so the fixed arm knows the
deviations beforehand, which no planner does. Both arms run in one process, compiled beforehand, in turns.
"""

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
    config = override(config, [f"sweep.images={IMAGES.value}", "sweep.mean_images=1"])
    subject, trained, _ = pipeline.load_subject(Path(MODEL.value))
    images = pipeline.chooser(config, CELEBA.value, workdir / "cache")(subject, trained).scored
    levels = timesteps_by_log_snr(subject.schedule, config.sweep.timesteps)
    key, block = keys.stream(jax.random.key(config.seed), "scored noise"), config.sweep.image_block

    def adaptive():
        with TemporaryDirectory() as folder:
            return certify(subject, images, levels, key, Path(folder), width=WIDTH.value, block=block)

    found = adaptive()  # compiles
    count, needed = len(found.components), found.fixed // len(found.components)
    pictures = images[np.arange(needed) % len(images)]  # repeated where there are too few: only time counts

    def fixed():
        with TemporaryDirectory() as folder:
            settings = SweepConfig(kinds=("zero",), image_block=block)
            teacher_forced(subject, pictures, levels, key, Path(folder), config=settings)

    fixed()
    arms, seconds = {"adaptive": adaptive, "fixed": fixed}, {"adaptive": [], "fixed": []}
    for turn in range(ROUNDS.value):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
    most, each = f"adaptive, at most {len(images)} pictures", f"fixed, {needed} pictures for each"
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{count} components of {subject.name}, {len(levels)} timesteps, to {WIDTH.value} % or apart from 0; "
        f"medians of {ROUNDS.value} rounds\n"
        f"{'arm':40}{'components x pictures':>24}{'seconds':>12}\n"
        f"{most:40}{found.spent:24,}{middle['adaptive']:12.1f}\n"
        f"{each:40}{found.fixed:24,}{middle['fixed']:12.1f}\n"
        f"ratio {middle['fixed'] / middle['adaptive']:.2f} x in time, {found.fixed / found.spent:.2f} x in "
        f"runs; {int((~found.decided).sum())} components stayed undecided"
    )
    print(_operations.ceiling())
    if not found.decided.all():
        print("not a certified answer: the adaptive arm ran out of pictures; give more (--images)")


if __name__ == "__main__":
    _launch.run(main)
