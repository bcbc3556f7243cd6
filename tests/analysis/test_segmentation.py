"""Segmentation of timesteps: exactly what brute force finds."""

import itertools

import numpy as np
import pytest

from mechdiff.analysis import segmentation


@pytest.mark.parametrize("seed", range(3))
def test_segmentation_is_that_of_brute_force(seed):
    matrix = np.random.default_rng(seed).standard_normal((2, 7, 3))
    sums, starts = segmentation.segment(matrix, 7)
    for draw, k in itertools.product(range(2), range(1, 8)):
        tried = [
            (sum(len(part) * part.var(0).sum() for part in np.split(matrix[draw], inner)), (0, *inner))
            for inner in itertools.combinations(range(1, 7), k - 1)
        ]
        best = min(tried)
        assert sums[draw, k - 1] == pytest.approx(best[0], abs=1e-9)
        assert tuple(starts[k - 1][draw]) == best[1]
    fitted = segmentation.step_means(matrix, starts[2])
    np.testing.assert_allclose(((matrix - fitted) ** 2).sum((1, 2)), sums[:, 2])
