"""Flags among the words of a command line; other words that may hold flags are asked about."""

import re
from collections.abc import Iterator

from mechdiff.core.errors import ConfigError, shorten
from mechdiff.models.pretrained.adm.options import ALIASES, TABLE, ignored

DASHES = "\u2010-\u2015\u2212\ufe58\ufe63\uff0d"  # that look like the hyphen of a flag
FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
DASHED = re.compile(rf"-*[{DASHES}][-{DASHES}]*[A-Za-z]|--?[A-Za-z]")  # how a flag begins, or seems to
HELD = re.compile(rf"(?<![\w-])--[A-Za-z]|^-*[{DASHES}][-{DASHES}]*[A-Za-z]")  # in a word that is no flag
SETTING = re.compile(r"[+~]*[A-Za-z_][\w.@/-]*\+?=.*", re.DOTALL)  # of a shell, or of Hydra
OUTSIDE = re.compile(r"-*(\$.|`)|.*`")  # begins with, or is in part, what is not in the text
FILE = re.compile(r"@.+|.*\.(ya?ml|json|toml|ini|cfg|conf|gin)")  # of options, perhaps
NUMBERS = re.compile(r"[(\[]?[\d.,]+[)\]]?")
REDIRECTION = re.compile(r"\d?(>>?|<)")  # its target is the next word, or the rest of this one


def seems_flag(word: str) -> bool:
    return bool(DASHED.match(word))


def has_flag(word: str) -> bool:
    return seems_flag(word) or bool(HELD.search(word))


def flags_among(words: list[str], where: str) -> Iterator[tuple[str, str]]:
    """Name and value of each flag among a program's arguments.

    Raises:
      ConfigError: a flag without a value, or a word that may hold flags but is none.

    Example:
      >>> list(flags_among(["--num_heads", "2", "--lr=1", ">", "log.txt"], "flags"))
      [('num_heads', '2'), ('lr', '1')]
    """
    value_of, before = None, ""  # the flag that waits for its value, and what a word follows
    for word in words:
        match = FLAG.fullmatch(word)
        if value_of is not None:
            if seems_flag(word):
                break
            _check_value(value_of, word, where)
            yield value_of, word
            value_of, before = None, f"--{value_of} {word}"
        elif not match:
            _check_other(word, before, where)
            before = before if NUMBERS.fullmatch(word) else word
        elif match[2] is None:
            value_of = match[1].replace("-", "_")
        else:
            name = match[1].replace("-", "_")
            _check_value(name, match[2], where)
            yield name, match[2]
            before = f"--{name} {match[2]}"
    if value_of is not None:
        raise ConfigError(f"{where}: --{shorten(value_of)[1:-1]} has no value; write --name value")


def _check_other(word: str, before: str, where: str) -> None:
    """Refuses a word that is neither a flag nor a flag's value, but may say something of the network.

    Args:
      before: the word in front, with its flag if it is a value.
    """
    if REDIRECTION.fullmatch(before) or REDIRECTION.match(word):
        return
    _check_value("", word, where)
    if SETTING.fullmatch(word):
        raise ConfigError(f"{where}: {shorten(word)} is no flag; write --name value")
    if OUTSIDE.match(word):
        raise ConfigError(_undefined(word, where))
    if FILE.fullmatch(word):
        raise ConfigError(
            f"{where}: {shorten(word)} is no flag, and may be a file of options; write these as --name "
            "value, or take it out"
        )
    name = before.partition(" ")[0].removeprefix("--")
    if NUMBERS.fullmatch(word) and before.startswith("--") and name in (*TABLE, *ALIASES):
        raise ConfigError(
            f"{where}: {shorten(word)} follows {shorten(before)[1:-1]}, and is no flag; write a list with "
            "commas, 1,2,3"
        )


def _check_value(name: str, value: str, where: str) -> None:
    """Refuses a word that holds a flag, also as a value: `bash -c "python train.py --lr 1"`; and a value of
    the network's flags that is not in the text."""
    if HELD.search(value) and not ignored(name):
        raise ConfigError(f"{where}: {shorten(value)} holds a flag, but is none; write --name value")
    if name in TABLE and re.search(r"[$`]", value):
        raise ConfigError(_undefined(value, where))


def _undefined(word: str, where: str) -> str:
    return (
        f"{where} uses {shorten(word)[1:-1]}, which it does not define, or sets on a condition, in a loop or "
        "by another file; write what it stands for, or take it out"
    )
