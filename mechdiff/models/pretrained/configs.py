"""Files that describe a foreign network: JSON, YAML, or a command line pasted as text."""

import functools
import json
import re
import shlex
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mechdiff.core.errors import ConfigError, DataError, shorten
from mechdiff.models.pretrained.adm_options import ignored
from mechdiff.storage import files

NAMES = ("config.json", "config.yaml", "config.yml", "flags.txt")
OTHERS = (r".*\.ya?ml", r".*\.json", r"(flags|args|options).*\.(txt|sh)")  # if there is just one of them
NOT_OURS = r"model_index\.json|.*index.*\.json|scheduler.*|preprocessor.*|trainer_state.*|.*stats?\.json|\..*"
LIKELY = re.compile(r".*(config|options)|flags|args")  # of the others' names, beside a config of a usual name
LARGEST = 2**24  # bytes
MERGE = "tag:yaml.org,2002:merge"  # `<<: *defaults`, whose options may be overridden
PYTHON = "tag:yaml.org,2002:python/"  # of objects that `yaml.dump` was given


def config_file(folder: Path) -> Path:
    """The file in a folder that describes the network; `folder/config.json` where there is none.

    Raises:
      ConfigError: several, of which none has one of the usual names.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    others = _others(folder)
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:4])
        raise ConfigError(
            f"{folder} has several configs ({names}); call the network's {' or '.join(NAMES[:2])}"
        )
    return others[0] if others else folder / NAMES[0]


def unread(described_by: Path) -> list[str]:
    """Names of the files beside a network's config that may describe it too."""
    folder = described_by.parent
    usual = [folder / name for name in NAMES if (folder / name).is_file()]
    others = [path for path in _others(folder) if LIKELY.match(path.name.lower())]
    return [path.name for path in (*usual, *others) if path.name != described_by.name]


def _others(folder: Path) -> list[Path]:
    """Files that may be configs under other names than the usual ones."""
    files_there = (path for path in sorted(folder.glob("*")) if path.is_file() and path.name not in NAMES)
    return [path for path in files_there if _may_describe(path.name)]


def _may_describe(name: str) -> bool:
    """Whether a file may be a network's config under another name."""
    if re.fullmatch(NOT_OURS, name, re.IGNORECASE):
        return False
    return any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in OTHERS)


