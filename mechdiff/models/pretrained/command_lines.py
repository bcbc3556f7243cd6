"""Command lines pasted as text: words and variables of a shell, and the flags of the program that they start.

Of a shell only that is understood which decides where a program's flags are: quotes, comments, continued
lines, variables and arrays. What a shell would take from outside of the text is asked for.
"""

import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator

from mechdiff.core.errors import ConfigError, DataError, shorten
from mechdiff.models.pretrained.adm_options import UNTOLD, at_default, ignored

LEXEME = re.compile(
    r"(?P<gap>(?:[^\S\n]|\\[ \t\r]*(?:\n|\Z))+)"  # a line's end behind a backslash is a gap, also the last
    r"|(?P<end>[\n;&|]+)"
    r"|(?P<comment>#[^\n]*)"  # at the start of a word: other words are taken whole
    r"|(?P<word>(?:\\(?![ \t\r]*(?:\n|\Z)).|\"(?:\\.|[^\"\\])*\"|'[^']*'|[^\s\"'\\;&|])+)",
    re.DOTALL,
)
DASHES = "\u2010-\u2015\u2212\ufe58\ufe63\uff0d"  # that look like the hyphen of a flag
FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
DASHED = re.compile(rf"-*[{DASHES}][-{DASHES}]*[A-Za-z]|--?[A-Za-z]")  # how a flag begins, or seems to
HELD = re.compile(rf"(?<![\w-])--[A-Za-z]|^-*[{DASHES}][-{DASHES}]*[A-Za-z]")  # in a word that is no flag
LARGEST = 2**20  # characters of a variable, which may be made of itself
UNFINISHED = re.compile(r"--[A-Za-z][\w-]*")  # its value is perhaps on the next line
ASSIGNED = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
ARRAY = re.compile(r"[A-Za-z_]\w*\+?=\(")
VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:\[[@*]\])?(?::?[-=]([^}]*))?\})")
# Undefined variables that by their names, those of the programs' READMEs, hold nothing of the network.
OF_OTHERS = re.compile(r"\$\{?(CLASSIFIER|EVAL|SAMPL(E|ER|ING)|TRAIN(ING)?)_(ARGS|FLAGS|OPTIONS)\}?")
DECLARING = ("export", "declare", "local", "readonly", "typeset")
LEADING = ("$", "%", ">", "then", "do", "else", "if", "while", "!", "{", "(")  # prompts and a shell's words
UTILITIES = re.compile(  # programs of a script that train and sample nothing
    r"\.|\[+|cat|cd|chmod|conda|cp|curl|date|echo|exit|for|git|kill|ln|ls|mkdir|module|mv|pip3?|popd|printf|"
    r"pushd|pwd|rm|rsync|sed|shopt|sleep|source|tar|tee|test|touch|trap|ulimit|unset|unzip|wait|wget|"
    r"//.*|rem|REM"  # comments of other languages
)
INTERPRETER = re.compile(
    r"!?(.*/)?(i?python|pypy)[\d.]*|(.*/)?(accelerate|deepspeed|horovodrun|mpiexec|mpirun|srun|torchrun)|%run"
)
LAUNCHING = re.compile(r"(torch\.|accelerate|deepspeed|mpi4py|cProfile|pdb|debugpy|trace).*")  # `python -m`
# By the names of their programs. `classifier_sample.py` has the flags of the network that it samples from.
OF_CLASSIFIER = re.compile(r"(?!.*sampl).*classif.*", re.IGNORECASE)
OF_ENLARGING = re.compile(r".*super_?res.*", re.IGNORECASE)
OF_NETWORK = re.compile(r".*(train|sampl).*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Pasted:
    """What a text says of a program's flags.

    Attributes:
      flags: as text.
      runs: whether a command is there; what it leaves out has its program's defaults. Variables alone don't
        say what else the program was given.
      notes: which flags were left out.
    """

    flags: dict[str, str]
    runs: bool
    notes: tuple[str, ...]


def read_text(text: str, where: str = "flags") -> Pasted:
    """The flags of a command line, `--name value` or `--name=value`, as text.

    Variables and arrays of a shell (`MODEL_FLAGS="--image_size 64"`, `$MODEL_FLAGS`), comments and line ends
    are understood; options of what starts the program and words that are no flags are passed over, and so
    are variables that no command uses, if the commands use any. If they use none, the variables that hold
    flags are read too, except those in the environment of commands that have flags of their own. Commands
    that by name train a classifier are passed over, and those of super-resolution beside others.

    Raises:
      DataError: quotes that don't close.
      ConfigError: a flag without a value, one that two commands set differently (unless it has no bearing) or
        that one of them leaves to its default (if no tensor tells it), flags outside of a command where there
        are commands, a word that holds a flag but is none, a variable that is not in the text (unless it is
        by name of sampling, training or a classifier), or no flag at all.
    """
    try:
        shell = _Shell(where)
        for words in _commands(text):
            shell.take(words)
    except ValueError as error:
        raise DataError(f"{where}: not a command line ({error})") from None
    commands, notes = _of_network(shell.commands, where)
    taken, left_out = _unused(shell, commands)
    if left_out:
        names = ", ".join(f"${name}" for name in left_out)
        notes += (f"left out, as no command of {where} uses them: {names}",)
    parts = [*taken, *(command.arguments for command in commands)]
    if others := list(dict.fromkeys(word for words in parts for word in words if OF_OTHERS.fullmatch(word))):
        notes += (f"not defined in {where}, and by name not of the network: {', '.join(others)}",)
        parts = [[word for word in words if word not in others] for words in parts]
    given = [list(_flags(words, where)) for words in parts]
    flags = _merged([flag for each in given for flag in each], where)
    _check_defaults(commands, [dict(each) for each in given[len(taken) :]], where)
    return Pasted(flags, bool(commands), notes)


def _merged(given: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Flags by name; ConfigError where there are none, or two of one name that differ and have a bearing."""
    flags: dict[str, str] = {}
    for name, value in given:
        if _plain(flags.get(name, value)) != _plain(value) and name != "dropout" and not ignored(name):
            raise ConfigError(
                f"{where} sets --{name} twice, to {shorten(flags[name])} and {shorten(value)}; keep the "
                "command by which the network was trained"
            )
        flags[name] = value
    if not flags:
        raise ConfigError(f"{where}: no flags; paste the command line, --name value ...")
    return flags


@dataclasses.dataclass(frozen=True)
class _Command:
    """One command of a text.

    Attributes:
      program: its script, or what else it starts; empty: the words are flags alone.
      arguments: of the program, expanded.
      sources: names of the variables that they are made of.
    """

    program: str
    arguments: list[str]
    sources: set[str] = dataclasses.field(default_factory=set)


def _of_network(commands: list[_Command], where: str) -> tuple[list[_Command], tuple[str, ...]]:
    """The commands that may be the network's, and a note on the others.

    Raises:
      ConfigError: flags that stand outside of a command, where there are commands.
    """
    bare = [command for command in commands if not command.program]
    if bare and len(bare) < len(commands):
        raise ConfigError(
            f"{where}: {shorten(bare[0].arguments[0])} begins a command of its own: a comment or the end of "
            "a line ends the one before; if it is part of that, join the lines, else take it out"
        )
    if bare:  # lines of flags alone are one command
        words = [word for command in bare for word in command.arguments]
        commands = [_Command("", words, set().union(*(command.sources for command in bare)))]
    own = [command for command in commands if not OF_CLASSIFIER.fullmatch(command.program)]
    own = [command for command in own if not OF_ENLARGING.fullmatch(command.program)] or own
    names = dict.fromkeys(shorten(command.program)[1:-1] for command in commands if command not in own)
    return own, (f"by name not of the network, so passed over: {', '.join(names)}",) if names else ()


def _check_defaults(commands: list[_Command], given: list[dict[str, str]], where: str) -> None:
    """Refuses a flag that decides numbers and is in some of the network's commands alone: in the others it
    has its default, which is another value."""
    of_network = [
        flags
        for command, flags in zip(commands, given, strict=True)
        if OF_NETWORK.fullmatch(command.program) or not all(map(ignored, flags))
    ]
    for name, value in (flag for flags in of_network for flag in flags.items()):
        everywhere = all(name in flags for flags in of_network)
        if name in UNTOLD and not everywhere and not at_default(name, value):
            raise ConfigError(
                f"{where} sets --{name} to {shorten(value)} in one command, and another leaves it at its "
                "default; keep the command by which the network was trained"
            )


@dataclasses.dataclass(frozen=True)
class _Assignment:
    """A variable's words; `exported` into the environment of commands, which is no place of arguments."""

    name: str
    words: list[str]
    exported: bool


class _Shell:
    """The variables of a text, and its commands' arguments.

    Attributes:
      assigned: every assignment, in order.
      used: variables that commands use, or other variables.
      sources: of each variable, the names of those that it was made of, and its own.
      replaced: variables set anew, differently, before anything used them: perhaps in branches.
      commands: each that starts a program or has flags.
    """

    def __init__(self, where: str):
        self.where = where
        self.variables: dict[str, list[str]] = {}
        self.assigned: list[_Assignment] = []
        self.used: set[str] = set()
        self.sources: dict[str, set[str]] = {}
        self.replaced: set[str] = set()
        self.commands: list[_Command] = []

    def take(self, words: list[str]) -> None:
        """Reads one command, as `_commands` gives it."""
        words = self._without_assignments(_unbracketed(words))
        if not words or (UTILITIES.fullmatch(words[0]) and words[:2] != ["conda", "run"]):
            return
        if words[0] == "set" and all(word[0] in "-+" for word in words[1:2]):
            return  # `set -o pipefail`; of other shells, `set NAME=VALUE` is an assignment
        expanded = [part for word in words for part in self._expanded(word)]
        if command := _command(expanded):
            self.commands.append(dataclasses.replace(command, sources=self._sources_of(words)))

    def _without_assignments(self, words: list[str]) -> list[str]:
        """The words behind assignments, which are noted."""
        declares, exports = bool(words) and words[0] in DECLARING, words[:1] == ["export"]
        assignments = []
        while words and (words[0] in DECLARING or (declares and words[0].startswith("-"))):
            words = words[1:]
        while words and (match := ASSIGNED.fullmatch(words[0])):
            name, value = match[1], match[2]
            length = _length_of_array(words) if value.startswith("(") else 1
            if value.startswith("("):
                inside = [value[1:], *words[1:length]]
                inside[-1] = inside[-1].removesuffix(")")
                parts = [part for word in inside if word for part in self._expanded(word)]
            else:
                parts = shlex.split(self._filled(_unquoted(value)))
            before = self.variables.get(name, []) if "+" in words[0][: match.start(2)] else []
            if not before and name not in self.used and self.variables.get(name, parts) != parts:
                self.replaced.add(name)
            if sum(map(len, before + parts)) > LARGEST:
                raise DataError(f"{self.where}: ${name} is too long for a command line")
            sources = self._sources_of(words[:length])
            self.sources[name] = {name} | sources | (self.sources[name] if before else set())
            self.variables[name] = [*before, *parts]
            assignments.append((name, parts))
            words = words[length:]
        self.assigned += [_Assignment(*each, exports or bool(words)) for each in assignments]
        return words

    def _sources_of(self, words: list[str]) -> set[str]:
        """The variables that words with quotes are made of, as far as they are known."""
        matches = (match for word in words for match in VARIABLE.finditer(_unquoted(word)))
        names = (match[1] or match[2] for match in matches)
        return set().union(*(self.sources[name] for name in names if name in self.sources))

    def _expanded(self, word: str) -> list[str]:
        """A word without quotes, or the words of the variable that it is."""
        text = _unquoted(word)
        match = VARIABLE.fullmatch(text)
        name = (match[1] or match[2]) if match else None
        if name in self.variables:
            return self._words_of(name)
        return [self._filled(text)]

    def _words_of(self, name: str) -> list[str]:
        """The words of a variable, which is used."""
        if name in self.replaced:
            raise ConfigError(
                f"{self.where} sets ${name} twice, differently, before it is used; keep what the network was "
                "trained with"
            )
        self.used.add(name)
        return self.variables[name]

    def _filled(self, text: str) -> str:
        """A text with its variables, as far as they are known, by what they hold."""

        def value(match: re.Match) -> str:
            name = match[1] or match[2]
            if name in self.variables:
                return " ".join(map(shlex.quote, self._words_of(name)))
            return match[0] if match[3] is None else match[3]

        return VARIABLE.sub(value, text)


def _unused(shell: _Shell, commands: list[_Command]) -> tuple[list[list[str]], list[str]]:
    """Of the variables that hold flags and that no command was given: the words of those that are flags all
    the same, and the names of those that are left out.

    Args:
      commands: the network's.
    """
    passed = set().union(*(command.sources for command in shell.commands))
    unused = [each for each in shell.assigned if each.name not in passed and any(map(_has_flag, each.words))]
    uses = any(command.sources for command in commands)
    flagged = any(_seems_flag(word) for command in commands for word in command.arguments)
    out = [each for each in unused if uses or (flagged and each.exported)]
    return [each.words for each in unused if each not in out], list(dict.fromkeys(each.name for each in out))


def _commands(text: str) -> Iterator[list[str]]:
    """The words of each command, quotes kept."""
    words: list[str] = []
    place = 0
    while place < len(text):
        match = LEXEME.match(text, place)
        if not match:
            raise ValueError("No closing quotation")
        place = match.end()
        if match.lastgroup == "word":
            words.append(match[0])
        elif match.lastgroup == "end" and words and not _goes_on(words, match[0]):
            yield words
            words = []
    if words:
        yield words


def _goes_on(words: list[str], end: str) -> bool:
    """Whether a command goes on in the next line: an array is open, or a flag has no value yet."""
    if end.strip("\n"):
        return False
    opened = any(ARRAY.match(word) for word in words) and _length_of_array(words) > len(words)
    return opened or bool(UNFINISHED.fullmatch(words[-1]))


def _length_of_array(words: list[str]) -> int:
    """How many of the words the array has that they begin with; one more if it does not end."""
    first = next(i for i, word in enumerate(words) if ARRAY.match(word))
    depth = 0
    for i, word in enumerate(words[first:], first):
        depth += word.count("(") - word.count(")")
        if depth <= 0:
            return i + 1
    return len(words) + 1


def _unbracketed(words: list[str]) -> list[str]:
    """The words without a prompt, a shell's leading words, and the brackets of a subshell."""
    while words and (words[0] in LEADING or re.match(r"\([-A-Za-z$]", words[0])):
        words = [words[0][1:], *words[1:]] if len(words[0]) > 1 and words[0][0] == "(" else words[1:]
    if words and not ARRAY.match(words[0]) and words[-1].count(")") > words[-1].count("("):
        words = [*words[:-1], words[-1].removesuffix(")")]
    return [word for word in words if word]


def _command(words: list[str]) -> _Command | None:
    """The program of a command, which is not what starts it (`mpiexec -n 8 python`), and the words behind it;
    None: there are no flags and nothing is started."""
    start = next((i for i, word in enumerate(words) if INTERPRETER.fullmatch(word)), None)
    if start is None:
        if not any(_has_flag(word) or word.startswith("$") for word in words):
            return None
        return _Command("", words) if _seems_flag(words[0]) else _Command(_program(words), words[1:])
    for i, word in enumerate(words[start + 1 :], start + 1):
        module = word in ("-m", "--module") and i + 1 < len(words) and not LAUNCHING.fullmatch(words[i + 1])
        if word.endswith(".py") or module:
            return _Command(_program(words[i + module :]), words[i + 1 + module :])
    return _Command(_program(words[start:]), words[start + 1 :])


def _program(words: list[str]) -> str:
    """The name of a program without its folder; the script's of `$PYTHON a.py` and `bash a.sh`."""
    leading = list(itertools.takewhile(lambda word: not _seems_flag(word), words))
    script = next((word for word in leading if word.endswith((".py", ".sh"))), words[0])
    return script.rpartition("/")[2] or "/"


def _seems_flag(word: str) -> bool:
    return bool(DASHED.match(word))


def _has_flag(word: str) -> bool:
    return _seems_flag(word) or bool(HELD.search(word))


def _flags(words: list[str], where: str) -> Iterator[tuple[str, str]]:
    """Name and value of each flag among a program's arguments."""
    value_of = None
    for word in words:
        if value_of is not None:
            if _seems_flag(word):
                break
            _check_value(value_of, word, where)
            yield value_of, word
            value_of = None
            continue
        match = FLAG.fullmatch(word)
        if not match:
            _check_value("", word, where)
        if not match and ASSIGNED.fullmatch(word):
            raise ConfigError(f"{where}: {shorten(word)} is no flag; write --name value")
        if not match and word.startswith("$") and len(word) > 1:
            raise ConfigError(
                f"{where} uses {shorten(word)[1:-1]}, which it does not define; write what it stands for, or "
                "take it out"
            )
        if match and match[2] is None:
            value_of = match[1].replace("-", "_")
        elif match:
            _check_value(match[1].replace("-", "_"), match[2], where)
            yield match[1].replace("-", "_"), match[2]
    if value_of is not None:
        raise ConfigError(f"{where}: --{shorten(value_of)[1:-1]} has no value; write --name value")


def _check_value(name: str, value: str, where: str) -> None:
    """Refuses a word that holds a flag, also as a value: `bash -c "python train.py --lr 1"`."""
    if HELD.search(value) and not ignored(name):
        raise ConfigError(f"{where}: {shorten(value)} holds a flag, but is none; write --name value")


def _plain(value: str) -> str:
    """A flag's value without what makes no difference."""
    return value.lower().rstrip(",")


def _unquoted(word: str) -> str:
    """A word without its quotes; ends of lines behind a backslash within them are gaps."""
    return "".join(shlex.split(re.sub(r"\\[ \t\r]*\n", " ", word)))
