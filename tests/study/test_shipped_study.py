"""The verdicts that README states can be recomputed from the cells that are shipped."""

import json
from pathlib import Path

import numpy as np
import pytest

from mechdiff.study import claims, results_folder

STUDY = Path(__file__).parents[2] / "checkpoints" / "study"


def test_cells_give_the_verdicts_that_are_shipped():
    answers = claims.evaluate([model.results for model in results_folder.read(STUDY)[1]])
    shipped = json.loads((STUDY / "claims.json").read_text("utf-8"))
    assert [(claim.id, claim.verdict) for claim in answers] == [
        (claim["id"], claim["verdict"]) for claim in shipped
    ]
    for claim, saved in zip(answers, shipped, strict=True):
        if saved["estimate"] is not None:
            np.testing.assert_allclose(claim.estimate, saved["estimate"], rtol=1e-6)
            assert claim.p_adjusted == pytest.approx(saved["p_adjusted"], rel=1e-6)


def test_readme_says_what_the_verdicts_are():
    shipped = json.loads((STUDY / "claims.json").read_text("utf-8"))
    said = [line for line in (STUDY / "README.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    rows: dict[str, str] = {}
    for line in said:  # of the first table that has a row for the claim
        rows.setdefault(line.split("|")[1].strip(), line.split("|")[2].strip())
    assert {claim["id"]: claim["verdict"] for claim in shipped}.items() <= rows.items()
