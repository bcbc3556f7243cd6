"""Kills a training and a sweep at random moments, resumes them, and compares the ends.

`python -m experiments.benchmarks.kill --preset=tiny --kills=10` trains one model undisturbed and one that is
killed (SIGKILL) `kills` times at random moments, then sweeps the model likewise. Prints how the kills fell
and whether parameters and tables are equal; exit code 1 if not. The pictures are synthetic.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import _launch
from mechdiff import results, train
from mechdiff.config import to_dict

KILLS = flags.DEFINE_integer("kills", 10, "How often each run is killed.", lower_bound=1)
LAST = flags.DEFINE_float("last", 0.95, "Kills fall before this share of the undisturbed run's time.")


def main(config, workdir):
    del config  # each process makes its own from the same flags
    shutil.rmtree(workdir, ignore_errors=True)
    random.seed(0)
    disturbed("experiments.train", workdir, [])
    model = [f"--model={workdir / 'experiments.train-whole' / 'model'}"]
    disturbed("experiments.sweep", workdir, model)
    equal = same_parameters(workdir) & same_tables(workdir)
    print("equal" if equal else "NOT EQUAL")
    sys.exit(0 if equal else 1)


def disturbed(module, workdir, extra):
    """Runs a launcher once undisturbed, and once killed again and again until it gets through."""
    whole, broken = (workdir / f"{module}-{kind}" for kind in ("whole", "broken"))
    launch(module, whole, extra).wait()  # fills the cache of compiled programs
    start = time.monotonic()
    launch(module, workdir / f"{module}-again", extra).wait()
    seconds = time.monotonic() - start
    fallen = []
    for _ in range(KILLS.value):
        process = launch(module, broken, extra)
        try:
            process.wait(random.uniform(0, LAST.value * seconds))
            break  # it got through
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            fallen.append(progress(broken))
    code = launch(module, broken, extra).wait()
    print(f"{module}: {seconds:.0f} s undisturbed; killed {len(fallen)} times, at {fallen}; exit code {code}")


def launch(module, folder, extra):
    common = [f"--preset={_launch.FLAGS.preset}", *(f"--set={item}" for item in _launch.FLAGS.set)]
    command = [sys.executable, "-m", module, f"--workdir={folder}", *common, *extra]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    return subprocess.Popen(
        command, env=os.environ | cache, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def progress(folder):
    """How far a run had come: its newest checkpoint, or the share of a sweep that is written."""
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
    stores = list((folder / "subjects").glob("*/sweep/*.zarr"))
    share = [float(np.isfinite(results.read(store).loss).mean().round(2)) for store in stores]
    return max(steps, default=0) if steps else max(share, default=0)


def same_parameters(workdir):
    whole, broken = (
        train.load_trained(workdir / f"experiments.train-{kind}" / "model") for kind in ("whole", "broken")
    )
    equal = jax.tree.map(np.array_equal, whole[1], broken[1])
    return to_dict(whole[0]) == to_dict(broken[0]) and all(jax.tree.leaves(equal))


def same_tables(workdir):
    paths = (
        next(Path(workdir, f"experiments.sweep-{kind}").glob("subjects/*/sweep.zarr"))
        for kind in ("whole", "broken")
    )
    return results.read(next(paths)).equals(results.read(next(paths)))


if __name__ == "__main__":
    _launch.run(main)
