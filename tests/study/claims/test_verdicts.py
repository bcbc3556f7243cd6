"""The rules of verdicts."""

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mechdiff.core.errors import NotTestable
from mechdiff.study.claims import verdicts
from mechdiff.study.claims.questions import QUESTIONS
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


@pytest.mark.parametrize("p, decided", [(0.001, True), (0.3, False)])
def test_two_seeds_are_called_undecisive_only_where_they_were(p, decided):
    """An exact test of 2 and 10 networks was "supported", and "decides nothing" beside it."""
    exact = Finding(0.5, (np.nan, np.nan), p, 2, "", p_alone=True)
    (answer,) = verdicts.decide([dataclasses.replace(QUESTIONS[1], test=lambda _: exact)], [])
    assert (answer.verdict == "supported") == decided
    assert ("decides nothing" in answer.because) != decided
    assert ("n = 2 of a data set is enough for an exact test" in answer.because) == decided


def test_progress_is_shown_claim_by_claim(monkeypatch):
    """Those of a study of many networks take a minute."""

    def progress(total, **_):
        return contextlib.nullcontext(SimpleNamespace(update=lambda: shown.append(total)))

    def untestable(_):
        raise NotTestable("there are none")

    shown = []
    monkeypatch.setattr(verdicts, "progress", progress)
    verdicts.decide([dataclasses.replace(question, test=untestable) for question in QUESTIONS], [])
    assert shown == [len(QUESTIONS)] * len(QUESTIONS)
