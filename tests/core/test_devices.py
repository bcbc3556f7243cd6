"""How programs are compiled."""

import numpy as np
import pytest

from mechdiff.core import devices


def doubled(x):
    return 2 * x


@pytest.fixture
def without_option(monkeypatch):
    """An XLA that no longer knows the option of its library."""
    monkeypatch.setattr(devices, "BY_LIBRARY", {"xla_cpu_option_that_went": True})
    devices.jitted.cache_clear()
    yield
    devices.jitted.cache_clear()


def test_an_option_that_xla_does_not_know_is_left_out(without_option):
    assert not devices._known(devices.BY_LIBRARY)
    assert devices.jitted(doubled, (), quickly=True)(np.float32(1.5)) == 3


def test_this_xla_knows_the_library_of_kernels():
    assert devices._known(devices.BY_LIBRARY)
