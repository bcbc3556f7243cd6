"""Whether a folder of images is CelebA, whose lists tell held-out images and the people on them."""

from pathlib import Path

from mechdiff.core.errors import DataError
from mechdiff.data.celeba import PARTITION, look_for_list, packs_in
from mechdiff.data.celeba_images import UNPACKED
from mechdiff.data.folder import IGNORED, IMAGES


def celeba_folder(path: str | Path) -> Path | None:
    """The folder of CelebA that a folder of images is: it, its sub-folders, or of unpacked images one that
    they lie in holds the list of splits. None: no CelebA.

    Raises:
      DataError: CelebA in a sub-folder and other images beside it, so that either might be meant.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    packs = [pack for pack in packs_in(folder) if look_for_list(pack, PARTITION)]
    if packs and folder not in packs:
        _check_alone(folder, packs)
    if packs:
        return folder
    unpacked = (inner for inner in folder.absolute().parents[:2] if folder.absolute().name == UNPACKED)
    return next((outer for outer in unpacked if look_for_list(outer, PARTITION)), None)


def _check_alone(folder: Path, packs: list[Path]) -> None:
    """Refuses a folder that holds other folders or images beside CelebA."""
    children = (child for child in sorted(folder.iterdir()) if not child.name.startswith("."))
    others = [child.name for child in children if child not in packs and _may_be_images(child)]
    if others:
        raise DataError(
            f"{folder} holds CelebA ({packs[0].name}) and beside it {others[0]}; name the one that is meant"
        )


def _may_be_images(path: Path) -> bool:
    name = path.name.lower()
    return name not in IGNORED and (path.is_dir() or name.endswith(IMAGES))
