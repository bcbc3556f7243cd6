"""Scores of every single channel by screening, against exact runs of a random sample of them, extrapolated.

`python -m experiments.benchmarks.screening --preset=cpu16 --sample=64 --images=16`; shorter with --rounds=1,
--sample=16, --set=sweep.timesteps=2.

Both arms are ours and take turns in one process. The exact arm is the sweep that shares prefixes, the fastest
that we have; its time is that of the sample times components / sample, for its cost grows with their number.
The scores' does not. Compiling comes before the clock starts. The network is untrained: times don't depend on
that.
"""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from absl import flags

from experiments import _launch
from experiments.benchmarks import _flops, _harness
from mechdiff.circuits import screen_scores
from mechdiff.circuits.attribution import Expansion, gate_scores
from mechdiff.core.devices import use_all_cores
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import make_schedule, timesteps_by_log_snr
from mechdiff.models import untrained
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, init_unet

SAMPLE = flags.DEFINE_integer("sample", 64, "Components that are run exactly.", lower_bound=1)
RANDOM_VECTORS = flags.DEFINE_integer("random_vectors", 4, "Random vectors of the scores.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 16, "Images.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns that each arm takes.", lower_bound=1)


def main(config, workdir):
    use_all_cores()
    identity = jax.jit(init_unet, static_argnums=1)(jax.random.key(0), config.unet)[1]
    schedule = make_schedule(config.diffusion)
    denoiser = untrained.untrained(Denoiser("benchmark", config.unet, schedule, None, identity))
    every = components(config.unet, channel_groups=2 * max(config.unet.widths))  # no skip is wider
    rng = np.random.default_rng(0)
    count = min(SAMPLE.value, len(every))
    sampled = [every[i] for i in sorted(rng.choice(len(every), count, replace=False))]
    side, sweep = config.unet.image_size, config.sweep
    images = rng.uniform(-1, 1, (IMAGES.value, side, side, config.unet.in_channels)).astype(np.float32)
    eval_set = EvalSet(images, timesteps_by_log_snr(schedule, sweep.timesteps), jax.random.key(0))

    def exact():
        with TemporaryDirectory() as folder:
            screen_scores.exact_losses(denoiser, eval_set, Path(folder), sampled)

    def scores_of_all():
        gate_scores(
            denoiser, eval_set, chosen=every, expansion=Expansion(random_vectors=RANDOM_VECTORS.value)
        )

    arms = {"scores": scores_of_all, "exact": exact}
    for arm in arms.values():  # compiles
        arm()
    seconds = _harness.in_turns(arms, ROUNDS.value)
    share = len(every) / len(sampled)
    all_exact = statistics.median(seconds["exact"]) * share
    scores = statistics.median(seconds["scores"])
    ratios = [share * b / a for a, b in zip(seconds["scores"], seconds["exact"], strict=True)]
    print(
        f"{len(every):,} components (single channels included), {IMAGES.value} images, {sweep.timesteps} "
        f"timesteps, preset {config.name}; medians of {ROUNDS.value} rounds\n"
        f"{'arm':48}{'seconds':>12}\n"
        f"{f'scores of all, {RANDOM_VECTORS.value} random vectors':48}{scores:12.2f}\n"
        f"{f'exact, {len(sampled)} of them':48}{all_exact / share:12.2f}\n"
        f"{'exact, all (extrapolated, not run)':48}{all_exact:12.1f}\n"
        f"ratio {all_exact / scores:.0f} x (rounds: {min(ratios):.0f} to {max(ratios):.0f})\n"
        f"{_flops.ceiling()}"
    )


if __name__ == "__main__":
    _launch.run(main)
