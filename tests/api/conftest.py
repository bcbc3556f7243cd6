"""The shared network as a model."""

import dataclasses

import pytest


@pytest.fixture(scope="session")
def model(denoiser, tiny):
    from mechdiff.api.model import Model

    return Model(dataclasses.replace(denoiser, name="tiny"), denoiser.identity, config=tiny)
