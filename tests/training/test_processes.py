"""Training in two processes of two devices each, against one process of two: same numbers, same folder, on a
disk that both see and in a bucket."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mechdiff.core.config import UNetConfig, override, to_dict
from mechdiff.models import load
from mechdiff.storage import bucket, checkpoint, files, objects, run_log
from mechdiff.training import loop
from tests.reference.bucket_servers import s3
from tests.reference.ports import free_port

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of clients
HANGS_AFTER = 400  # seconds; some 40 are usual
KILLED_AT = 6  # after the checkpoint of step 4, before that of step 8
SETTINGS = (
    "train.steps=8",
    "train.log_every=1",
    "train.eval_every=8",
    "train.save_every=4",
    "train.warmup=2",
    "data.name=gaussian",  # no program is compiled to draw it
)

# Arguments: a file of (config, folder or address, step, copies) for each run, the port, the process. At that
# step the processes are killed, or the folder is copied as it would be left: only what is on disk counts.
PROGRAM = """
import asyncio, faulthandler, gc, json, os, shutil, signal, sys, time
faulthandler.register(signal.SIGUSR1)  # says where it hangs
from pathlib import Path
gc.set_threshold(50_000, 10, 10)
import jax
import numpy as np
from jax._src import cache_key
from orbax.checkpoint._src.path import async_path
# A program has a key of its own in each process of CPUs, so that each compiles it; thus one does for both.
cache_key._hash_accelerator_config = lambda *_: None
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)
from mechdiff.core import processes
from mechdiff.core.config import from_dict
from mechdiff.storage import bucket, exchange
from mechdiff.training import loop, programs
runs, port, process = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], int(sys.argv[3])
processes.join(processes.Membership(f"127.0.0.1:{port}", 2, process), 600)
if process == 1:  # of two copies in a bucket, one makes its folders later than the other
    mkdir = async_path.mkdir
    async def late(*args, **settings):
        await asyncio.sleep(0.5)
        await mkdir(*args, **settings)
    async_path.mkdir = late
programs.SAMPLES = programs.SAMPLE_STEPS = 4
original = loop.Trainer._finite
for config, folder, at, *copies in runs:
    if Path(folder).name != "whole":  # compiling the sampler once is enough
        loop.Trainer.samples = lambda self, ema: np.zeros((4, 8, 8, 3), np.uint8)
    def finite(self, pending, done, saved, at=at, copies=copies):
        if done >= at > 0:
            saved.wait()
        if done >= at > 0 and copies:
            for copied in copies:
                if process == 0 and not Path(copied).exists():
                    shutil.copytree(self.workdir, copied)
        elif done >= at > 0:
            if others := exchange.of(self.workdir):
                others.send()
            time.sleep(0.5)  # until the other has seen that the checkpoint is whole
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, pending, done, saved)
    loop.Trainer._finite = finite
    with bucket.local_copy(folder, seconds=2.0) as copy:
        loop.train(from_dict(config), copy)
"""


def started(folder, *runs):
    """Two processes that do these runs."""
    folder.mkdir(exist_ok=True)
    script, plan = folder / "program.py", folder / "runs.json"
    script.write_text(PROGRAM)
    plan.write_text(json.dumps([(to_dict(config), str(path), *rest) for config, path, *rest in runs]))
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "PYTHONPATH": str(ROOT)}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    cache |= {"JAX_SHARE_BINARY_BETWEEN_HOSTS": "1", "JAX_SHARE_BINARY_BETWEEN_HOSTS_TIMEOUT_MS": "300000"}
    port = str(free_port())
    commands = [[sys.executable, str(script), str(plan), port, str(process)] for process in (0, 1)]
    return [
        subprocess.Popen(command, env=os.environ | cache, stderr=subprocess.PIPE, text=True, cwd=folder)
        for command in commands
    ]


def ended(processes):
    """Exit codes and what was printed on stderr. Processes that hang say where, and are killed."""
    deadline = time.monotonic() + HANGS_AFTER
    try:
        lines = [process.communicate(timeout=deadline - time.monotonic())[1] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.send_signal(signal.SIGUSR1)
        time.sleep(2)
        for process in processes:
            process.kill()
        pytest.fail("\n".join(process.communicate()[1] for process in processes))
    return [process.returncode for process in processes], lines


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The address of an empty bucket."""
    with s3() as settings, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHDIFF_MIRRORS", str(tmp_path_factory.mktemp("mirrors")))
        for name, value in settings.items():
            patch.setenv(name, value)
        objects.Objects("s3://runs").system.mkdir("runs")
        yield "s3://runs"


