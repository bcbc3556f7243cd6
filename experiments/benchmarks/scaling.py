"""How wall time and memory of an ablation sweep grow with components, images, timesteps and resolution.

`python -m experiments.benchmarks.scaling --preset=cpu16`; shorter with --doublings=1 --images=2.

One axis at a time is doubled from a common start. Every row is a process of its own: it sweeps twice, the
first time to compile, and states the time of the second and its peak of memory, compiling included.
Ratios are to the start. The network is untrained, the images are noise: neither changes the work.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import _launch
from experiments.benchmarks import _flops
from mechdiff.core.config import SweepConfig
from mechdiff.core.devices import use_all_cores
from mechdiff.diffusion.eval_set import EvalSet
from mechdiff.diffusion.schedules import make_schedule, timesteps_by_log_snr
from mechdiff.models.denoiser import Denoiser
from mechdiff.models.unet import components, init_unet
from mechdiff.sweeps.ablation import ablation_sweep

IMAGES = flags.DEFINE_integer("images", 8, "Images at the start.", lower_bound=1)
DOUBLINGS = flags.DEFINE_integer("doublings", 2, "How often each axis is doubled.", lower_bound=1)


def main(config, workdir):
    use_all_cores()
    known = len(components(config.unet))
    start = {
        "components": max(1, known // 2**DOUBLINGS.value),
        "images": IMAGES.value,
        "timesteps": 1,
        "resolution": config.unet.image_size,
    }
    print(f"ablation sweep, {config.name}; start: {start}")
    print(f"{'':24}{'seconds':>10}{'x':>8}{'peak MiB':>10}{'x':>8}{'per s':>10}")
    first = row("start", config, start, None)
    for axis in start:
        # Twice the side is four times the work: once is enough.
        for doubling in range(1, 2 if axis == "resolution" else DOUBLINGS.value + 1):
            size = start | {axis: start[axis] * 2**doubling}
            row(f"{axis} x {2**doubling}", config, size, first)
    print(_flops.ceiling())


def row(name, config, size, first):
    """Measures in a process of its own and prints one line."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    context = multiprocessing.get_context("spawn")  # a forked process would inherit this one's memory
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        seconds, peak = pool.submit(measured, config, **size).result()
    ratios = (seconds / first[0], peak / first[1]) if first else (1, 1)
    rate = size["components"] * size["images"] * size["timesteps"] / seconds
    print(f"{name:24}{seconds:10.2f}{ratios[0]:7.2f}x{peak:10.0f}{ratios[1]:7.2f}x{rate:10.0f}", flush=True)
    return seconds, peak


def measured(config, components, images, timesteps, resolution):
    """Seconds of a sweep that need not compile, and the peak of this process in MiB."""
    use_all_cores()
    config = dataclasses.replace(config, unet=dataclasses.replace(config.unet, image_size=resolution))
    run = sweep(config, components, images, timesteps)
    run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sweep(config, count, images, timesteps):
    """A sweep of `count` components spread over the network, ready to run."""
    params, identity = jax.jit(init_unet, static_argnums=1)(jax.random.key(0), config.unet)
    schedule = make_schedule(config.diffusion)
    denoiser = Denoiser("benchmark", config.unet, schedule, params, identity)
    known = components(config.unet)
    chosen = [known[i] for i in np.linspace(0, len(known) - 1, count).astype(int)]
    shape = (images, *2 * [config.unet.image_size], config.unet.in_channels)
    x0 = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    chosen_timesteps = timesteps_by_log_snr(schedule, timesteps)
    settings = SweepConfig(ablations=("zero",), image_block=min(images, config.sweep.image_block))

    def run():
        with tempfile.TemporaryDirectory() as folder:
            key = jax.random.key(0)
            ablation_sweep(
                denoiser, EvalSet(x0, chosen_timesteps, key), Path(folder), config=settings, chosen=chosen
            )

    return run


if __name__ == "__main__":
    _launch.run(main)
