"""Files that describe a foreign network: JSON, YAML, or a command line pasted as text."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from mechdiff.core.errors import ConfigError, DataError, shorten
from mechdiff.storage import files

NAMES = ("config.json", "config.yaml", "config.yml", "flags.txt")
OTHERS = ("*.yaml", "*.yml", "flags*.txt")  # of other names, if there is just one
LARGEST = 2**24  # bytes


def config_file(folder: Path) -> Path:
    """The file in a folder that describes the network; `folder/config.json` where there is none.

    Raises:
      ConfigError: several, of which none has one of the usual names.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted({path for pattern in OTHERS for path in folder.glob(pattern)})
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:4])
        raise ConfigError(f"{folder} has several configs ({names}); name the network's {NAMES[1]}")
    return others[0] if others else folder / NAMES[0]


def read_config(path: Path) -> dict[str, Any]:
    """The options in a JSON or YAML file, or the flags of a command line in any other text file.

    Raises:
      DataError: absent, not readable, or not of its format.
      ConfigError: not a mapping of names to values.
    """
    if path.suffix == ".json" or not path.is_file():
        content = _json(path)
    else:
        text = _text(path)
        content = _yaml(path, text) if path.suffix in (".yaml", ".yml") else flags_of(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {shorten(content)}, not options by name")
    for name in content:
        if not isinstance(name, str):
            raise ConfigError(f"{path} has an option {shorten(name)} that is no name; write it as text")
    return content


def flags_of(text: str, where: str = "flags") -> dict[str, str]:
    """The flags of a command line, `--name value` or `--name=value`, as text; the last of a name counts.

    Variables of a shell (`MODEL_FLAGS="--image_size 64"`, `$MODEL_FLAGS`), comments and line ends are
    understood; other words are passed over.

    Raises:
      DataError: quotes that don't close.
      ConfigError: a flag without a value, or no flag at all.

    Example:
      >>> flags_of('MODEL_FLAGS="--num_channels 64 --learn_sigma=True"')
      {'num_channels': '64', 'learn_sigma': 'True'}
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise DataError(f"{where}: not a command line ({error})") from None
    words = [part for word in words for part in _unquoted(word)]
    flags: dict[str, str] = {}
    for i, word in enumerate(words):
        match = re.fullmatch(r"--?([A-Za-z][\w-]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            continue
        name, value = match[1].replace("-", "_"), match[2]
        if value is None:
            value = words[i + 1] if i + 1 < len(words) else None
            if value is None or re.match(r"--?[A-Za-z]", value):
                raise ConfigError(f"{where}: --{shorten(name)[1:-1]} has no value; write --name value")
        flags[name] = value
    if not flags:
        raise ConfigError(f"{where}: no flags; paste the command line, --name value ...")
    return flags


def _unquoted(word: str) -> list[str]:
    """The words in an assignment to a shell's variable; a word as it is."""
    assigned = re.fullmatch(r"[A-Za-z_]\w*=(.*)", word, re.DOTALL)
    return shlex.split(assigned[1]) if assigned else [word]


def _json(path: Path) -> Any:
    try:
        return files.read_json(path)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for a config") from None


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path}: {path.stat().st_size} bytes; too large for a config")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as text ({type(error).__name__})") from None


def _yaml(path: Path, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or type(error).__name__
        raise DataError(f"{path}{place}: not valid YAML ({str(reason)[:80]})") from None
