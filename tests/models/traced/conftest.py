"""Fixtures of the tests of traced denoisers."""

import jax
import pytest


@pytest.fixture
def optimized():
    """The suite compiles without most optimizations; those are what could change bits."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
