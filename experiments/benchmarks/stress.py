"""A sweep of at least 20,000 configurations x images that must stay inside a stated memory.

`python -m experiments.benchmarks.stress --preset=cpu16 --memory=3000`; shorter with --work=2000.

Prints what one pass was predicted to take, and the peak of the process; exit code 1 if that is above
`--memory`. The network is untrained and the images are noise: neither changes the work.
"""

import resource
import sys
import time

import jax
from absl import flags

from experiments import _launch
from experiments.benchmarks import _flops, scaling
from mechdiff.core.devices import use_all_cores
from mechdiff.core.text_table import text_table
from mechdiff.models.unet import components
from mechdiff.sweeps.execution import engine

WORK = flags.DEFINE_integer("work", 20_000, "Configurations x images, at least.", lower_bound=1)
MEMORY = flags.DEFINE_integer("memory", 3000, "Bound of the process, MiB.", lower_bound=1)


def main(config, workdir):
    use_all_cores()
    count = len(components(config.unet))
    images = -(-WORK.value // count)
    run = scaling.sweep(config, count, images, timesteps=1)
    before = peak()
    start = time.perf_counter()
    run()
    seconds, after = time.perf_counter() - start, peak()
    most = sum(engine.memory_limit(device) for device in jax.local_devices()) / 2**20
    rows = {
        "before the sweep": before,
        "passes of all devices, at most": most,
        "peak": after,
        "bound": MEMORY.value,
    }
    print(
        f"{config.name}: {count} configurations x {images} images = {count * images:,} in {seconds:.0f} s, "
        f"compiling included: {count * images / seconds:.0f} a second"
    )
    print("\n".join(text_table(("memory", "MiB"), [(name, f"{size:.0f}") for name, size in rows.items()])))
    print(_flops.ceiling())
    sys.exit(0 if after <= MEMORY.value else 1)


def peak():
    """The most memory that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    _launch.run(main)
