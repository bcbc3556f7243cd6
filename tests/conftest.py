"""Settings of the whole suite, and the one small trained model that many tests share."""

import dataclasses

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)  # before any device is used: data-parallel code runs for real
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the suite's time

# Files that take longest, by their few but long tests: begun first, so that no worker is left alone with one.
LONG = (
    "work_sharing", "attribution", "loop",
    "controls", "sampling", "shared_prefix", "sequential", "checkpoint",
)  # fmt: skip


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """One cache of compiled programs for the session: runs that are started again don't compile again."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(scope="session")
def tiny():
    """The `tiny` preset with fewer pictures on its sheets."""
    from mechdiff.core.presets import preset
    from mechdiff.training import loop

    loop.SAMPLES, loop.SAMPLE_STEPS = 4, 4
    config = preset("tiny")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, n_train=64, n_test=32))


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """Exported folder of a tiny model trained without interruption, and its run folder."""
    from mechdiff.training import loop

    workdir = tmp_path_factory.mktemp("trained")
    return loop.train(tiny, workdir), workdir
