"""What names of sub-folders say: splits, classes of images, and maps that are none."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from mechdiff.core.errors import DataError

SPLIT_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
OTHER_NAMES = "train|test|val|valid|dev|eval"
LIKE_SPLIT = re.compile(rf"({OTHER_NAMES}|held_?out|hold_?out)(set|[ab])?([^a-z].*)?")  # other names
SUFFIXED = re.compile(rf"(.*[^a-z])({'|'.join(SPLIT_NAMES)}|dev|eval)")  # `cats_train` beside `cats_test`
IMAGES = re.compile(r"(images?|imgs?|photos?|pictures?|frames?|rgb|inputs?)(_.*)?")
MAPS = re.compile(r"(.*_)?(masks?|labels?|annotations?|segmentations?|depths?)(_.*)?")  # of such images


def composed(name: str) -> str:
    """A name in one of the two forms of its accents (NFC): disks of a Mac give the other."""
    return unicodedata.normalize("NFC", name)


def class_folders(names: Sequence[str]) -> list[str]:
    """The folder that says the class of each image: the first of its path, below train, val or test; empty
    where it lies in none.

    Example:
      >>> class_folders(["cats/1.png", "test/dogs/old/2.png", "3.png"])
      ['cats', 'dogs', '']
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    folders = [parts[1:] if parts and parts[0].lower() in SPLIT_NAMES else parts for parts in folders]
    return [composed(parts[0]) if parts else "" for parts in folders]


def check_no_maps(where: str, names: Sequence[str]) -> None:
    """Refuses images of which some lie beside a folder of images, in one of masks or the like.

    Raises:
      DataError: names both folders, and the way out.

    Example:
      >>> check_no_maps("faces", ["images/1.png", "masks/1.png"])
      Traceback (most recent call last):
      mechdiff.core.errors.DataError: faces has sub-folders images and masks, of which the second may hold \
maps, not images; name the first alone, or move the second
    """
    paths = {name.rpartition("/")[0] for name in names}  # few, of many images
    folders = sorted(
        {folder for path in paths for folder in (PurePosixPath(path), *PurePosixPath(path).parents)}
    )
    maps = [folder for folder in folders if MAPS.fullmatch(folder.name.lower())]
    images = [folder for folder in folders if IMAGES.fullmatch(folder.name.lower()) and folder not in maps]
    for first in images:
        for second in maps:
            if second.parent == first.parent:
                raise DataError(
                    f"{where} has sub-folders {first} and {second}, of which the second may hold maps, "
                    "not images; name the first alone, or move the second"
                )


def check_no_split(where: str, tops: Sequence[str]) -> None:
    """Refuses sub-folders of which some are called like a split, but not all, or none for training.

    Raises:
      DataError: names them, and the way out.
    """
    called = [top for top in tops if top in SPLIT_NAMES]
    others = [top for top in tops if top not in SPLIT_NAMES]
    stems = {top: match[1] for top in others if (match := SUFFIXED.fullmatch(top))}
    count = Counter(stems.values())
    like = [top for top in others if LIKE_SPLIT.fullmatch(top) or count[stems.get(top, "")] > 1]
    if not called and not like:
        return
    problem = f"{', '.join(called)}, but images in {others[0] or 'none'} too; move these" if others else ""
    problem = problem or f"{', '.join(called)}, but no train; call one so"
    if like and not called:
        problem = f"{', '.join(like[:3])}, which may be a split; call them train, val or test"
    raise DataError(
        f"{where} has sub-folders {problem}, or let data.split=digest split all of them by their bytes"
    )
