"""Variables of a shell's commands: a fold over the commands, whose state is a `Scope`."""

import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping

from mechdiff.core.errors import ConfigError, DataError
from mechdiff.models.pretrained.adm.options import ignored
from mechdiff.models.pretrained.shell.changes import DECLARING, OUTPUT, changed
from mechdiff.models.pretrained.shell.flag_words import flags_among
from mechdiff.models.pretrained.shell.words import length_of_array, split, unquoted

MAX_LENGTH = 2**17  # characters of a variable, which may be made of itself; Linux passes no longer argument
ASSIGNED = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:\[[@*]\])?(?::?[-=]([^}]*))?\})")
UTILITIES = re.compile(  # programs of a script that train and sample nothing
    r"\.|\[+|case|cat|cd|chmod|conda|cp|curl|date|done|echo|esac|exit|fi|for|getopts|git|if|kill|let|ln|ls|"
    r"mapfile|mkdir|module|mv|pip3?|popd|printf|pushd|pwd|read|readarray|rm|rsync|sed|select|shopt|sleep|"
    r"source|tar|tee|test|touch|trap|ulimit|unset|unzip|wait|wget|while|\(\(.*|"
    r"//.*|rem|REM"  # comments of other languages
)


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A variable's words; `exported` into the environment of commands, which is no place of arguments."""

    name: str
    words: tuple[str, ...]
    exported: bool


@dataclasses.dataclass(frozen=True)
class Expanded:
    """A command's words without quotes and variables, and the variables that they are made of."""

    words: list[str]
    sources: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Scope:
    """What is known of variables behind a command.

    Attributes:
      where: the text, for messages.
      words: of each variable.
      sources: of each variable, the names of those that it was made of, and its own.
      used: variables that commands use, or other variables.
      unclear: variables set anew, differently, before anything used them: perhaps in branches.
      changed: variables that are set, but perhaps to something else: on a condition, by a loop, a file, ...;
        they are not in `words`, so that they stay as they are written.
      anything: whether any variable may be set outside of the text, by a file that it runs.
      assigned: every assignment, in order.
    """

    where: str
    words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    used: frozenset[str] = frozenset()
    unclear: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    anything: bool = False
    assigned: tuple[Assignment, ...] = ()


def expanded(commands: Iterable[list[str]], where: str) -> tuple[list[Expanded], Scope]:
    """Commands with their variables by what these hold, but for those that only assign and for utilities.

    Args:
      commands: as of `words.commands`.

    Raises:
      ConfigError: a variable that is used and was set twice, differently, before.
      DataError: a variable that is too long.
      ValueError: quotes that don't close.

    Example:
      >>> done, _ = expanded([["F='--x 1'"], ["cd", "a"], ["a.py", "$F", "$G"]], "flags")
      >>> done[0].words, sorted(done[0].sources)
      (['a.py', '--x', '1', '$G'], ['F'])
    """
    scope, done, conditions = Scope(where), [], []
    for words in commands:
        if words[0] in ("if", "case", "for", "while"):
            conditions.append(scope)
        elif words[0] in ("fi", "esac", "done") and conditions:
            scope = _behind_condition(scope, conditions.pop())
        scope, rest = _assigned(scope, words)
        scope = _with_changes(scope, [*(word for word in words[:1] if word in DECLARING), *rest])
        if rest and not _is_utility(rest):
            names = _mentioned(scope, rest)
            scope = dataclasses.replace(scope, used=scope.used.union(names))
            parts = [part for word in rest for part in _expanded(scope, word)]
            done.append(Expanded(parts, _sources(scope, names)))
    return done, scope


def _behind_condition(scope: Scope, before: Scope) -> Scope:
    """The scope behind commands that may not have run; `before`: in front of them."""
    changed = (name for name in scope.words if scope.words[name] != before.words.get(name))
    return _without(scope, [name for name in changed if not _adds_nothing(scope, before, name)])


def _adds_nothing(scope: Scope, before: Scope, name: str) -> bool:
    """Whether all that a variable got since `before` are flags without effect on the network."""
    earlier, words = before.words.get(name), scope.words[name]
    if earlier is None or words[: len(earlier)] != earlier:
        return False
    try:
        return all(ignored(flag) for flag, _ in flags_among(list(words[len(earlier) :]), scope.where))
    except ConfigError:
        return False


def _with_changes(scope: Scope, words: list[str]) -> Scope:
    """The scope behind a command, without the variables that it sets to what the text does not tell."""
    names = changed(words) if words else ()
    if names is None:
        return dataclasses.replace(_without(scope, scope.words), anything=True)
    return _without(scope, names)


