"""Variables that a command sets to what its text does not tell: by loops, input, arithmetic, files."""

import re

from mechdiff.models.pretrained.shell.words import unquoted

NAME = re.compile(r"[A-Za-z_]\w*")
ARITHMETIC = re.compile(  # `X = 2`, `X *= 2`, `X++`, `--X`; no comparison
    r"([A-Za-z_]\w*)\s*(?:\+\+|--|(?:<<|>>|[-+*/%^])?=(?!=))|(?:\+\+|--)([A-Za-z_]\w*)"
)
READING = ("read", "mapfile", "readarray", "getopts", "unset")
DECLARING = ("export", "declare", "local", "readonly", "typeset")
OUTPUT = re.compile(r"\"?(\$\(|`)")  # of a command, as a word
# What only finds programs: virtual environments, modules, and files that a shell reads at its start.
OF_PROGRAMS = re.compile(
    r"(.*/)?((de)?activate(\.\w+)?|(conda|mamba|micromamba|modules?|setvars|nvm)(\.\w+)?|"
    r"\.?(bash|zsh|sh)?(rc|_profile|profile|env)|lmod.*|.*/init/\w+)|.*\b(conda|mamba|ssh-agent|modulecmd)\b.*"
)


def changed(words: list[str]) -> frozenset[str] | None:
    """The names of the variables that a command sets to something unknown; None: perhaps any.

    Args:
      words: of the command, quotes kept, without assignments in front.

    Example:
      >>> [sorted(changed(line.split())) for line in ("for A in 1 2", "let A=B*2", "read -r A B", "a.py A")]
      [['A'], ['A'], ['A', 'B'], []]
      >>> changed(["source", "settings.sh"]), changed(["source", "env/bin/activate"])
      (None, frozenset())
    """
    first, rest = words[0], [unquoted(word) for word in words[1:]]
    if first in ("source", ".", "eval", *DECLARING):
        outside = first in ("source", ".") or any(map(OUTPUT.match, words[1:]))
        said = " ".join(rest if first == "eval" else rest[:1])
        return None if outside and not OF_PROGRAMS.fullmatch(said) else frozenset()
    if first == "let" or "((" in (first[:2], "".join(rest)[:2] if first == "for" else ""):
        matches = ARITHMETIC.finditer(" ".join([first.removeprefix("let"), *rest]))
        return frozenset(match[1] or match[2] for match in matches)
    if first in ("for", "select"):
        return frozenset(rest[:1])
    if first == "printf":
        return frozenset(rest[1:2] if rest[:1] == ["-v"] else ())
    return frozenset(filter(NAME.fullmatch, rest)) if first in READING else frozenset()
