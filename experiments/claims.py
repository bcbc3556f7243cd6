"""Verdicts on the paper's claims from a results folder: `python -m experiments.claims --workdir=DIR`.

The paper is arXiv 2506.17237. DIR is what `experiments.reproduce` has filled; nothing is computed anew.
Prints a table and writes DIR/claims.json.
"""

import dataclasses

from mechdiff.core.errors import ConfigError
from mechdiff.storage import files
from mechdiff.study import claims, records
from mechdiff.study.claims import verdicts

from . import _launch


def main(config, workdir):
    if not workdir.is_dir():
        raise ConfigError(f"no results folder at {workdir}; give one with --workdir=FOLDER")
    answers = claims.evaluate([denoiser.network for denoiser in records.read(workdir)[1]])
    print(verdicts.table(answers))
    files.write_json(workdir / "claims.json", [dataclasses.asdict(claim) for claim in answers])


if __name__ == "__main__":
    _launch.run(main)
