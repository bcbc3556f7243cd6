"""The shared network as a model."""

import pytest


@pytest.fixture(scope="session")
def model(denoiser, tiny):
    from mechdiff.api.model import Model

    return Model(denoiser, denoiser.identity, config=tiny)
