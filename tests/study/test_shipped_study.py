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


def test_networks_of_scrambled_images_say_so_of_what_they_were_examined_on(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "manifest.json").write_bytes((STUDY / "manifest.json").read_bytes())
    for name in ("celeba", "scrambled"):  # packed when labels did not say it
        cell = Path("cells") / f"cpu16-{name}-seed0.zip"
        (tmp_path / cell).write_bytes((STUDY / cell).read_bytes())
    intact, scrambled = results_folder.read(tmp_path)[1]
    assert scrambled.inputs == intact.inputs + ", phases scrambled"
    assert scrambled.examined_on != intact.examined_on


def test_readme_says_what_the_verdicts_are():
    shipped = json.loads((STUDY / "claims.json").read_text("utf-8"))
    said = [line for line in (STUDY / "README.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    rows: dict[str, str] = {}
    for line in said:  # of the first table that has a row for the claim
        rows.setdefault(line.split("|")[1].strip(), line.split("|")[2].strip())
    assert {claim["id"]: claim["verdict"] for claim in shipped}.items() <= rows.items()
