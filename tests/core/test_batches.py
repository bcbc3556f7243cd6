"""Batches cover every item once, in arrays of one length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.core.batches import batches
from mechdiff.core.errors import ConfigError


@given(st.integers(0, 40), st.integers(1, 12))
def test_every_item_is_in_one_batch_and_repeats_weigh_nothing(count, size):
    result, total = np.zeros(count, int), 0.0
    for batch in batches(count, size):
        assert len(batch.indices) == len(batch.weights) == size
        np.testing.assert_array_equal(batch.indices[: batch.count], np.arange(count)[batch.span])
        assert set(batch.indices[batch.count :]) <= set(batch.indices[: batch.count])
        result[batch.span] += 1
        total += batch.weights @ np.ones(size)
    assert (result == 1).all() and total == pytest.approx(count)


@pytest.mark.parametrize("size", [0, -2])
def test_a_size_that_makes_no_batches_is_refused(size):
    """Of -2 there would be none, and results would stay NaN."""
    with pytest.raises(ConfigError, match=f"block={size}"):
        list(batches(4, size))
