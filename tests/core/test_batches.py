"""Batches cover every item once, in arrays of one length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.core.batches import batches


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
