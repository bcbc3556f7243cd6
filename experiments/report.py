"""Builds the report of a results folder: `python -m experiments.report --workdir=FOLDER`.

Reads what `experiments.reproduce` saved there and computes nothing again; prints the path of the report.
"""

from mechdiff import report
from mechdiff.core.errors import ConfigError
from mechdiff.storage import locks
from mechdiff.study import results_folder

from . import _flags, _launch

idle = _flags.NO_SETTINGS


def main(config, workdir):
    if not workdir.is_dir():
        raise ConfigError(f"no results folder at {workdir}; {results_folder.WAY_OUT}")
    with locks.lock(workdir):
        page = report.build(workdir)
    print(page)
    return {"report": page}


if __name__ == "__main__":
    _launch.run(main)
