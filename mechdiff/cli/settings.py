"""All settings, read from the configuration records: name, type, default, and the comment of each."""

import ast
import dataclasses
import functools
import inspect
import io
import sys
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from mechdiff.core.presets import preset


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting, as `--set=NAME=VALUE` takes it.

    Attributes:
      name: `section.field`, or `seed`.
      type: as written in the record; choices with `|`.
      default: of a preset, as `--set` would be given it.
      meaning: one line; empty where the name says it.
    """

    name: str
    type: str
    default: str
    meaning: str


def all_settings(preset_name: str = "quickstart") -> list[Setting]:
    """Every setting in the order of the records, with its value in a preset.

    Example:
      >>> [setting.default for setting in all_settings("tiny") if setting.name == "sweep.images"]
      ['8']
    """
    config = preset(preset_name)
    return [
        Setting(
            name=name, type=_annotation(owner, field), default=_text(value), meaning=_meaning(owner, field)
        )
        for name, owner, field, value in _leaves(config)
    ]


def names() -> list[str]:
    """Names of all settings."""
    return [name for name, *_ in _leaves(preset("tiny"))]


def _leaves(record: Any, prefix: str = "") -> Iterator[tuple[str, type, str, Any]]:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        elif prefix or field.name != "name":  # that of the preset
            yield prefix + field.name, type(record), field.name, value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        shown = ",".join(map(_text, value))
        return shown if len(shown) < 60 else shown[:57] + "..."
    return str(value)


def _annotation(owner: type, field: str) -> str:
    hint = typing.get_type_hints(owner)[field]
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"{typing.get_args(hint)[0].__name__},..."
    return hint.__name__


def _meaning(owner: type, field: str) -> str:
    return _comments(owner.__module__).get((owner.__name__, field), "")


@functools.cache
def _comments(module: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the comment on the lines of the field, of the records in a module."""
    source = inspect.getsource(sys.modules[module])
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    comments = {}
    for node in ast.parse(source).body:
        for line in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                texts = [
                    by_line.get(number, "")
                    for number in range(line.lineno, (line.end_lineno or line.lineno) + 1)
                ]
                comments[node.name, line.target.id] = " ".join(text.lstrip("# ") for text in texts if text)
    return comments
