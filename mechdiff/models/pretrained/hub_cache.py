"""Repositories of the Hugging Face hub that are on this machine already. Nothing is downloaded here.

Layout of the cache: `models--OWNER--NAME/refs/BRANCH` holds the name of a folder in
`models--OWNER--NAME/snapshots` (documentation of huggingface_hub, "Understand caching").
"""

import os
import re
from pathlib import Path

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
BRANCH, SNAPSHOTS = "main", "snapshots"


def snapshot(name: str | Path) -> Path | None:
    """The folder of a repository, such as `google/ddpm-cifar10-32`, as diffusers or `hf download` left it.

    Returns:
      None where something else lies at this path, or no such repository was downloaded.
    """
    if not _REPOSITORY.fullmatch(str(name)) or Path(name).exists():
        return None
    kept = _cache() / f"models--{str(name).replace('/', '--')}"
    commit = kept / "refs" / BRANCH
    if not commit.is_file():
        return None
    folder = kept / SNAPSHOTS / commit.read_text().strip()
    return folder if folder.is_dir() else None


def hint(name: str | Path) -> str:
    """A hint for an error about an unknown name; empty if it can't be that of a repository."""
    if not _REPOSITORY.fullmatch(str(name)):
        return ""
    return f"; if it is a repository of the Hugging Face hub, `hf download {name}` makes it known"


def _cache() -> Path:
    """Where the hub's own tools keep what they download."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"
