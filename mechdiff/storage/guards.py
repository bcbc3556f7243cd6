"""Errors of saving and of reading arrays, as one line that names the folder and the way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mechdiff.core.errors import CheckpointError, MechdiffError
from mechdiff.storage import files


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Errors while saving, from this thread or Orbax's, as one line."""
    try:
        yield
    except MechdiffError:
        raise
    except Exception as error:
        raise CheckpointError(why_not_saved(error, path)) from error


def why_not_saved(error: BaseException, path: Path | str) -> str:
    """An error while saving, of Python or Orbax, in one line."""
    line = files.explain(error, path) if isinstance(error, OSError) else None
    if line is None and re.search("No space left|RESOURCE_EXHAUSTED", str(error)):
        line = f"{path}: the disk is full; free some space or choose another folder"
    return line or f"{path}: saving failed: {_first_line(error)}"


@contextmanager
def damage(path: Path, way_out: str) -> Iterator[None]:
    """Turns any error of Orbax on files that it can't read into one line with the way out."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {way_out}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:250] or type(error).__name__
