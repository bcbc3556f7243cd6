"""Scores of a planted network that are saved already, checked before they are used."""

from collections.abc import Collection
from pathlib import Path
from types import NoneType

from mechdiff.core.errors import DataError, unknown
from mechdiff.storage import files
from mechdiff.validation.planted.metrics import MEASURES

RECORD = {"plant": str, "size": str, "instance": int, "method": str}
RECORD |= dict.fromkeys(MEASURES, (float, int, NoneType))  # None: it does not apply


def read(path: Path, known: Collection[str]) -> dict[str, list]:
    """The `methods` that are scored in a file, and their `records`; both empty where it is not there.

    Args:
      known: methods that a record may be of.

    Raises:
      DataError: the file is damaged.
    """
    if not path.exists():
        return {"methods": [], "records": []}
    saved = files.read_record(path, {"methods": list, "records": list})
    for record in saved["records"]:
        files.check_record(path, record, RECORD)
        if record["method"] not in known:
            raise DataError(f"{path}: {unknown('method', record['method'], known)}; {files.REMAKE}")
    return saved
