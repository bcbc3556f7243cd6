"""Conversion between frozen records and plain fields, for config files and `--set`."""

import ast
import dataclasses
import math
import sys
import typing
from collections.abc import Mapping
from typing import Any, Literal

from mechdiff.core.errors import ConfigError, shorten, unknown
from mechdiff.core.old_names import CONFIG_FIELDS


def from_fields(data: dict, record: type) -> Any:
    """A `record` with these fields; fields of version 0.1 are read under their old names.

    Raises:
      ConfigError: an unknown or missing field, named, or a value of another type.
    """
    hints = typing.get_type_hints(record)
    renamed = CONFIG_FIELDS.get(record.__name__, {})
    data = {renamed.get(name, name): value for name, value in data.items()}
    for name in data:
        if name not in hints:
            raise ConfigError(unknown("field", name, hints))
    values = {name: _restore(hints[name], value, name) for name, value in data.items()}
    try:
        return record(**values)
    except TypeError as error:
        raise ConfigError(f"{record.__name__}: {error}") from None


def differences(prefix: str, values: dict, base: dict) -> list[str]:
    """Settings of `values` that differ from `base`, as assignments `section.field=value`."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            lines += differences(f"{prefix}{name}.", value, base[name])
        elif value != base.get(name):
            lines.append(f"{prefix}{name}={shorten(value)}")
    return lines


def typed(record: type, path: list[str], text: str, full: str) -> Any:
    """The value of one field from text.

    Args:
      record: class that has the field, maybe in a section.
      path: names of the sections and of the field, such as `["train", "steps"]`.
      text: the value as typed.
      full: the whole path, for errors.

    Raises:
      ConfigError: no such field (closest named), an old name of one, a section, or text not of its type.
    """
    hints = typing.get_type_hints(record)
    if path[0] in (renamed := CONFIG_FIELDS.get(record.__name__, {})):
        new = full.removesuffix(path[0]) + renamed[path[0]]
        raise ConfigError(f"setting {full!r} is called {new!r} now; write --set={new}=...")
    if path[0] not in hints:
        raise ConfigError(unknown("field", full, _all_fields(record, full, path)))
    hint = hints[path[0]]
    if dataclasses.is_dataclass(hint):
        if len(path) == 1:
            names = ", ".join(field.name for field in dataclasses.fields(hint))
            raise ConfigError(f"{full!r} is a section; name a field of it: {names}")
        return typed(hint, path[1:], text, full)
    if len(path) > 1:
        raise ConfigError(f"{full!r}: {path[0]!r} is a field, not a section")
    return _restore(hint, _read(hint, text), full)


def replaced(config: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """`config` with other values of some fields, by their paths. Each record is built once, with all of them,
    so that fields that must fit each other can be changed together.

    Raises:
      ConfigError: values out of range, or that don't fit each other.
    """
    values = {path[0]: value for path, value in changes.items() if len(path) == 1}
    for section in {path[0]: None for path in changes if len(path) > 1}:
        inner = {path[1:]: value for path, value in changes.items() if path[0] == section}
        values[section] = replaced(getattr(config, section), inner)
    return dataclasses.replace(config, **values)


def _all_fields(record: type, full: str, path: list[str]) -> list[str]:
    prefix = full[: len(full) - len(".".join(path))]
    names = []
    for name, hint in typing.get_type_hints(record).items():
        inner = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else None
        names += [f"{prefix}{name}.{leaf}" for leaf in inner] if inner else [prefix + name]
    return names


def _read(hint: Any, text: str) -> Any:
    """Text as a value: strings as they are typed (`2024_01` is no number), others as Python literals. What a
    tuple holds is separated by commas; nothing is the empty tuple."""
    origin, literal = typing.get_origin(hint), _literal(text)
    text = literal if isinstance(literal, str) else text  # without quotes around it
    if origin is not tuple:
        choices = typing.get_args(hint) if origin is Literal else ()
        return text if hint is str or isinstance(next(iter(choices), None), str) else literal
    strings = typing.get_args(hint)[0] is str
    if isinstance(literal, list | tuple) and (not strings or all(isinstance(each, str) for each in literal)):
        return literal
    items = [item.strip() for item in text.split(",")] if text else []
    return items if strings else [_literal(item) for item in items]  # "false,true" is no literal as a whole


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that it raises
        return text


def _restore(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type that `hint` asks for, or a ConfigError that names both."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{name}={shorten(value)} is not a section of fields")
        return from_fields(value, hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(unknown(f"value for {name}:", value, arguments))
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_restore(arguments[0], item, name) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={shorten(value)} is not of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number")
    return value
