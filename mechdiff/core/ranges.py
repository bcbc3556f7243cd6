"""Checks of settings, as errors that name the value and its range."""

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

from mechdiff.core.errors import ConfigError, shorten

MAX_COUNT = 2**31 - 1  # of anything that is counted: JAX counts in 32 bits
MAX_RANDOM = 100_000  # sets or networks that something is compared with: p can be 1e-5 then


def at_least(name: str, value: float, low: float) -> None:
    """Raises ConfigError if a setting is below `low`."""
    if value < low:
        raise ConfigError(f"{name}={value} is too small; at least {low}")


def count(name: str, value: int, low: int) -> None:
    """Raises ConfigError if a number of things is below `low`, or more than any run comes to the end of."""
    at_least(name, value, low)
    if value > MAX_COUNT:
        raise ConfigError(f"{name}={value} is out of range; at most {MAX_COUNT}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError if a setting is outside [low, high]."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range; {low} to {high}")


def distinct(name: str, values: Sequence) -> None:
    """Raises ConfigError if a list of choices is empty, or names one of them twice."""
    if not values:
        raise ConfigError(f"{name}: none is given; give at least one")
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ConfigError(f"{name}: {twice[0]} is given twice; give each once")


def whole(name: str, value: Any, low: int | None = None, *, meaning: str = "") -> int:
    """A whole number that a user gave, Python's or NumPy's, as an `int`.

    Args:
      low: the least that it may be, of what is counted, and then `MAX_COUNT` is the most; None: any.
      meaning: what it counts, for the error.

    Raises:
      ConfigError: anything else, such as 1.5, "4", None or a list; or out of range.

    Example:
      >>> whole("n", 16, 1)
      16
      >>> whole("timesteps", "all", 1, meaning="how many")
      Traceback (most recent call last):
      mechdiff.core.errors.ConfigError: timesteps='all': expected how many, a whole number, such as 4
    """
    try:
        number = operator.index(value)
    except TypeError:
        such = f", such as {4 if low else 0}"
        raise ConfigError(
            f"{name}={shorten(value)}: expected {meaning + ', ' if meaning else ''}a whole number{such}"
        ) from None
    if low is not None:
        count(name, number, low)
    return number


def folder_name(what: str, name: str) -> str:
    """A name that results are saved under, if it stays in the folder that it is put in.

    Raises:
      ConfigError: empty, or one that leads elsewhere.

    Example:
      >>> folder_name("name", "faces 2")
      'faces 2'
      >>> folder_name("name", "../faces")
      Traceback (most recent call last):
      mechdiff.core.errors.ConfigError: name='../faces' leads elsewhere; give a folder's name without / and \\
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise ConfigError(f"{what}={shorten(name)} leads elsewhere; give a folder's name without / and \\")
    return name


def seed(value: Any) -> int:
    """A seed of random numbers: JAX takes 32 bits of it, so that larger ones would be others again.

    Raises:
      ConfigError: no whole number, or out of range.
    """
    number = whole("seed", value)
    within("seed", number, 0, 2**32 - 1)
    return number


def finite(name: str, value: Any) -> float:
    """A finite number that a user gave; ConfigError for anything else, such as NaN, None or a word."""
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{name}={shorten(value)}: expected a finite number")
    return number
