"""A tiny network whose components all do something."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def denoiser(tiny):
    from mechdiff.diffusion.schedules import make_schedule
    from mechdiff.models.denoiser import Denoiser
    from mechdiff.models.unet import init_unet

    params, identity = jax.jit(init_unet, static_argnums=1)(jax.random.key(0), tiny.unet)
    rng = np.random.default_rng(0)  # fresh networks end in zeros, under which nothing matters
    params = jax.tree.map(lambda a: np.asarray(a) + 0.1 * rng.standard_normal(a.shape, np.float32), params)
    return Denoiser("tiny", tiny.unet, make_schedule(tiny.diffusion), params, identity)


@pytest.fixture(scope="session")
def model(denoiser, tiny):
    from mechdiff.api.model import Model

    return Model(denoiser, denoiser.identity, config=tiny)


@pytest.fixture(scope="session")
def images(denoiser):
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (6, *denoiser.image_shape)).astype(np.float32)
