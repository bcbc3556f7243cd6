"""The least network there is, and a state of it."""

import dataclasses

import jax
import numpy as np
import pytest
from reference.networks import fresh_state

from mechdiff.core.config import UNetConfig
from mechdiff.training import step


@pytest.fixture(scope="module")
def small(tiny):
    """`tiny` with the least network there is: its steps compile fast."""
    one_level = UNetConfig(
        image_size=8, widths=(8,), heads=(1,), norm_groups=4, mid_attention=False,
        down_attention=(False,), up_attention=(False,),
    )  # fmt: skip
    return dataclasses.replace(tiny, unet=one_level)


@pytest.fixture(scope="module")
def setting(small):
    """A state whose parameters are not at their zeros, what is fixed, and a batch."""
    state, fixed = fresh_state(small), step.fixed_parts(small)
    state = dataclasses.replace(state, ema=jax.tree.map(np.zeros_like, state.params))
    batch = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    return state, fixed, batch
