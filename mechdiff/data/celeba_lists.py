"""The lists of CelebA, as text or as CSV: splits, attributes and people of images, by name."""

import csv
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mechdiff.core.encodings import decoded
from mechdiff.core.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")  # of aligned images; the official lists say .jpg of all of them
WORDS = {"True": True, "False": False, "TRUE": True, "FALSE": False}  # the last two of spreadsheets
WORDS |= {"true": True, "false": False}  # of R, and of programs that write JSON
SPLITS = {"0": 0, "1": 1, "2": 2, "train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
MARKS = {"1": True, "-1": False, "0": False, **WORDS}  # an attribute is there, or not
MIXED = ({"-1", "0"}, *({"1", word} for word in WORDS))  # of which no list uses both
INDEX = re.compile(r"|unnamed.*|index", re.IGNORECASE)  # names of a column that counts the rows
MAX_DIGITS = 18  # of a number
WAY_OUT = "correct it, or download it again"


def _is_number(text: str) -> bool:
    """Whether it is a whole number that 64 bits hold, in ASCII digits."""
    return text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS


class Row(NamedTuple):
    """A line of a list: its number, how it begins, its image, and the values behind it."""

    number: int
    line: str
    image: str
    values: list[str]


class Table(NamedTuple):
    """A list.

    Attributes:
      count: the number of images that its first line states; None: it does not.
      names: of the columns behind the image, where there is a line of names.
      lines: of the images, with their numbers.
      column: of the image.
      begins: how the first line that is not blank begins.
    """

    count: int | None
    names: tuple[str, ...]
    lines: list[tuple[int, str]]
    column: int
    begins: str

    def rows(self) -> Iterator[Row]:
        """One for each image; split one by one, since CelebA's hold eight million values."""
        for number, line in self.lines:
            image, *values = _fields(line)[self.column :] or [""]
            yield Row(number, line[:60], listed_name(image), values)


def listed_name(name: str) -> str:
    """An image's name as the official lists have it, `NUMBER.jpg`, however its file is encoded and in
    whichever folder.

    Example:
      >>> listed_name("000001.PNG"), listed_name("img_align_celeba/000002.jpg"), listed_name("notes.txt")
      ('000001.jpg', '000002.jpg', 'notes.txt')
    """
    name = name if ".." in name else name.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return f"{stem}.jpg" if f"{dot}{ending}".lower() in SUFFIXES else name


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})") from error
    return decoded(content, errors="replace").splitlines()


def _table(path: Path) -> Table:
    """A list with fields between blanks, tabs, commas or semicolons, in quotes or not.

    Raises:
      DataError: columns before the image, unless they just count the rows.
    """
    lines = [(number, line) for number, line in enumerate(_lines(path), start=1) if line.strip()]
    first = next((i for i, (_, line) in enumerate(lines) if any(map(_is_image, _fields(line)))), len(lines))
    head = [_fields(line) for _, line in lines[:first]]
    row = _fields(lines[first][1]) if lines[first:] else []
    column = [_is_image(field) for field in row].index(True) if row else 0
    names = head[-1] if head else []
    for name in (names or ["?"])[:column]:
        if not INDEX.fullmatch(name):
            raise DataError(f"{path} has a column before the image ({name[:60]!r}); put the image first")
    counted = bool(head) and len(head[0]) == 1 and _is_number(head[0][0])
    if not counted and len(names) == len(row):
        names = names[column + 1 :]
    count = int(head[0][0]) if counted else None
    return Table(count, tuple(names), lines[first:], column, lines[0][1][:60] if lines else "")


def _fields(line: str) -> list[str]:
    """The fields of a line, without empty ones at its end; 1.0 as 1, since tables of numbers write that."""
    separator = next((mark for mark in ",;" if mark in line), None)
    fields = line.replace('"', "").split()
    if separator:
        fields = [field.strip() for field in next(csv.reader([line], delimiter=separator))]
    while fields and not fields[-1]:
        fields.pop()
    return [re.sub(r"(?<=\d)\.0$", "", field) for field in fields] if ".0" in line else fields


def _is_image(field: str) -> bool:
    return field.lower().endswith(SUFFIXES)


def read_partition(path: Path) -> tuple[list[str], list[int]]:
    """Names of images in the order of the list, and the split of each: 0 to 2.

    Raises:
      DataError: a line of another form, an image named twice, or an empty list.
    """
    table, splits = _table(path), {}
    if table.begins and not table.lines:
        raise DataError(f"{path} line 1: {table.begins!r} is not 'image 0|1|2'; {WAY_OUT}")
    for number, line, image, values in table.rows():
        if len(values) != 1 or values[0] not in SPLITS:
            raise DataError(f"{path} line {number}: {line!r} is not 'image 0|1|2'; {WAY_OUT}")
        if image in splits or "/" in image:
            raise DataError(f"{path} line {number}: {image!r} is named twice or is no plain file name")
        splits[image] = SPLITS[values[0]]
    if not splits:
        raise DataError(f"{path} names no images; download it again")
    return list(splits), list(splits.values())


def read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, list[bool]]]:
    """Names of attributes, and which of them each image has.

    Raises:
      DataError: no header, another number of rows than it states, or a row of another form.
    """
    table = _table(path)
    count, names, lines = table.count, table.names, table.lines
    if not names or (count is not None and names == (str(count),)):
        raise DataError(f"{path} does not start with a count and attribute names; download it again")
    if not lines:
        raise DataError(f"{path} names no image files; each line begins with one, such as 000001.jpg")
    if count not in (None, len(lines)):
        raise DataError(f"{path} promises {count} images but lists {len(lines)}; download it again")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} names the attribute {twice!r} twice; keep one column of it")
    flags: dict[str, list[bool]] = {}
    used: set[str] = set()
    for number, _, image, values in table.rows():
        if image in flags:
            raise DataError(f"{path} line {number}: {image!r} is named twice; keep one line of it")
        used.update(values)
        if len(values) != len(names) or not used <= MARKS.keys():
            expected = f"an image and {len(names)} times 1 or -1"
            raise DataError(f"{path} line {number} is not {expected}; {WAY_OUT}")
        flags[image] = [MARKS[value] for value in values]
    for pair in MIXED:
        if pair <= used:
            raise DataError(f"{path} marks attributes by both {' and '.join(sorted(pair))}; {WAY_OUT}")
    return names, flags


def read_identities(path: Path) -> dict[str, int]:
    """The person on each image that a list names.

    Raises:
      DataError: a line of another form, or an image of two people.
    """
    people: dict[str, int] = {}
    for number, line, image, values in _table(path).rows():
        if len(values) != 1 or not _is_number(values[0]):
            raise DataError(f"{path} line {number}: {line!r} is not 'image number'; {WAY_OUT}")
        if people.setdefault(image, int(values[0])) != int(values[0]):
            raise DataError(f"{path} line {number}: {image!r} is two people; keep the line that is right")
    return people


def read_people(path: Path | None, names: list[str]) -> Int[np.ndarray, " count"]:
    """The person on each of these images; -1 without a list, or where it does not name the image, which is
    warned of: intervals then take all images for independent.

    Raises:
      DataError: see `read_identities`.
    """
    people = read_identities(path) if path else {}
    unknown = [name for name in names if name not in people]
    if path and unknown:
        logging.warning(
            "%s does not name %d of %d images (first: %s), so that intervals take images for independent; "
            "download it again if it should",
            *(path, len(unknown), len(names), unknown[0]),
        )
    return np.array([people.get(name, -1) for name in names], np.int64)
