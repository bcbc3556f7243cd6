"""SHA256SUMS of a folder, as `sha256sum --check` reads it: was every file left as it was written?"""

import re
from pathlib import Path, PurePosixPath

from mechdiff.core.errors import CheckpointError
from mechdiff.storage import digests, files

NAME = "SHA256SUMS"
_WAY_OUT = "restore it from its source"


def write(folder: Path) -> None:
    """Flushes every file below `folder` to the disk and writes their digests to `folder/SHA256SUMS`."""
    names = sorted(_contents(folder))
    for name in names:
        files.sync(folder / name)
    lines = [f"{digests.digest_file(folder / name)}  {name}\n" for name in names]
    files.write_atomic(folder / NAME, "".join(lines))


def verify(folder: Path) -> None:
    """Compares every file below `folder` with SHA256SUMS.

    Raises:
      CheckpointError: naming the first file that is absent, damaged, not listed, or outside the folder.
    """
    listed = _read(folder / NAME)
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{path} is absent or lies outside its folder; {_WAY_OUT}")
        if digests.digest_file(path) != digest:
            raise CheckpointError(f"{path} is damaged (its SHA-256 is not the one in {NAME}); {_WAY_OUT}")
    if stranger := min(_contents(folder) - listed.keys(), default=None):
        raise CheckpointError(f"{folder / stranger} is not listed in {NAME}; remove it, or {_WAY_OUT}")


def _read(path: Path) -> dict[str, str]:
    """Digest by name. Names that would leave the folder are refused."""
    try:
        lines = re.split(r"(?<=\n)", path.read_bytes().decode("ascii"))
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{path} is absent or damaged; name the folder of an exported model") from None
    listed = {}
    for line in filter(None, lines):
        match = re.fullmatch(r"([0-9a-f]{64})  (\S+)\n", line)
        digest, name = (match[1], PurePosixPath(match[2])) if match else ("", PurePosixPath("/"))
        if name.is_absolute() or ".." in name.parts:
            raise CheckpointError(f"{path} is damaged at {line[:100]!r}; {_WAY_OUT}")
        listed[str(name)] = digest
    return listed


def _contents(folder: Path) -> set[str]:
    """Names of all files below `folder`; hidden ones, as file browsers leave them, do not count."""
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix() for name in names if name.name != NAME and not name.name.startswith(".")}