@pytest.fixture(scope="module")
def runs(tiny, store, tmp_path_factory):
    """Folders: `whole` without a break, `killed` (and then resumed), `broken` (not resumed), `sharded`; in a
    bucket `killed` (and then resumed, sharded) and `broken`."""
    folder = tmp_path_factory.mktemp("processes")
    one_level = UNetConfig(
        image_size=8, widths=(32,), heads=(1,), norm_groups=4, mid_attention=False,
        down_attention=(False,), up_attention=(False,),
    )  # fmt: skip
    config = dataclasses.replace(tiny, unet=one_level)  # wide enough to be sharded, and compiled fast
    config = override(config, SETTINGS)
    sharded = override(config, ["train.fsdp=True"])
    killed = started(
        folder / "first",
        (config, folder / "whole", KILLED_AT, str(folder / "killed"), str(folder / "broken")),
        (config, folder / "killed", 0),
        (sharded, folder / "sharded", 0),
        (sharded, f"{store}/killed", KILLED_AT),
    )
    codes, lines = ended(killed)
    assert all(code < 0 for code in codes), lines  # JAX ends one that notices the other's death first
    objects.Objects(store).system.copy(f"{store}/killed", f"{store}/broken", recursive=True)
    again = started(folder / "again", (sharded, f"{store}/killed", 0))  # compiles one training, not two
    codes, lines = ended(again)
    assert codes == [0, 0], lines
    return folder, config, lines


@pytest.fixture(scope="module", autouse=True)
def unsampled():
    """No sampler is compiled in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "samples", lambda *_: np.zeros((4, 8, 8, 3), np.uint8))
        yield


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory):
    """The same run in this process alone."""
    return loop.train(runs[1], tmp_path_factory.mktemp("alone"))


def params(model):
    return load.load_trained(model)[1]


def largest_difference(first, second):
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), first, second)
    return max(jax.tree.leaves(differences))


def test_two_processes_train_as_one_does(runs, alone):
    """Sums over four devices instead of two: rounding, which Adam's quotients magnify a little."""
    folder, config, _ = runs
    whole = load.load_trained(folder / "whole" / "model")
    assert largest_difference(whole[1], params(alone)) < 5e-4
    losses = [[line["loss"] for line in record["log"] if line["kind"] == "train"]
              for record in (whole[3], load.load_trained(alone)[3])]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(losses[0]) == config.train.steps


def test_a_run_killed_in_both_processes_resumes_to_the_same_numbers(runs):
    folder, _, _ = runs
    assert checkpoint.TrainCheckpoints(folder / "broken" / "checkpoints").latest_step() == 4
    resumed, whole = (load.load_trained(folder / name / "model") for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, resumed[1], whole[1])
    steps = [line["step"] for line in run_log.read_log(folder / "killed" / "log.jsonl")]
    assert steps == [line["step"] for line in run_log.read_log(folder / "whole" / "log.jsonl")]
    assert files.read_json(folder / "killed" / "manifest.json")["resumed_from"] == 4


def test_one_process_goes_on_where_two_were_killed(runs, tmp_path):
    folder, config, _ = runs
    shutil.copytree(folder / "broken", tmp_path / "run")
    model = loop.train(config, tmp_path / "run")
    assert largest_difference(params(model), params(folder / "whole" / "model")) < 5e-4


def test_sharded_state_trains_to_the_same_parameters(runs, alone, tmp_path):
    """Also what it left is read by one process that doesn't shard, which takes its last steps anew."""
    folder, config, _ = runs
    assert largest_difference(params(folder / "sharded" / "model"), params(alone)) < 5e-4
    shutil.copytree(folder / "sharded", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    again = loop.train(config, tmp_path / "run")
    assert files.read_json(tmp_path / "run" / "manifest.json")["resumed_from"] == 4
    assert largest_difference(params(again), params(alone)) < 5e-4


def test_a_run_in_a_bucket_killed_in_both_processes_resumes_to_the_same_numbers(runs, store):
    """Though each has a disk of its own, and a share of the parameters."""
    folder, _, lines = runs
    with bucket.local_copy(f"{store}/killed") as copy:
        assert files.read_json(copy / "manifest.json")["resumed_from"] == 4
        resumed, whole = (load.load_trained(path / "model") for path in (copy, folder / "sharded"))
        assert run_log.read_log(copy / "log.jsonl")[-1]["step"] == 8
        assert checkpoint.TrainCheckpoints(copy / "checkpoints").steps() == [4, 8]
    jax.tree.map(np.testing.assert_array_equal, resumed[1], whole[1])
    for text in lines:
        assert re.search(r"s3://runs/killed: [1-9]\d* files fetched", text)


def test_one_process_goes_on_in_a_bucket_where_two_were_killed(runs, store):
    folder, config, _ = runs
    with bucket.local_copy(f"{store}/broken") as copy:
        assert checkpoint.TrainCheckpoints(copy / "checkpoints").latest_step() == 4
        model = loop.train(config, copy)
        assert largest_difference(params(model), params(folder / "whole" / "model")) < 5e-4


def test_every_process_says_what_it_has(runs):
    _, _, lines = runs
    for process, text in enumerate(lines):
        assert re.search(rf"process {process} of 2 on \S+: 2 cpu devices of 4\n", text)
