"""How many images a second training's input delivers, and how long a fast device would wait for it.

`python -m experiments.benchmarks.input_pipeline --preset=paper --workdir=runs/i` makes a store of bytes like
that of CelebA's training images (162,770 of 64x64; sparse, so that it takes no disk and lies in memory: what
reading costs where the disk must be asked is not measured). With flips, it times batches that are made and
placed one after the other, and how long a device of `--rate` images a second waits for batches that are made
ahead of time. The device is played by waiting, as a card works without the CPU. Result: WORKDIR/input.json.
"""

import functools
import time

import jax
import numpy as np
from absl import flags

from experiments import _launch
from mechdiff.core.config import override, to_dict
from mechdiff.data import Dataset
from mechdiff.storage import files
from mechdiff.storage.manifest import run_manifest
from mechdiff.training.batches import RunData, placed_batch
from mechdiff.training.placement import data_parallel
from mechdiff.training.prefetch import prefetched

RATE = flags.DEFINE_float("rate", 2000, "Images a second that the device takes.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 50, "Steps timed in each round.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the median of them is shown.", lower_bound=1)
IMAGES, SIZE = 162_770, 64  # CelebA's training split at the paper's size
BATCHES = (64, 256)


def delivered(make, batch: int, steps: int) -> float:
    """Images a second, made one batch after the other."""
    start = time.perf_counter()
    for step in range(steps):
        jax.block_until_ready(make(step))
    return steps * batch / (time.perf_counter() - start)


def stalled(make, batch: int, steps: int, rate: float) -> float:
    """Share of its time that a device waits which takes so many images a second, after the first batch."""
    waited = 0.0
    batches = prefetched(make, 0, steps + 1)
    jax.block_until_ready(next(batches)[1])
    began = time.perf_counter()
    for _ in range(steps):
        time.sleep(batch / rate)  # the device is at work
        done = time.perf_counter()
        jax.block_until_ready(next(batches)[1])
        waited += time.perf_counter() - done
    return waited / (time.perf_counter() - began)


def main(config, workdir):
    files.ensure_writable(workdir)
    path = workdir / "images.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (IMAGES, SIZE, SIZE, 3))
    images[:: IMAGES // 64] = 128
    dataset = Dataset(name="stand-in", images=images, digest="0" * 64, ids=np.arange(IMAGES))
    rows = {}
    for batch in BATCHES:
        own = override(config, [f"train.batch={batch}", "data.flip=True"])
        data = RunData(own, dataset, dataset, None, None)
        make = functools.partial(placed_batch, data, data_parallel(own.train).batch)
        make(0)
        rates = [delivered(make, batch, STEPS.value) for _ in range(ROUNDS.value)]
        stalls = [stalled(make, batch, STEPS.value, RATE.value) for _ in range(ROUNDS.value)]
        rows[batch] = {"images_per_second": float(np.median(rates)), "stall": float(np.median(stalls))}
        print(
            f"batch {batch}: {rows[batch]['images_per_second']:,.0f} images a second; a device of "
            f"{RATE.value:,.0f} a second waits {rows[batch]['stall']:.2%} of its time"
        )
    path.unlink()
    manifest = run_manifest(to_dict(config), rate=RATE.value)
    files.write_json(workdir / "input.json", {"rows": rows, "manifest": manifest})
    return rows


if __name__ == "__main__":
    _launch.run(main)
