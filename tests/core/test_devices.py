"""How programs are compiled."""

import numpy as np
import pytest

from mechdiff.core import devices


def doubled(x):
    return 2 * x


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    went = {"xla_cpu_option_that_went": True}
    monkeypatch.setattr(devices, "QUICKLY", devices.QUICKLY | went)
    assert [devices._has_option(*option) for option in went.items()] == [False]
    assert devices.jitted(doubled, (), quickly=True)(np.float32(1.5)) == 3


@pytest.mark.parametrize("option", ["xla_backend_optimization_level", "xla_cpu_experimental_ynn_fusion_type"])
def test_every_xla_so_far_knows_the_rest(option):
    assert devices._has_option(option, devices.QUICKLY[option])
