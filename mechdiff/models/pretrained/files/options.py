"""Options of a foreign config: read by type, passed over, or refused by name.

Every format has a table, name -> `Option`. An option that the table does not name is an error, unless it is
known to have no effect here: otherwise a misspelled option would silently keep its default.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mechdiff.core.errors import ConfigError, shorten, unknown

TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")  # guided-diffusion's str2bool
UNDERSCORED = (  # names that programs which read and write configs add to them, and remarks
    r"_(target|partial|convert|recursive|self|wandb)_?|_(class_name|diffusers_version|name_or_path|commit_hash)"
    r"|_(use_default_values|ignore_files|base|name)_?"
    r"|_+(comment|note|doc|desc|readme|license|author|source|url|version|meta)\w*"
)
MAX_INTEGER = 2**31 - 1  # whole number that any size or count can be


@dataclasses.dataclass(frozen=True)
class Type:
    """A type of value: `read` turns what a file holds into it, or raises ValueError; `expected` says what."""

    expected: str
    read: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a foreign format.

    Attributes:
      default: what its absence means.
      type: of its value.
      only: values that are supported, where not all are; compared after reading.
    """

    default: Any
    type: Type
    only: tuple = ()


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a config.

    Attributes:
      values: of every option of the table.
      stated: names that the config holds; the others are at their defaults.
      passed_over: names of options without effect here that the config holds.
    """

    values: dict[str, Any]
    stated: frozenset[str]
    passed_over: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def read_options(
    config: Mapping[str, Any], table: Mapping[str, Option], *, what: str, ignored: tuple[str, ...] = ()
) -> Options:
    """The options that a config states, checked, and the defaults of the rest.

    Args:
      config: as the file holds it.
      ignored: regular expressions (full match) of names that don't affect what the network computes; those of
        `UNDERSCORED` don't either, and are not even noted.
      what: for messages, such as `UNet2DModel`.

    Raises:
      ConfigError: unknown options, or a value that is not resolved (`${...}`), of a wrong type, or not
        supported; by name.

    Example:
      >>> table = {"bias": Option(True, boolean(text=True))}
      >>> read_options({"bias": "False", "model_path": "a"}, table, what="X", ignored=(".*_path",)).values
      {'bias': False}
    """
    _check_resolved(config, table, what)
    passed_over, strange = [], []
    for name in config:
        if not isinstance(name, str):
            raise ConfigError(f"{what} option {shorten(name)} is not a name; write it as text")
        if name in table or re.fullmatch(UNDERSCORED, name):
            continue
        without_effect = any(re.fullmatch(pattern, name) for pattern in ignored)
        (passed_over if without_effect else strange).append(name)
    if strange:
        others = f"; unknown too: {', '.join(map(shorten, strange[1:]))}" if strange[1:] else ""
        raise ConfigError(unknown(f"option of {what}", strange[0], table) + others)
    values = {name: option.default for name, option in table.items()}
    for name in table.keys() & config.keys():
        values[name] = read_value(what, name, config[name], table[name].type)
    for name, option in table.items():
        if option.only and values[name] not in option.only:
            raise ConfigError(refusal(what, name, values[name], option.only))
    return Options(values, frozenset(table.keys() & config.keys()), tuple(passed_over))


def _check_resolved(config: Mapping[str, Any], table: Mapping[str, Option], what: str) -> None:
    """Refuses values that stand for another option's, before the option that only they use is unknown."""
    for name, value in config.items():
        if name in table and isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"{what} option {name}={shorten(value)} stands for a value elsewhere (OmegaConf), which is "
                "not looked up; write that value"
            )


def read_value(what: str, name: str, value: Any, kind: Type) -> Any:
    """One value as `kind` reads it; ConfigError names the option, the value and what was expected."""
    try:
        return kind.read(value)
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(f"{what} option {name}={shorten(value)} is not {kind.expected}") from None


def refusal(what: str, name: str, value: Any, allowed: tuple) -> str:
    """The line for a value that is not supported."""
    choices = " or ".join(map(shorten, allowed))
    return f"{what} option {name}={shorten(value)} is not supported; only {choices}"


def boolean(text: bool = False) -> Type:
    """True or False; with `text`, also what a command line writes for them (and 0 and 1)."""

    def read(value):
        if isinstance(value, bool):
            return value
        if text and isinstance(value, str | int):
            word = str(value).strip().lower()
            if word in TRUE or word in FALSE:
                return word in TRUE
        raise ValueError

    return Type("true or false", read)


def integer(low: int | None = 1, high: int | None = None, *, text: bool = False, also: tuple = ()) -> Type:
    """A whole number from `low` to `high`, or one of `also`; with `text`, also written as text."""

    def read(value):
        if value in also and not isinstance(value, bool):
            return value
        number = _whole(value, text)
        if number in also:
            return number
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError
        return number

    more = "".join(f" or {_shown(other)}" for other in also)
    least = "" if low is None else f" of at least {low}"
    most = "" if high is None else f" and at most {high}"
    return Type(f"a whole number{least}{most}{more}", read)


def number(low: float | None = None, *, text: bool = False) -> Type:
    """A finite number of at least `low`."""

    def read(value):
        result = _real(value, text)
        if low is not None and result < low:
            raise ValueError
        return result

    return Type(f"a number{'' if low is None else f' of at least {low}'}", read)


def listed(item: Type, *, text: bool = False, also: tuple = (), empty: bool = False) -> Type:
    """A list of what `item` reads; one item stands for a list of one; with `text`, also commas as in "16,8".

    Args:
      also: values besides lists, kept as they are.
      empty: whether a list may be empty.
    """

    def read(value):
        if any(type(value) is type(other) and value == other for other in also):
            return value
        items = value
        if text and isinstance(value, str):
            items = value.strip("()[] ").removesuffix(",").split(",")
        if not isinstance(items, list | tuple):
            items = [items]
        if not items and not empty:
            raise ValueError
        return tuple(item.read(element) for element in items)

    more = "".join(f" or {_shown(other)}" for other in also)
    return Type(f"a list, each {item.expected}{more}", read)


def mapped(item: Type) -> Type:
    """A mapping of names to what `item` reads; null stands for an empty one."""

    def read(value):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError
        return {str(name): item.read(element) for name, element in (value or {}).items()}

    return Type(f"a mapping, each value {item.expected}", read)


def choice(*values: str | None, kind: str = "") -> Type:
    """One of some texts (None: null), which `Option.only` holds it to; `kind` is what they are called."""

    def read(value):
        if value is None or isinstance(value, str):
            return value
        raise ValueError

    return Type(kind or f"one of {', '.join(_shown(value) for value in values)}", read)


def optional(kind: Type) -> Type:
    """Reads null, or what `kind` reads."""
    return Type(f"{kind.expected} or null", lambda value: None if value is None else kind.read(value))


def anything() -> Type:
    """Any value, for options that only some values of are supported: `Option.only` says which."""
    return Type("anything", lambda value: value)


def _whole(value: Any, text: bool) -> int:
    if isinstance(value, bool):
        raise ValueError
    exact = isinstance(value, float) and value.is_integer()  # JSON does not tell 4 and 4.0 apart
    if not exact and not isinstance(value, int) and not (text and isinstance(value, str)):
        raise ValueError
    number = int(value)
    if abs(number) > MAX_INTEGER:
        raise ValueError
    return number


def _real(value: Any, text: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if isinstance(value, str) and not text:
        raise ValueError
    result = float(value)
    if not math.isfinite(result):
        raise ValueError
    return result


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
