"""Validation in the report: methods on planted networks, calibration of tests and intervals."""

from pathlib import Path
from typing import NamedTuple

from mechdiff.core.errors import DataError
from mechdiff.storage import files

PLANTS = {
    "long_range": "long range",
    "uniform": "uniform head",
    "redundant": "redundant pair",
    "window": "one window",
    "cancelling": "cancelling",
    "detail": "detail",
    "harmful": "harmful",
    "two_of_three": "two of three",
    "partial_backup": "partial backup",
    "composition": "composition",
    "rare": "rare images",
    "place": "one place",
    "changing": "changes sign over t",
    "superposition": "superposition",
}
METHODS = {  # names in saved results -> longer ones, for a reader
    "discovery with backups": "discovery with backup components",
    "exact zero over images": "exact zero, rms over images",
    "exact zero over timesteps": "exact zero, rms over timesteps",
    "pairs of candidates": "exact zero, alone or with one other gone",
}


class Planted(NamedTuple):
    """AUROC of every method on every planted network: method -> plant -> (mean, low, high); None where the
    method does not apply.

    `instances`: fewest and most networks behind a number; `command`: the one that made the table.
    """

    cells: dict[str, dict[str, list | None]]
    plants: list[str]
    instances: tuple[int, int]
    command: str


def planted(folder: Path) -> Planted | None:
    """From `planted.json` in the folder, as `experiments.planted` writes it; None if it is not there.

    Raises:
      DataError: the file is unreadable or has another layout.
    """
    path = folder / "planted.json"
    if not path.exists():
        return None
    saved = files.read_json(path)
    try:
        return _table(saved["summary"], saved["manifest"]["command"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise DataError(f"{path}: not what experiments.planted writes; restore or delete it") from None


def _table(rows: list[dict], command: list) -> Planted:
    plants = [name for name in PLANTS if any(row["plant"] == name for row in rows)]
    cells: dict[str, dict[str, list | None]] = {}
    for row in rows:
        by_plant = cells.setdefault(row["method"], dict.fromkeys(plants))
        by_plant[row["plant"]] = row["auroc"]
    counts = [row["n"] for row in rows]
    return Planted(cells, plants, (min(counts), max(counts)), " ".join(map(str, command)))


def calibration(folder: Path) -> dict | None:
    """`calibration.json` as `experiments.calibrate` writes it; None if it is not there.

    Raises:
      DataError: the file is unreadable or has another layout.
    """
    path = folder / "calibration.json"
    if not path.exists():
        return None
    saved = files.read_json(path)
    if not (isinstance(saved, dict) and isinstance(saved.get("checks"), list)):
        raise DataError(f"{path}: not what experiments.calibrate writes; restore or delete it")
    return saved
