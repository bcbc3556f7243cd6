"""The release check of `NUMERICS_VERSION`: numbers of a shipped model stay what they were frozen as."""

import numpy as np
from reference.make_frozen_sweep import FROZEN, numbers

from mechdiff.core.numerics import NUMERICS_VERSION


def test_numbers_move_only_with_the_version():
    with np.load(FROZEN) as stored:
        frozen = {name: stored[name] for name in stored.files}
    assert frozen.pop("version") == NUMERICS_VERSION, "python -m tests.reference.make_frozen_sweep"
    computed = numbers(frozen.pop("faces"))
    assert computed.keys() == frozen.keys()
    for name, values in frozen.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(
            computed[name], values, rtol=2e-4, atol=2e-5 * scale,
            err_msg=f"{name} moved: raise NUMERICS_VERSION, then python -m tests.reference.make_frozen_sweep",
        )  # fmt: skip
