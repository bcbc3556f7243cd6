"""Time to a certified answer for every component, against fixed exact designs.

`python -m experiments.benchmarks.certified --model=MODEL --images=512 --width=0.5`

Adaptive: `sequential_sweep`, which drops components once their intervals are certain, with other pictures at
every timestep (nested), run to its end. Fixed: an exact sweep of all components on one number of pictures,
the smallest with which an ordinary interval (no looking in between) of each would pass the same rule; once
nested, once with the same pictures at all timesteps (crossed), as one would do it otherwise. These numbers
come from deviations that were measured, on what the adaptive arm saw and on `--pilot` pictures, so the fixed
arms know them beforehand, which no planner does. Their cost is linear in pictures: they are run on `--pilot`
pictures, and their time is extrapolated. All run in one process, compiled beforehand, in turns.
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
from absl import flags

from experiments import _launch
from experiments.benchmarks import _operations
from mechdiff.core import keys
from mechdiff.core.config import SweepConfig, override
from mechdiff.core.devices import use_all_cores
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import load
from mechdiff.study import inputs
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.sequential import sequential_sweep

MODEL = flags.DEFINE_string("model", None, "Folder of a trained model.", required=True)
CELEBA = flags.DEFINE_string("celeba", None, "CelebA in its official layout; several folders with commas.")
WIDTH = flags.DEFINE_float("width", 5.0, "In percent of the clean loss; certain enough wherever it lies.")
IMAGES = flags.DEFINE_integer("images", 512, "Pictures a timestep that may be spent.", lower_bound=16)
PILOT = flags.DEFINE_integer("pilot", 64, "Pictures that fixed designs are run on.", lower_bound=16)
ROUNDS = flags.DEFINE_integer("rounds", 1, "Turns that each arm takes.", lower_bound=1)


def main(config, workdir):
    use_all_cores()
    asked = [f"sweep.images={IMAGES.value}", "sweep.reference_images=1", "sweep.nested=true"]
    config = override(config, asked)
    denoiser, trained, _ = load.load_denoiser(Path(MODEL.value))
    given = inputs.chooser(config, CELEBA.value, workdir / "cache")(denoiser, trained)
    levels = timesteps_by_log_snr(denoiser.schedule, config.sweep.timesteps)
    key, block = keys.stream(jax.random.key(config.seed), "scored noise"), config.sweep.image_block
    pilot = min(PILOT.value, IMAGES.value)

    def adaptive(images):
        with TemporaryDirectory() as folder:
            return sequential_sweep(
                denoiser, EvalSet(images, levels, key), Path(folder), width=WIDTH.value, block=block
            )

    def fixed():
        with TemporaryDirectory() as folder:
            settings = SweepConfig(ablations=("zero",), image_block=block)
            ablation_sweep(
                denoiser, EvalSet(given.scored[:pilot], levels, key), Path(folder), config=settings
            )

    found, crossed = adaptive(given.nested), adaptive(given.scored[:pilot])  # compile
    fixed()
    seconds = {adaptive: [], fixed: []}
    for turn in range(ROUNDS.value):
        for arm in (adaptive, fixed)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            arm(*[given.nested] * (arm is adaptive))
            seconds[arm].append(time.perf_counter() - start)
    took, each = statistics.median(seconds[adaptive]), statistics.median(seconds[fixed]) / pilot
    count, left = len(found.components), int((~found.decided).sum())
    shown = f"{found.images.min()} to {found.images.max()}"
    print(
        f"{count} components of {denoiser.name}, {len(levels)} timesteps, to {WIDTH.value} % or apart from "
        f"0; medians of {ROUNDS.value} rounds\n"
        f"{'':24}{'pictures a timestep':>22}{'components x pictures':>24}{'seconds':>10}"
        f"{'over adaptive':>16}{'in runs':>10}\n"
        f"{'adaptive, nested':24}{shown:>22}{found.spent:24,}{took:10.1f}"
    )
    for name, runs in (("fixed, nested", found.fixed), ("fixed, crossed", crossed.fixed)):
        needed = runs // count
        ratios = f"{each * needed / took:14.2f} x{runs / found.spent:8.2f} x"
        print(f"{name:24}{needed:22}{runs:24,}{each * needed:10.1f}{ratios}")
    print(f"fixed designs: run on {pilot} pictures, extrapolated\n{_operations.ceiling()}")
    if left:
        print(f"{left} components stayed undecided: no certified answer; give more pictures (--images)")


if __name__ == "__main__":
    _launch.run(main)
