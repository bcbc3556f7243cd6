"""Default folders of results and caches."""

import os
from pathlib import Path

from mechdiff.core.errors import MechdiffError
from mechdiff.storage import files


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mechdiff`, by default `~/.cache/mechdiff`: may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mechdiff"


def writable_cache() -> Path:
    """`cache_folder`, created where needed.

    Raises:
      MechdiffError: it can't be written to; names it, and the way out.
    """
    try:
        return files.ensure_writable(cache_folder())
    except MechdiffError as error:
        way_out = "give folder=, or set XDG_CACHE_HOME to a folder that can be written to"
        raise MechdiffError(f"{error}; results are kept there: {way_out}") from None