def _without(scope: Scope, names: Iterable[str]) -> Scope:
    """The scope without what is known of some variables."""
    gone = frozenset(names)
    kept = {name: words for name, words in scope.words.items() if name not in gone}
    return dataclasses.replace(scope, words=kept, changed=scope.changed | gone)


def _is_open(scope: Scope, name: str) -> bool:
    """Whether a variable may have a value that the text does not tell."""
    return name in scope.changed or (scope.anything and name not in scope.words)


def _is_utility(words: list[str]) -> bool:
    """Whether a command trains and samples nothing."""
    if words[0] == "set":  # `set -o pipefail`; of other shells, `set NAME=VALUE` is an assignment
        return all(word[0] in "-+" for word in words[1:2])
    if words[0] == "eval":
        return all(map(OUTPUT.match, words[1:]))
    return UTILITIES.fullmatch(words[0]) is not None and words[:2] != ["conda", "run"]


def _assigned(scope: Scope, words: list[str]) -> tuple[Scope, list[str]]:
    """The scope behind a command's assignments, and the words behind these."""
    declares, exports = bool(words) and words[0] in DECLARING, words[:1] == ["export"]
    while words and (words[0] in DECLARING or (declares and words[0].startswith("-"))):
        words = words[1:]
    made = []
    while words and (match := ASSIGNED.fullmatch(words[0])):
        length = length_of_array(words) if match[2].startswith("(") else 1
        scope, parts = _with_variable(scope, match, words[:length])
        made.append((match[1], parts))
        words = words[length:]
    listed = tuple(Assignment(*each, exports or bool(words)) for each in made)
    return dataclasses.replace(scope, assigned=scope.assigned + listed), words


def _with_variable(scope: Scope, match: re.Match, words: list[str]) -> tuple[Scope, tuple[str, ...]]:
    """The scope with one more variable, and the words that it is given.

    Args:
      match: of the assignment.
      words: the assignment, several of an array.
    """
    name, value = match[1], match[2]
    mentioned = _mentioned(scope, words)
    used = scope.used.union(mentioned)
    if value.startswith("("):
        inside = [value[1:], *words[1:]]
        inside[-1] = inside[-1].removesuffix(")")
        parts = tuple(part for word in inside if word for part in _expanded(scope, word))
    else:
        parts = tuple(split(_filled(scope, unquoted(value))))
    added = "+" in words[0][: match.start(2)]
    unknown = (f"${name}",) if _is_open(scope, name) else ()
    before = scope.words.get(name, unknown) if added else ()
    anew = not before and name not in used and scope.words.get(name, parts) != parts
    if sum(map(len, before + parts)) > MAX_LENGTH:
        raise DataError(f"{scope.where}: ${name} is too long for a command line")
    sources = {name} | _sources(scope, mentioned) | (scope.sources.get(name, set()) if before else set())
    scope = dataclasses.replace(
        scope,
        words={**scope.words, name: before + parts},
        sources={**scope.sources, name: frozenset(sources)},
        used=used,
        unclear=scope.unclear | {name} if anew else scope.unclear,
        changed=scope.changed | {name} if added and unknown else scope.changed - {name},
    )
    return scope, parts


def _mentioned(scope: Scope, words: list[str]) -> list[str]:
    """The names of the known variables in words with quotes, which are used by that."""
    matches = (match for word in words for match in VARIABLE.finditer(unquoted(word)))
    names = [match[1] or match[2] for match in matches]
    for name in names:
        if name in scope.unclear:
            raise ConfigError(
                f"{scope.where} sets ${name} twice, differently, before it is used; keep what the network "
                "was trained with"
            )
    return [name for name in names if name in scope.words]


def _sources(scope: Scope, names: Iterable[str]) -> frozenset[str]:
    """The variables that these variables were made of."""
    return frozenset().union(*(scope.sources[name] for name in names))


def _expanded(scope: Scope, word: str) -> list[str]:
    """A word without quotes, or the words of the variable that it is."""
    text = unquoted(word)
    match = VARIABLE.fullmatch(text)
    name = (match[1] or match[2]) if match else None
    return list(scope.words[name]) if name in scope.words else [_filled(scope, text)]


def _filled(scope: Scope, text: str) -> str:
    """A text with its variables, as far as they are known, by what they hold."""

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if name in scope.words:
            return " ".join(map(shlex.quote, scope.words[name]))
        return match[0] if match[3] is None or _is_open(scope, name) else match[3]

    return VARIABLE.sub(value, text)
