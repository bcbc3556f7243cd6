"""Which heads entropy is compared over."""

import numpy as np
import pytest
import xarray as xr

from mechdiff.core.errors import ConfigError
from mechdiff.study import entropy_results
from mechdiff.sweeps.attention_patterns import heads_of


def test_heads_over_one_position_have_no_entropy_and_few_heads_are_refused(denoiser):
    names = [head.name for head in heads_of(denoiser)]
    many = lambda kept: entropy_results.heads_over_many_keys(
        denoiser, xr.Dataset(coords={"head": np.array(kept, dtype=str)})
    )
    assert [head.name for head in many(names[1:])] == names[1:]
    with pytest.raises(ConfigError, match=f"2 heads attend over more than one position .{len(names)} heads"):
        many(names[:2])
