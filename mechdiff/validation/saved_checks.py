"""Checks that an interrupted calibration finished, group by group: they are not run again."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from mechdiff.storage import digests, files
from mechdiff.validation.checks import Check


def kept(folder: Path | None, group: str, run: Callable[[], list[Check]], **decisive: int) -> list[Check]:
    """The checks of a group: those that are saved, or else those of `run`, which are saved then.

    Args:
      folder: where they are kept; None: nowhere.
      decisive: what decides the numbers, besides the package's code.

    Raises:
      DataError: the file is damaged.
    """
    if folder is None:
        return run()
    key = digests.digest_json([group, decisive, digests.code_digest()])
    path = folder / f"{group}-{key[:16]}.json"
    if path.exists():
        saved = files.read_record(path, {"checks": list})["checks"]
        with files.interpreting(path):
            return [Check(**{name: _number(value) for name, value in entries.items()}) for entries in saved]
    checks = run()
    files.ensure_writable(folder)
    files.write_json(path, {"checks": [dataclasses.asdict(check) for check in checks]})
    return checks


def _number(value: str | float | None) -> str | float:
    return math.nan if value is None else value  # JSON has none
