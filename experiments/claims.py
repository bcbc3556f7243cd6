"""Verdicts on the paper's claims from a results folder: `python -m experiments.claims --workdir=DIR`.

The paper is arXiv 2506.17237. DIR is what `experiments.reproduce` has filled; no network is run again. Prints
the verdicts, then the measures of complexity of every data set and training step, which go with the first of
them; writes DIR/claims.json and DIR/complexity.csv.
"""

import dataclasses

from mechdiff.core.errors import ConfigError
from mechdiff.core.text_table import text_table
from mechdiff.storage import files
from mechdiff.study import claims, results_folder
from mechdiff.study.claims import complexity_table, verdicts

from . import _flags, _launch

idle = _flags.NO_SETTINGS


def main(config, workdir):
    if not workdir.is_dir():
        raise ConfigError(f"no results folder at {workdir}; {results_folder.WAY_OUT}")
    networks = [model.results for model in results_folder.read(workdir)[1]]
    answers = claims.evaluate(networks)
    print(verdicts.table(answers))
    answers_saved = [dataclasses.asdict(claim) for claim in answers]
    files.write_json(workdir / "claims.json", answers_saved)
    measures = complexity_table.measure(networks)
    if not measures.empty:
        print("\nmeasures of complexity, with 95 % intervals over networks")
        print(*text_table(*complexity_table.lines(measures)), sep="\n")
        files.write_atomic(workdir / "complexity.csv", measures.to_csv(index=False))
    return {"folder": workdir, "claims": answers_saved}


if __name__ == "__main__":
    _launch.run(main)