def read_config(path: Path) -> dict[str, Any]:
    """The options in a JSON or YAML file, or the flags of a command line in any other text file.

    Raises:
      DataError: absent, not readable, or not of its format.
      ConfigError: not a mapping of names to values.
    """
    suffix = path.suffix.lower()
    if suffix == ".json" or not path.is_file():
        content = _json(path)
    else:
        text = _text(path)
        content = _yaml(path, text) if suffix in (".yaml", ".yml") else flags_of(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {shorten(content)}, not options by name")
    for name in content:
        if not isinstance(name, str):
            raise ConfigError(f"{path} has an option {shorten(name)} that is not a name; write it as text")
    return content


def option_names(config: Mapping[str, Any]) -> set[str]:
    """Names of a config's options and of those in its sections, by which a layout is told; never an error.

    Example:
      >>> sorted(option_names({"model": {"ch": 128}, "seed": 0}))
      ['ch', 'model', 'seed']
    """
    sections = (value for value in config.values() if isinstance(value, Mapping))
    return {name for names in (config, *sections) for name in names if isinstance(name, str)}


def flags_of(text: str, where: str = "flags") -> dict[str, str]:
    """The flags of a command line, `--name value` or `--name=value`, as text.

    Variables and arrays of a shell (`MODEL_FLAGS="--image_size 64"`, `$MODEL_FLAGS`), comments and line ends
    are understood; other words are passed over.

    Raises:
      DataError: quotes that don't close.
      ConfigError: a flag without a value, one that two commands set differently (unless it has no bearing),
        a word that holds a flag but is none, or no flag at all.

    Example:
      >>> flags_of('MODEL_FLAGS="--num_channels 64 --learn_sigma=True"')
      {'num_channels': '64', 'learn_sigma': 'True'}
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise DataError(f"{where}: not a command line ({error})") from None
    words = _unbracketed([part for word in words for part in _unquoted(word)])
    flags: dict[str, str] = {}
    for i, word in enumerate(words):
        match = re.fullmatch(r"--?([A-Za-z][\w-]*)(?:=(.*))?", word, re.DOTALL)
        if not match and re.search(r"(?<![\w-])--[A-Za-z]", word):
            raise ConfigError(f"{where}: {shorten(word)} holds a flag, but is none; write --name value")
        if not match:
            continue
        name, value = match[1].replace("-", "_"), match[2]
        if value is None:
            value = words[i + 1] if i + 1 < len(words) else None
            if value is None or re.match(r"--?[A-Za-z]", value):
                raise ConfigError(f"{where}: --{shorten(name)[1:-1]} has no value; write --name value")
        if _plain(flags.get(name, value)) != _plain(value) and name != "dropout" and not ignored(name):
            raise ConfigError(
                f"{where} sets --{name} twice, to {shorten(flags[name])} and {shorten(value)}; keep the "
                "command by which the network was trained"
            )
        flags[name] = value
    if not flags:
        raise ConfigError(f"{where}: no flags; paste the command line, --name value ...")
    return flags


def _plain(value: str) -> str:
    """A flag's value without what makes no difference."""
    return value.lower().rstrip(",")


def _unquoted(word: str) -> list[str]:
    """The words in an assignment to a shell variable; any other word unchanged."""
    assigned = re.fullmatch(r"[A-Za-z_]\w*\+?=(.*)", word, re.DOTALL)
    return shlex.split(assigned[1]) if assigned else [word]


def _unbracketed(words: list[str]) -> list[str]:
    """The words without the brackets of arrays and subshells; those around numbers stay."""
    plain, opened = [], False
    for word in words:
        if re.match(r"\([-A-Za-z]", word):
            word, opened = word[1:], True
        if opened and word.count(")") > word.count("("):
            word, opened = word.removesuffix(")"), False
        plain.append(word)
    return plain


def _json(path: Path) -> Any:
    try:
        content = files.read_json(path)
        with path.open("rb") as file:
            json.load(file, object_pairs_hook=functools.partial(_once, path))
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for a config") from None
    return content


def _once(path: Path, pairs: list[tuple[Any, Any]]) -> dict:
    """The pairs as a mapping; ConfigError where one name has two different values."""
    content: dict = {}
    for name, value in pairs:
        if name in content and content[name] != value:
            raise ConfigError(f"{path} sets {shorten(name)} twice, differently; keep one of them")
        content[name] = value
    return content


class _Once(yaml.SafeLoader):
    """YAML's safe loader, for which a name set twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        direct = [pair for pair in node.value if pair[0].tag != MERGE]
        pairs = [tuple(self.construct_object(part, deep=True) for part in pair) for pair in direct]
        _once(Path(self.name), [pair for pair in pairs if isinstance(pair[0], Hashable)])
        return super().construct_mapping(node, deep)


# ddim's trainer dumps its config as an object; these two are read as the mapping and the list that they are.
_Once.add_constructor(f"{PYTHON}object:argparse.Namespace", yaml.SafeLoader.construct_yaml_map)
_Once.add_constructor(f"{PYTHON}tuple", yaml.SafeLoader.construct_yaml_seq)


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path}: {path.stat().st_size} bytes; too large for a config")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as text ({type(error).__name__})") from None


def _yaml(path: Path, text: str) -> Any:
    try:
        loader = _Once(text)
        loader.name = str(path)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or type(error).__name__
        raise DataError(f"{path}{place}: not valid YAML ({str(reason)[:80]})") from None
