"""What sharing the clean trajectory saves in a sweep over windows, against walking every trajectory from x_T.

`python -m experiments.benchmarks.sampling_sweep --preset=cpu16 --windows=10 --components=8`; shorter with
--rounds=1, --steps=10, --samples=2.

Both arms are ours, run the same compiled program in one process, and take turns; their results are compared.
The table gives medians over the rounds, the ratio that the count of network calls predicts, and the speed
beside that of a plain matrix product. Compiling comes before the clock starts.
"""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import jax
import numpy as np
from absl import flags

from experiments import _launch
from experiments.benchmarks import _flops, _harness
from mechdiff.core.devices import use_all_cores
from mechdiff.diffusion.schedules import ddim_timesteps, make_schedule
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, init_unet
from mechdiff.sweeps import sampling
from mechdiff.sweeps.execution import rollout

WINDOWS = flags.DEFINE_integer("windows", 10, "Windows of noise levels.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 50, "DDIM steps.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 4, "Samples.", lower_bound=2)
COMPONENTS = flags.DEFINE_integer("components", 8, "Components that are left out in turn.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 2, "Turns that each arm takes.", lower_bound=1)


def main(config, workdir):
    use_all_cores()
    params, identity = jax.jit(init_unet, static_argnums=1)(jax.random.key(0), config.unet)
    rng = np.random.default_rng(0)  # a fresh network predicts nothing: let it
    params = jax.tree.map(
        lambda p: (np.asarray(p) + 0.02 * rng.normal(size=p.shape)).astype(np.float32), params
    )
    denoiser = Denoiser("benchmark", config.unet, make_schedule(config.diffusion), params, identity)
    timesteps = ddim_timesteps(denoiser.schedule.steps, min(STEPS.value, denoiser.schedule.steps))
    windows = rollout.even_windows(timesteps, WINDOWS.value)
    known = components(config.unet)
    chosen = known[:: max(1, len(known) // COMPONENTS.value)][: COMPONENTS.value]

    def shared():
        with TemporaryDirectory() as folder:
            samples = sampling.SampleSet(timesteps, SAMPLES.value, jax.random.key(0))
            return sampling.sampling_sweep(denoiser, samples, windows, Path(folder), chosen=chosen)

    def naive():
        with mock.patch.object(rollout, "first_step_inside", lambda timesteps, window: 0):
            return shared()

    arms = {"shared": shared, "naive": naive}
    swept = {name: arm() for name, arm in arms.items()}  # compiles
    worst = float(abs(swept["shared"].distance - swept["naive"].distance).max())
    seconds = _harness.in_turns(arms, ROUNDS.value)
    calls = dict(zip(arms, rollout.network_calls(timesteps, windows, len(chosen)), strict=True))
    print(
        f"{len(chosen)} components in {len(windows)} windows of {len(timesteps)} steps, "
        f"{SAMPLES.value} samples, preset {config.name}; medians of {ROUNDS.value} rounds"
    )
    report(seconds, calls, sum(_flops.of_stages(config.unet, params, identity)) * SAMPLES.value / 1e9)
    print(f"distances differ by at most {worst:.1e}\n{_flops.ceiling()}")


def report(seconds, calls, per_call):
    """Prints medians and ratios; `calls` of the network by arm, of `per_call` GF each."""
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{'arm':12}{'calls a sample':>16}{'seconds':>10}{'GF/s':>8}")
    for name, count in calls.items():
        print(f"{name:12}{count:16,}{middle[name]:10.1f}{per_call * count / middle[name]:8.1f}")
    print(
        f"ratio {middle['naive'] / middle['shared']:.2f} x in time, "
        f"{calls['naive'] / calls['shared']:.2f} x in network calls"
    )


if __name__ == "__main__":
    _launch.run(main)
