"""The lists of CelebA, as text or as CSV: splits, attributes and people of images, by name."""

import csv
import logging
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int

from mechdiff.core.errors import DataError


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")  # some editors put a mark before
        return text.splitlines()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})") from error


def _csv_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV list, the column names first."""
    rows = [row for row in csv.reader(_lines(path)) if any(field.strip() for field in row)]
    if len(rows) < 2:
        raise DataError(f"{path} names no images; download it again")
    if rows[0][0].strip().lower().endswith(".jpg"):
        raise DataError(
            f"{path} begins with the image {rows[0][0].strip()}; put a line of column names before, such as "
            "image_id,partition"
        )
    return [[field.strip() for field in row] for row in rows]


def read_partition(path: Path) -> tuple[list[str], list[int]]:
    """Names of images in the order of the list, and the split of each: 0 to 2.

    Raises:
      DataError: a line of another form, an image named twice, or an empty list.
    """
    splits = {}
    lines = _lines(path)
    if path.suffix == ".csv":  # the line of column names is kept, blank, for the numbers in errors
        lines = ["", *(" ".join(row) for row in _csv_rows(path)[1:])]
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise DataError(f"{path} line {number}: {line[:60]!r} is not 'image 0|1|2'; download it again")
        if fields[0] in splits or PurePosixPath(fields[0]).name != fields[0]:
            raise DataError(f"{path} line {number}: {fields[0]!r} is named twice or is no plain file name")
        splits[fields[0]] = int(fields[1])
    if not splits:
        raise DataError(f"{path} names no images; download it again")
    return list(splits), list(splits.values())


def read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, list[bool]]]:
    """Names of attributes, and which of them each image has.

    Raises:
      DataError: no header, another number of rows than it states, or a row of another form.
    """
    lines = _lines(path)
    if path.suffix == ".csv":
        head, *table = _csv_rows(path)
        lines = [str(len(table)), " ".join(head[1:]), *(" ".join(row) for row in table)]
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) < 2 or not lines[0].strip().isdigit():
        raise DataError(f"{path} does not start with a count and attribute names; download it again")
    count, names, rows = int(lines[0]), tuple(lines[1].split()), lines[2:]
    if count != len(rows):
        raise DataError(f"{path} promises {count} images but lists {len(rows)}; download it again")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} names the attribute {twice!r} twice; keep one column of it")
    flags: dict[str, list[bool]] = {}
    for number, line in enumerate(rows, start=3):
        image, *marks = line.split() or [""]
        if image in flags:
            raise DataError(f"{path} line {number}: {image!r} is named twice; keep one line of it")
        if len(marks) != len(names) or not set(marks) <= {"1", "-1"}:
            expected = f"an image and {len(names)} times 1 or -1"
            raise DataError(f"{path} line {number} is not {expected}; download it again")
        flags[image] = [mark == "1" for mark in marks]
    return names, flags


def read_people(path: Path | None, names: list[str]) -> Int[np.ndarray, " count"]:
    """The person on each of these images; -1 without a list, or where it does not name the image, which is
    warned of: intervals then take all images for independent.

    Raises:
      DataError: a line of another form.
    """
    people: dict[str, str] = {}
    lines = _lines(path) if path else []
    if path and path.suffix == ".csv":
        lines = ["", *(" ".join(row) for row in _csv_rows(path)[1:])]
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if fields and (len(fields) != 2 or not fields[1].isdigit()):
            raise DataError(f"{path} line {number}: {line[:60]!r} is not 'image number'; download it again")
        if fields and people.setdefault(*fields) != fields[1]:
            raise DataError(f"{path} line {number}: {fields[0]!r} is two people; keep the line that is right")
    unknown = [name for name in names if name not in people]
    if path and unknown:
        logging.warning(
            "%s does not name %d of %d images (first: %s), so that intervals take images for independent; "
            "download it again if it should",
            *(path, len(unknown), len(names), unknown[0]),
        )
    return np.array([int(people.get(name, -1)) for name in names], np.int64)
