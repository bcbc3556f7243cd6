"""The rules of verdicts."""

import dataclasses

import numpy as np
import pytest

from mechdiff.study.claims.verdicts import Finding, verdict


@pytest.mark.parametrize(
    "interval, p, above, negligible, expected",
    [
        ((0.1, 0.3), 0.01, True, False, "supported"),
        ((0.1, 0.3), 0.2, True, False, "undecided"),
        ((-0.1, 0.3), 0.01, True, False, "undecided"),
        ((-0.3, -0.1), 0.01, False, False, "supported"),
        ((-0.3, -0.1), 0.99, True, False, "not supported"),
        ((-0.01, 0.01), 0.5, True, True, "not supported"),
        ((np.nan, np.nan), np.nan, True, False, "undecided"),
        ((-0.3, -0.1), np.nan, True, False, "undecided"),
    ],
)
def test_rules_of_verdicts(interval, p, above, negligible, expected):
    single = Finding(np.mean(interval), interval, p, 5, "", above=above, negligible=negligible)
    assert verdict(single, p) == expected
    alone = dataclasses.replace(single, p_alone=True)
    expected = "supported" if p < 0.05 else "not supported" if negligible else "undecided"
    assert verdict(alone, p) == expected
