"""Settings of the whole suite, and the one small trained model that many tests share."""

import dataclasses
import os
from pathlib import Path

# Compiling is most of the suite's time: no optimization, none of the slower kernel emitters, one module a
# program, and one cache of programs for all workers and the processes that their tests start, which inherit
# all this. (JAX writes the cache without a lock: a program that is read half-written is compiled again.) Kept
# beside pytest's own cache, so that what was compiled yesterday is not compiled today, unless the environment
# names another folder. Set before jax is imported.
programs = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
for flag in ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)  # before any device is used: data-parallel code runs for real

# Files that take longest, by their few but long tests: begun first, so that no worker is left alone with one.
LONG = (
    "processes", "work_sharing", "further_results", "loop", "numerics", "wheel", "tours", "attribution",
    "planted", "report", "roles", "sampling", "shared_prefix", "sequential", "checkpoint",
)  # fmt: skip

# Rooms and files whose tests train, start processes or a browser, or run a whole study: not in `-m unit`.
WHOLE = (
    "experiments", "study", "training", "report", "validation", "api", "pretrained", "test_work_sharing",
    "test_bucket", "test_checkpoint", "test_wheel", "test_readme", "test_numerics", "test_roles",
)  # fmt: skip


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONG)))
    for item in items:
        place = item.path.relative_to(item.config.rootpath)
        inner = not {*place.parts, place.stem} & {*WHOLE}
        if inner and not item.get_closest_marker("slow"):
            item.add_marker("unit")


@pytest.fixture(scope="session")
def tiny():
    """The `tiny` preset with the smallest network, few images and fewer samples on its sheets."""
    from reference.networks import SMALL

    from mechdiff.core.presets import preset
    from mechdiff.training import loop

    loop.SAMPLES, loop.SAMPLE_STEPS = 4, 4
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
def trained(tiny, tmp_path_factory):
    """Exported folder of a tiny model trained without interruption, and its run folder."""
    from mechdiff.training import loop

    workdir = tmp_path_factory.mktemp("trained")
    return loop.train(tiny, workdir), workdir
