"""A tiny model examined, for the tests of its examples."""

import dataclasses

import pytest

from mechdiff.core.config import SweepConfig
from mechdiff.models import load
from mechdiff.storage import labelled
from mechdiff.study import choosing, examine


@pytest.fixture(scope="package")
def examined(trained, tmp_path_factory):
    """A tiny model examined, and the folder of results."""
    folder = tmp_path_factory.mktemp("examples")
    _, config, _ = load.load_denoiser(trained[0])
    sweep = SweepConfig(ablations=("zero",), timesteps=3, images=4, reference_images=4, image_block=4)
    config = dataclasses.replace(config, sweep=sweep)
    choose = choosing.ImageChoice(config, None, folder / "cache")
    return examine.examine("tiny", trained[0], choose, config.sweep, 0, folder), folder


@pytest.fixture(scope="package")
def shown(examined):
    """Its examples, as they were saved."""
    return labelled.read(examined[1] / "examples.zarr")
