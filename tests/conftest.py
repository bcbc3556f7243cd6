"""Settings of the whole suite, and the one small trained model that many tests share."""

import atexit
import dataclasses
import gc
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

from packaging.version import Version

# Compiling is most of the suite's time: no optimization, none of the slower kernel emitters, one module a
# program, no lines of source in programs, and one cache of programs for all workers and the processes that
# their tests start, which inherit all this. (JAX writes the cache without a lock: a program that is read
# half-written is compiled again.) Kept beside pytest's own cache, so that what was compiled yesterday is not
# compiled today, unless the environment names another folder. Set before jax is imported.
programs = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if Version(importlib.metadata.version("jaxlib")) <= Version("0.11.0"):  # later ones end at a flag that went
    flags.append("--xla_cpu_use_fusion_emitters=false")
for flag in flags:
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"

# One thread for products in each worker and each process that tests start: two wait for each other, spinning.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

worker = os.environ.get("PYTEST_XDIST_WORKER", "")

# The processes that tests start would each compile all of the package's source, too: one of them writes it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from reference.type_checks import checked_once  # noqa: E402

jaxtyping.jaxtyped = checked_once  # before anything of the package is imported
jax.config.update("jax_num_cpu_devices", 2)  # before any device is used: data-parallel code runs for real

# The same examples in every run, however long a busy machine takes over one, and nothing kept.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

# Files that take longest, by their few but long tests: begun first, so that no worker is left alone with one.
LONG = (
    "processes", "work_sharing", "further_results", "loop", "numerics", "wheel", "tours", "attribution",
    "planted", "report", "roles", "sampling", "shared_prefix", "sequential", "checkpoint",
)  # fmt: skip

# Rooms and files whose tests train, start processes or a browser, or run a whole study: not in `-m unit`,
# which doesn't even import them; nor the files that compile most (gradients, trajectories, planted networks,
# engines against each other, every construct of foreign networks).
WHOLE = (
    "experiments", "study", "training", "report", "validation", "api", "pretrained", "test_work_sharing",
    "test_bucket", "test_checkpoint", "test_wheel", "test_readme", "test_numerics", "test_roles",
    "test_attribution", "test_sampling", "test_backups", "test_processes", "test_shared_prefix",
    "test_any_denoiser", "test_precision", "test_synthetic", "test_constructs", "test_named_patterns",
    "test_optimal_ablation",
)  # fmt: skip


KEPT_PROGRAMS = 2**29  # bytes of compiled programs that one session leaves to the next


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests
    # Tracing makes millions of small objects and hardly a cycle: looking for cycles seldom takes a tenth off.
    gc.set_threshold(50_000, 10, 10)
    if not worker:
        prune(programs, KEPT_PROGRAMS)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what importing has made stays anyway


def pytest_sessionfinish():
    """A worker's objects and programs need not be taken apart one by one, which takes seconds."""
    gc.collect()  # what is left open is still told
    gc.freeze()
    if worker:
        atexit.register(os._exit, 0)


def prune(folder, most):
    """Removes the oldest files of `folder` until they have at most `most` bytes."""
    files = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime)
    surplus = sum(path.stat().st_size for path in files) - most
    for path in files:
        if surplus <= 0:
            break
        surplus -= path.stat().st_size
        path.unlink()


def in_whole(path, config):
    """Whether a file or folder of tests is named in `WHOLE`."""
    place = path.relative_to(config.rootpath)
    return bool({*place.parts, place.stem} & {*WHOLE})


def pytest_ignore_collect(collection_path, config):
    return True if config.option.markexpr == "unit" and in_whole(collection_path, config) else None


def pytest_collection_modifyitems(items):
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONG)))
    for item in items:
        if not in_whole(item.path, item.config) and not item.get_closest_marker("slow"):
            item.add_marker("unit")


@pytest.fixture(autouse=True, scope="module")
def few_maps():
    """Frees programs before they take more maps of memory than Linux gives a process: XLA of JAX 0.12 makes
    so many that a worker of the whole suite would end."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 40_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny():
    """The `tiny` preset with the smallest network, few images and fewer samples on its sheets."""
    from reference.networks import SMALL

    from mechdiff.core.presets import preset
    from mechdiff.training import programs

    programs.SAMPLES, programs.SAMPLE_STEPS = 4, 4
    config = preset("tiny")
    data = dataclasses.replace(config.data, n_train=64, n_test=32)
    return dataclasses.replace(config, unet=SMALL, data=data)


@pytest.fixture(scope="session")
def denoiser(tiny):
    """A network whose components all do something, one object for all tests: programs are compiled once."""
    from reference.networks import identity_of, random_params

    from mechdiff.diffusion.schedules import make_schedule
    from mechdiff.models.denoiser import Denoiser

    schedule = make_schedule(tiny.diffusion)
    return Denoiser("random", tiny.unet, schedule, random_params(tiny.unet), identity_of(tiny.unet))


@pytest.fixture(scope="session")
def images():
    """Six images of noise, as many pixels as `denoiser` takes."""
    return np.random.default_rng(1).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory, worker_id):
    """Exported folder of a tiny model trained without interruption, and its run folder.

    Of several workers, the first that asks trains it, and the others take a copy.
    """
    from mechdiff.storage import locks
    from mechdiff.training import loop

    workdir = tmp_path_factory.mktemp("trained")
    if worker_id == "master":
        return loop.train(tiny, workdir), workdir
    shared = tmp_path_factory.getbasetemp().parent / "trained"
    with locks.lock(shared, wait=True):
        if not (shared / "whole").exists():
            loop.train(tiny, shared / "run")
            (shared / "whole").touch()
    shutil.copytree(shared / "run", workdir, dirs_exist_ok=True)
    return workdir / "model", workdir
