"""What is known of the instrument itself: methods on planted truth, calibration where there is nothing."""

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
}


class Planted(NamedTuple):
    """AUROC of every method on every plant: method -> plant -> (mean, low, high), None where not asked.

    `instances`: fewest and most networks behind a number; `command`: that made it.
    """

    cells: dict[str, dict[str, list | None]]
    plants: list[str]
    instances: tuple[int, int]
    command: str


def planted(folder: Path) -> Planted | None:
    """From `planted.json` in the folder, as `experiments.planted` writes it; None if it is not there.

    Raises:
      DataError: it can't be read, or is something else.
    """
    path = folder / "planted.json"
    if not path.exists():
        return None
    found = files.read_json(path)
    try:
        return _table(found["summary"], found["manifest"]["command"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise DataError(f"{path}: not what experiments.planted writes; restore or delete it") from None


def _table(rows: list[dict], command: list) -> Planted:
    plants = [name for name in PLANTS if any(row["plant"] == name for row in rows)]
    cells: dict[str, dict[str, list | None]] = {}
    for row in rows:
        own = cells.setdefault(row["method"], dict.fromkeys(plants))
        own[row["plant"]] = row["auroc"]
    counts = [row["n"] for row in rows]
    return Planted(cells, plants, (min(counts), max(counts)), " ".join(map(str, command)))


def calibration(folder: Path) -> dict | None:
    """`calibration.json` as `experiments.calibrate` writes it; None if it is not there.

    Raises:
      DataError: it can't be read, or is something else.
    """
    path = folder / "calibration.json"
    if not path.exists():
        return None
    found = files.read_json(path)
    if not (isinstance(found, dict) and isinstance(found.get("checks"), list)):
        raise DataError(f"{path}: not what experiments.calibrate writes; restore or delete it")
    return found
