"""The few error classes. Every message is one line: the value, what was expected, the way out."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

_SHORT = reprlib.Repr()  # reads no more of a value than it shows
_CHOICES = 160  # characters of the list of choices in an error
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class MechdiffError(Exception):
    """Base of all errors caused by input; launchers print its one line and exit with code 2.

    Example:
      >>> try:
      ...     raise ConfigError(unknown("ablation", "zeor", ("zero", "mean")))
      ... except MechdiffError as error:
      ...     print(error)
      unknown ablation 'zeor'; closest: zero
    """


class ConfigError(MechdiffError):
    """A preset, field, component, ablation or value that cannot be used."""


class DataError(MechdiffError):
    """Images, attribute files or caches that are missing, truncated or of another kind."""


class CheckpointError(MechdiffError):
    """A checkpoint that is missing, damaged, or of another configuration."""


class BusyError(MechdiffError):
    """A folder that another live run is writing to."""


class NumericsError(MechdiffError):
    """NaN or Inf where finite numbers are needed."""


class NotTestable(MechdiffError):
    """A claim that can't be tested with the networks at hand; the message is the reason."""


def unknown(what: str, name: str, options: Iterable[str]) -> str:
    """One line for an unknown `name`: the closest options first, or all of them when none is close."""
    options = [str(option) for option in options]
    near = difflib.get_close_matches(str(name)[:200], options, n=3, cutoff=0.5)
    hint = f"closest: {', '.join(near)}" if near else f"choose from: {', '.join(_first(options))}"
    return f"unknown {what} {shorten(name)}; {hint}"


def _first(options: list[str]) -> list[str]:
    """As many of the first twelve as fit into a short line."""
    fitting = [len(", ".join(options[:count])) <= _CHOICES for count in range(1, min(len(options), 12) + 1)]
    return options[: max(1, sum(fitting))]


def shorten(value: Any) -> str:
    """`repr` of a value that may be large, in at most some hundred characters on one line.

    Example:
      >>> shorten([0] * 1000)
      '[0, 0, 0, 0, 0, 0, ...]'
    """
    return " ".join(_SHORT.repr(value).split())
