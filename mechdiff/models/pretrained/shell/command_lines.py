r"""Command lines pasted as text: the flags of the program that they start.

Of a shell only that is understood which decides where a program's flags are: quotes, comments, continued
lines (`words`), variables and arrays (`variables`). What a shell would take from outside of the
text is asked for.

    >>> for text in (
    ...     "python train.py --num_heads 2 --lr=1e-4  # as run",
    ...     "mpiexec -n 8 python -m pkg.train \\\n  --num_heads 2 > log.txt",
    ...     "M='--num_heads 2'; L=(--lr 1)\npython train.py $M \"${L[@]}\"",
    ...     "OLD='--num_heads 4'; NEW='--num_heads 2'\npython train.py $NEW",
    ...     "python classifier_train.py --lr 2\npython train.py --num_heads 2",
    ... ):
    ...     print(read_text(text).flags)
    {'num_heads': '2', 'lr': '1e-4'}
    {'num_heads': '2'}
    {'num_heads': '2', 'lr': '1'}
    {'num_heads': '2'}
    {'num_heads': '2'}
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable

from mechdiff.core.errors import ConfigError, DataError, shorten
from mechdiff.models.pretrained.adm.options import UNTOLD, at_default, ignored
from mechdiff.models.pretrained.shell.flag_words import flags_among, has_flag, seems_flag
from mechdiff.models.pretrained.shell.variables import Expanded, Scope, expanded
from mechdiff.models.pretrained.shell.words import commands as shell_commands

# Undefined variables that by their names, those of the programs' READMEs, hold nothing of the network.
OF_OTHERS = re.compile(r"\$\{?(CLASSIFIER|EVAL|SAMPL(E|ER|ING)|TRAIN(ING)?)_(ARGS|FLAGS|OPTIONS)\}?")
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
        are commands, a word that holds a flag but is none, or may hold options (`a.yaml`, `steps=4000`), a
        variable that is not in the text (unless it is by name of sampling, training or a classifier) or may
        be set to something else by a condition, a loop or another file, or no flag at all.
    """
    try:
        done, scope = expanded(shell_commands(text), where)
    except ValueError as error:
        raise DataError(f"{where}: not a command line ({error})") from None
    started = [command for each in done if (command := _command(each, where))]
    commands, notes = _of_network(started, where)
    taken, left_out = _unused(scope, started, commands)
    if left_out:
        names = ", ".join(f"${name}" for name in left_out)
        notes += (f"left out, as no command of {where} uses them: {names}",)
    parts = [*taken, *(command.arguments for command in commands)]
    undefined = (word for words in parts for word in words if OF_OTHERS.fullmatch(word))
    if others := list(dict.fromkeys(word for word in undefined if word.strip("${}") not in scope.changed)):
        notes += (f"not defined in {where}, and by name not of the network: {', '.join(others)}",)
        parts = [[word for word in words if word not in others] for words in parts]
    by_command = [list(flags_among(words, where)) for words in parts]
    flags = _merged([flag for each in by_command for flag in each], where)
    _check_defaults(commands, [dict(each) for each in by_command[len(taken) :]], where)
    return Pasted(flags, bool(commands), notes)


def _merged(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Flags by name; ConfigError where there are none, or two of one name that differ and have a bearing."""
    flags: dict[str, str] = {}
    for name, value in pairs:
        if _plain(flags.get(name, value)) != _plain(value) and name != "dropout" and not ignored(name):
            raise ConfigError(
                f"{where} sets --{name} twice, to {shorten(flags[name])} and {shorten(value)}; keep the "
                "command by which the network was trained"
            )
        flags[name] = value
    if not flags:
        raise ConfigError(
            f"{where}: no flags; paste the command line, --name value ..., or call a file of lines name: "
            "value config.yaml"
        )
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
    sources: frozenset[str]


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
        commands = [_Command("", words, frozenset().union(*(command.sources for command in bare)))]
    own = [command for command in commands if not OF_CLASSIFIER.fullmatch(command.program)]
    own = [command for command in own if not OF_ENLARGING.fullmatch(command.program)] or own
    names = dict.fromkeys(shorten(command.program)[1:-1] for command in commands if command not in own)
    return own, (f"by name not of the network, so passed over: {', '.join(names)}",) if names else ()


def _check_defaults(commands: list[_Command], by_command: list[dict[str, str]], where: str) -> None:
    """Refuses a flag that decides numbers and is in some of the network's commands alone: in the others it
    has its default, which is another value."""
    of_network = [
        flags
        for command, flags in zip(commands, by_command, strict=True)
        if OF_NETWORK.fullmatch(command.program) or not all(map(ignored, flags))
    ]
    for name, value in (flag for flags in of_network for flag in flags.items()):
        everywhere = all(name in flags for flags in of_network)
        if name in UNTOLD and not everywhere and not at_default(name, value):
            raise ConfigError(
                f"{where} sets --{name} to {shorten(value)} in one command, and another leaves it at its "
                "default; keep the command by which the network was trained"
            )


def _unused(
    scope: Scope, started: list[_Command], commands: list[_Command]
) -> tuple[list[list[str]], list[str]]:
    """Of the variables that hold flags and that no command was given: the words of those that are flags all
    the same, and the names of those that are left out.

    Args:
      commands: those of `started` that may be the network's.
    """
    passed = set().union(*(command.sources for command in started))
    unused = [each for each in scope.assigned if each.name not in passed and any(map(has_flag, each.words))]
    uses = any(command.sources for command in commands)
    flagged = any(seems_flag(word) for command in commands for word in command.arguments)
    out = [each for each in unused if uses or (flagged and each.exported)]
    taken = [each for each in unused if each not in out]
    for each in taken:
        if each.name in scope.changed:
            raise ConfigError(
                f"{scope.where} sets ${each.name} on a condition, in a loop or by another file; keep what "
                "the network was trained with"
            )
    return [list(each.words) for each in taken], list(dict.fromkeys(each.name for each in out))


def _command(done: Expanded, where: str) -> _Command | None:
    """The program of a command, which is not what starts it (`mpiexec -n 8 python`), and the words behind it;
    None: there are no flags and nothing is started. ConfigError where `xargs` starts it, with more words."""
    words, sources = done.words, done.sources
    start = next((i for i, word in enumerate(words) if INTERPRETER.fullmatch(word)), None)
    if start is None:
        if not any(has_flag(word) or word.startswith("$") for word in words):
            return None
        bare = seems_flag(words[0])
        return _Command("", words, sources) if bare else _Command(_program(words), words[1:], sources)
    if "xargs" in words[:start]:
        raise ConfigError(f"{where} gives a program more words by xargs; write them in its command")
    for i, word in enumerate(words[start + 1 :], start + 1):
        module = word in ("-m", "--module") and i + 1 < len(words) and not LAUNCHING.fullmatch(words[i + 1])
        if word.endswith(".py") or module:
            return _Command(_program(words[i + module :]), words[i + 1 + module :], sources)
    return _Command(_program(words[start:]), words[start + 1 :], sources)


def _program(words: list[str]) -> str:
    """The name of a program without its folder; the script's of `$PYTHON a.py` and `bash a.sh`."""
    leading = list(itertools.takewhile(lambda word: not seems_flag(word), words))
    script = next((word for word in leading if word.endswith((".py", ".sh"))), words[0])
    return script.rpartition("/")[2] or "/"


def _plain(value: str) -> str:
    """A flag's value without what makes no difference."""
    return value.lower().rstrip(",")
