"""Time until every component is decided, against fixed exact designs.

`python -m experiments.benchmarks.sequential_sweep --model=MODEL --images=512 --width=0.5`

Adaptive: `sequential_sweep`, which drops components once their intervals are certain, with other images at
every timestep (nested), run to its end. Fixed: an exact sweep of all components on one number of images,
the smallest with which an ordinary interval (no looking in between) of each would pass the same rule; once
nested, once with the same images at all timesteps (crossed), as one would do it otherwise. These numbers
come from deviations that were measured, on what the adaptive arm saw and on `--pilot` images, so the fixed
arms know them beforehand, which no planner does. Their cost is linear in images: they are run on `--pilot`
images, and their time is extrapolated. All run in one process, compiled beforehand, in turns.
"""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
from absl import flags

from experiments import _launch, _opening
from experiments.benchmarks import _flops, _harness
from mechdiff.core import keys
from mechdiff.core.config import SweepConfig, override
from mechdiff.core.devices import use_all_cores
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import timesteps_by_log_snr
from mechdiff.models import load
from mechdiff.sweeps.ablation import ablation_sweep
from mechdiff.sweeps.sequential import sequential_sweep
from mechdiff.sweeps.stopping import StoppingRule

MODEL = flags.DEFINE_string("model", None, "Folder of a trained model.", required=True)
CELEBA = flags.DEFINE_string("celeba", None, "CelebA in its official layout; several folders with commas.")
WIDTH = flags.DEFINE_float("width", 5.0, "In percent of the clean loss; certain enough wherever it lies.")
IMAGES = flags.DEFINE_integer("images", 512, "Images a timestep that may be spent.", lower_bound=16)
PILOT = flags.DEFINE_integer("pilot", 64, "Images that fixed designs are run on.", lower_bound=16)
ROUNDS = flags.DEFINE_integer("rounds", 1, "Turns that each arm takes.", lower_bound=1)


def main(config, workdir):
    use_all_cores()
    settings = [f"sweep.images={IMAGES.value}", "sweep.reference_images=1", "sweep.nested=true"]
    config = override(config, settings)
    denoiser, trained, _ = load.load_denoiser(Path(MODEL.value))
    images = _opening.chooser(config, workdir, CELEBA.value, None)(denoiser, trained)
    timesteps = timesteps_by_log_snr(denoiser.schedule, config.sweep.timesteps)
    key, block = keys.stream(jax.random.key(config.seed), "scored noise"), config.sweep.image_block
    pilot = min(PILOT.value, IMAGES.value)

    def adaptive(shown):
        with TemporaryDirectory() as folder:
            eval_set = EvalSet(shown, timesteps, key)
            return sequential_sweep(denoiser, eval_set, StoppingRule(WIDTH.value), Path(folder), block=block)

    def fixed():
        with TemporaryDirectory() as folder:
            eval_set = EvalSet(images.scored[:pilot], timesteps, key)
            settings = SweepConfig(ablations=("zero",), image_block=block)
            ablation_sweep(denoiser, eval_set, Path(folder), config=settings)

    nested, crossed = adaptive(images.nested), adaptive(images.scored[:pilot])  # compile
    fixed()
    arms = {"adaptive": lambda: adaptive(images.nested), "fixed": fixed}
    seconds = {name: statistics.median(of) for name, of in _harness.in_turns(arms, ROUNDS.value).items()}
    print(f"{denoiser.name}, {len(timesteps)} timesteps; medians of {ROUNDS.value} rounds")
    report(nested, crossed, seconds["adaptive"], seconds["fixed"] / pilot)
    print(f"fixed designs: run on {pilot} images, extrapolated\n{_flops.ceiling()}")
    if left := int((~nested.decided).sum()):
        print(f"{left} components stayed undecided; give more images (--images)")


def report(nested, crossed, took, per_image):
    """Prints what the adaptive arm spent, and fixed designs that are as certain.

    Args:
      nested, crossed: of `sequential_sweep`, on images of either design.
      took: seconds of the adaptive arm.
      per_image: seconds of a fixed design for each image.
    """
    count = len(nested.components)
    spent = f"{nested.images.min()} to {nested.images.max()}"
    print(
        f"{count} components, to {WIDTH.value} % or apart from 0\n"
        f"{'':24}{'images a timestep':>22}{'components x images':>24}{'seconds':>10}"
        f"{'over adaptive':>16}{'in runs':>10}\n"
        f"{'adaptive, nested':24}{spent:>22}{nested.spent:24,}{took:10.1f}"
    )
    for name, runs in (("fixed, nested", nested.fixed), ("fixed, crossed", crossed.fixed)):
        needed = runs // count
        ratios = f"{per_image * needed / took:14.2f} x{runs / nested.spent:8.2f} x"
        print(f"{name:24}{needed:22}{runs:24,}{per_image * needed:10.1f}{ratios}")


if __name__ == "__main__":
    _launch.run(main)
