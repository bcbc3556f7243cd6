"""The shared network as a model."""

import dataclasses

import pytest


@pytest.fixture(scope="session")
def model(denoiser, tiny):
    from mechdiff.api.model import Model

    return Model(dataclasses.replace(denoiser, name="tiny"), denoiser.identity, config=tiny)


@pytest.fixture(scope="session")
def labeled(tiny):
    """A model of synthetic faces with two classes."""
    from reference.networks import identity_of, random_params

    from mechdiff.api.model import Model
    from mechdiff.diffusion.schedules import make_schedule
    from mechdiff.models.denoiser import Denoiser

    unet = dataclasses.replace(tiny.unet, classes=2)
    data = dataclasses.replace(tiny.data, classes="skin_brightness")
    denoiser = Denoiser(
        "labeled", unet, make_schedule(tiny.diffusion), random_params(unet), identity_of(unet)
    )
    record = {"class_names": ["dark", "bright"]}
    config = dataclasses.replace(tiny, unet=unet, data=data)
    return Model(denoiser, denoiser.identity, config=config, record=record)
