"""Kills a training and a sweep at random moments, resumes them, and compares the ends.

`python -m experiments.benchmarks.kill_and_resume --preset=tiny --kills=10` trains one model undisturbed and
one that is killed (SIGKILL) at random moments, then sweeps the model likewise; a run that gets through is
begun anew in another folder until all kills have fallen. With `--sweepers=2` two processes share one sweep,
and either is killed and started again. Prints when the kills fell and whether parameters and tables are
equal; exit code 1 if not. The images are synthetic.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import _flags, _launch
from mechdiff.core.config import to_dict
from mechdiff.models import load
from mechdiff.storage import labelled

KILLS = flags.DEFINE_integer("kills", 10, "How many kills fall on training, and on the sweep.", lower_bound=1)
SWEEPERS = flags.DEFINE_integer("sweepers", 1, "How many processes fill one sweep.", lower_bound=1)
LAST = flags.DEFINE_float("last", 0.95, "A kill falls within this share of an undisturbed run's time.")


def main(config, workdir):
    del config  # each process makes its own from the same flags
    shutil.rmtree(workdir, ignore_errors=True)
    random.seed(0)
    equal = disturbed("experiments.train", workdir, [], 1, parameters)
    model = [f"--model={workdir / 'experiments.train-undisturbed' / 'model'}"]
    equal &= disturbed("experiments.sweep", workdir, model, SWEEPERS.value, tables)
    print("equal" if equal else "NOT EQUAL")
    sys.exit(0 if equal else 1)


def disturbed(module, workdir, extra, together, ends):
    """Runs a launcher undisturbed, and killed again and again until it gets through; are the ends equal?"""
    undisturbed = workdir / f"{module}-undisturbed"
    launch(module, undisturbed, extra).wait()  # fills the cache of compiled programs
    start = time.monotonic()
    launch(module, workdir / f"{module}-again", extra).wait()
    seconds = time.monotonic() - start
    fallen, equal = [], True
    while len(fallen) < KILLS.value:
        folder = workdir / f"{module}-broken{len(list(workdir.glob(f'{module}-broken*')))}"
        moments, codes = killed(module, folder, extra, together, seconds, KILLS.value - len(fallen))
        equal &= not any(codes) and ends(folder) == ends(undisturbed)
        print(f"{folder.name}: {len(moments)} kills, at {moments}; exit codes {codes}", flush=True)
        fallen += moments
    print(f"{module}: {seconds:.0f} s undisturbed; {len(fallen)} kills; equal: {equal}", flush=True)
    return equal


def killed(module, folder, extra, together, seconds, kills):
    """One run by processes of which any is killed and started again: how far it was each time, exit codes."""
    running, moments = [launch(module, folder, extra) for _ in range(together)], []
    while len(moments) < kills:
        time.sleep(random.uniform(0, LAST.value * seconds / together))
        alive = [i for i, process in enumerate(running) if process.poll() is None]
        if not alive:
            break
        victim = random.choice(alive)
        running[victim].kill()
        running[victim].wait()
        moments.append(progress(folder))
        running[victim] = launch(module, folder, extra)
    return moments, [process.wait() for process in running]


def launch(module, folder, extra):
    common = [f"--preset={_flags.FLAGS.preset}", *(f"--set={item}" for item in _flags.FLAGS.set)]
    command = [sys.executable, "-m", module, f"--workdir={folder}", *common, *extra]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    return subprocess.Popen(
        command, env=os.environ | cache, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def progress(folder):
    """How far a run had come: its newest checkpoint, or the share of a sweep that is written."""
    if Path(folder, "model").exists() or list(folder.glob("subjects/*/sweep.zarr")):
        return "end"
    steps = [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdecimal()]
    shares = [
        float(np.isfinite(labelled.read(store).loss).mean().round(2))
        for store in folder.glob("subjects/*/sweep/*.zarr")
    ]
    return max([*steps, *shares], default=0)


def parameters(folder):
    """Of a trained model, with its config: comparable."""
    config, params = load.load_trained(folder / "model")[:2]
    return to_dict(config), [(a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(params)]


def tables(folder):
    """All that a sweep leaves, bit by bit: comparable."""
    return {
        (store.name, name): (variable.dims, variable.shape, variable.values.tobytes())
        for store in folder.glob("subjects/*/*.zarr")
        for name, variable in labelled.read(store).variables.items()
    }


if __name__ == "__main__":
    _launch.run(main)
