"""Files that describe a foreign network: JSON, YAML, TOML, or a command line pasted as text."""

import dataclasses
import functools
import json
import re
import tomllib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mechdiff.core.encodings import decoded
from mechdiff.core.errors import ConfigError, DataError, shorten
from mechdiff.models.pretrained.shell.command_lines import read_text
from mechdiff.storage import files

MODEL, DIFFUSION = "model_config", "diffusion_config"  # two files of one network, as DPS and others keep them
STRUCTURED = (".yaml", ".yml", ".json", ".toml")
NAMES = (
    "config.json",
    "config.yaml",
    "config.yml",
    "config.toml",
    "flags.txt",
    *(f"{MODEL}{suffix}" for suffix in STRUCTURED),
)
# Other files, if there is just one of them, and those that are something else.
OTHERS = (r".*\.ya?ml", r".*\.(json|toml)", r"(flags|args|options).*\.(txt|sh)")
NOT_OURS = r"model_index\.json|.*index.*\.json|scheduler.*|preprocessor.*|trainer_state.*|.*stats?\.json"
NOT_OURS += r"|pyproject\.toml|\..*"
LIKELY = re.compile(r".*(config|options)|flags|args")  # of the others' names, beside a config of a usual name
MAX_BYTES = 2**24  # of a file
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
    read = {described_by, _second_half(described_by)}
    return [path.name for path in (*usual, *others) if path not in read]


def _second_half(path: Path) -> Path | None:
    """The file of noise levels that goes with a file of a model, in any format; None where there is none.

    Raises:
      ConfigError: several.
    """
    if path.stem != MODEL:
        return None
    halves = [half for suffix in STRUCTURED if (half := path.with_name(f"{DIFFUSION}{suffix}")).is_file()]
    if len(halves) > 1:
        raise ConfigError(
            f"{path.parent} has several files of noise levels ({', '.join(half.name for half in halves)}); "
            f"keep the one that goes with {path.name}"
        )
    return halves[0] if halves else None


def _others(folder: Path) -> list[Path]:
    """Files that may be configs under other names than the usual ones."""
    files_there = (path for path in sorted(folder.glob("*")) if path.is_file() and path.name not in NAMES)
    return [path for path in files_there if _may_describe(path.name)]


def _may_describe(name: str) -> bool:
    """Whether a file may be a network's config under another name."""
    if re.fullmatch(NOT_OURS, name, re.IGNORECASE):
        return False
    return any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in OTHERS)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file says of a network.

    Attributes:
      options: by name.
      text: whether they are flags of a command line.
      runs: whether a command gives them; what it leaves out has its program's defaults.
      notes: on what was left out.
    """

    options: dict[str, Any]
    text: bool = False
    runs: bool = False
    notes: tuple[str, ...] = ()


def read_config(path: Path) -> dict[str, Any]:
    """The options of `describe`."""
    return describe(path).options


def describe(path: Path) -> Description:
    """The options in a JSON, YAML or TOML file, or the flags of a command line in any other text file. Of a
    model's file with one of noise levels beside it, both are sections. Names in capitals or with dashes are
    as programs know them: `NUM-HEADS` is `num_heads`.

    Raises:
      DataError: absent, not readable, or not of its format.
      ConfigError: not a mapping of names to values; a name in two spellings with different values; of a
        command line, as `command_lines.read_text`.
    """
    suffix = path.suffix.lower()
    if suffix == ".json" or not path.is_file():
        content = _json(path)
    elif suffix in (".yaml", ".yml"):
        content = _yaml(path, _text(path))
    elif suffix == ".toml":
        content = _toml(path, _text(path))
    else:
        pasted = read_text(_text(path), str(path))
        return Description(dict(pasted.flags), True, pasted.runs, pasted.notes)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {shorten(content)}, not options by name")
    for name in content:
        if not isinstance(name, str):
            raise ConfigError(f"{path} has an option {shorten(name)} that is not a name; write it as text")
    options = _known_spelling(_without_remarks(content), path)
    if half := _second_half(path):
        options = {"model": options, "diffusion": read_config(half)}
    return Description(options)


def _without_remarks(content: dict[str, Any]) -> dict[str, Any]:
    """Options as W&B saves them, `name: {desc: null, value: 3}`, by their values alone."""

    def remarked(value: Any) -> bool:
        return isinstance(value, Mapping) and "value" in value and value.keys() <= {"desc", "value"}

    options = {name: value for name, value in content.items() if not name.startswith(("_wandb", "wandb"))}
    if not options or not all(map(remarked, options.values())):
        return content
    return {name: value["value"] for name, value in options.items()}


def _known_spelling(options: Mapping[Any, Any], path: Path) -> dict[Any, Any]:
    """The options and those of their sections under the names that programs know, `LEARN_SIGMA` and
    `learn-sigma` as `learn_sigma`."""
    pairs = []
    for name, value in options.items():
        if isinstance(name, str) and (name.isupper() or "-" in name):
            name = name.lstrip("-").replace("-", "_").lower()
        pairs.append((name, _known_spelling(value, path) if isinstance(value, Mapping) else value))
    return _once(path, pairs)


def option_names(config: Mapping[str, Any]) -> set[str]:
    """Names of a config's options and of those in its sections, by which a layout is told; never an error.

    Example:
      >>> sorted(option_names({"model": {"ch": 128}, "seed": 0}))
      ['ch', 'model', 'seed']
    """
    sections = (value for value in config.values() if isinstance(value, Mapping))
    return {name for names in (config, *sections) for name in names if isinstance(name, str)}


def sections(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Sections of a config at any depth, with their dotted names.

    Example:
      >>> [name for name, _ in sections({"model": {"params": {"ch": 128}}})]
      ['model', 'model.params']
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{name}", value
            yield from sections(value, f"{prefix}{name}.")


def flags_of(text: str, where: str = "flags") -> dict[str, str]:
    """The flags of a command line, as text; errors as `command_lines.read_text`.

    Example:
      >>> flags_of('MODEL_FLAGS="--num_channels 64 --learn_sigma=True"')
      {'num_channels': '64', 'learn_sigma': 'True'}
    """
    return read_text(text, where).flags


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
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; too large for a config")
    try:
        return decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as text ({type(error).__name__})") from None


def _toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid TOML ({str(error)[:80]})") from None


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
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or type(error).__name__
        raise DataError(f"{path}{line}: not valid YAML ({str(reason)[:80]})") from None
