"""Completion in bash and zsh: click's own, mended for words that hold "=", as `--set=NAME=VALUE`.

Bash gives such a word in pieces; zsh gives it whole, and would replace it by its value alone. In both the
value that is offered is what follows the last "=". Options are read from a launcher's source, since importing
it takes more than a second; where that offers nothing, the launcher itself is asked.
"""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from mechdiff.cli import settings

COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"  # a bare .zshrc lacks it
PLACED = """    local -a placed=(-i "$IPREFIX")
    [[ $completions[1] == *= ]] && placed+=(-S "")
"""


DEFINE = "flags.DEFINE_"
IMPORTED = "imported"  # object of the context in which subcommands are those that run


class _TwoTries(ShellComplete):
    """Asks the launchers themselves where their sources offer nothing, as for choices named elsewhere."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What is offered for the word under the cursor."""
        items = super().get_completions(args, incomplete)
        if items or (incomplete.startswith("-") and "=" not in incomplete):
            return items
        self.ctx_args = {**self.ctx_args, "obj": IMPORTED}
        return super().get_completions(args, incomplete)


class Bash(_TwoTries, BashComplete):
    """Joins what bash has split, and leaves no space after an assignment that waits for its value."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one under it."""
        args, incomplete = super().get_completion_args()
        words = joined([*args, incomplete] if incomplete else args)
        return (words[:-1], words[-1]) if incomplete else (words, "")

    def source(self) -> str:
        """The script."""
        last = "    return 0\n"
        return super().source().replace(last, f"    [[ $COMPREPLY == *= ]] && compopt -o nospace\n{last}")


class Zsh(_TwoTries, ZshComplete):
    """Keeps what stands before "=", and works without `compinit` in .zshrc."""

    def source(self) -> str:
        """The script."""
        first, last = "    local -a completions\n", '    if [ -n "$completions" ]; then\n'
        script = super().source().replace(first, f"    compset -P '*='\n{first}")
        script = script.replace(last, PLACED + last).replace("compadd -U", 'compadd -U "${placed[@]}"')
        return COMPINIT + script


SHELLS = {"bash": Bash, "zsh": Zsh}


def register() -> None:
    """Tells click which classes answer a shell."""
    for shell in SHELLS.values():
        add_completion_class(shell)


@dataclasses.dataclass(frozen=True)
class WrittenFlag:
    """A flag as a launcher's source defines it, with what `options` asks of one of absl.

    Attributes:
      kind: in absl's words, such as `bool`, `enum` or `multi_string`.
      default: of booleans; None otherwise.
      enum_values: choices.
    """

    name: str
    kind: str
    help: str = ""
    default: bool | None = None
    enum_values: tuple[str, ...] = ()

    def flag_type(self) -> str:
        """Its kind."""
        return self.kind

    @property
    def default_as_str(self) -> str:
        """For help, which completion does not show."""
        return str(self.default).lower()

    @property
    def parser(self) -> "WrittenFlag":
        """What has `enum_values`."""
        return self


def declared(source: Path, shared: Path) -> list[WrittenFlag]:
    """The flags that a launcher's source defines, without running it: as far as they are written there.

    Args:
      shared: the source of what launchers share, whose constants are read too.
    """
    texts = {
        node.targets[0].id: _literal(node.value)
        for node in ast.parse(shared.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    calls = (node for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.Call))
    return [_flag(call, texts) for call in calls if ast.unparse(call.func).startswith(DEFINE)]


def _flag(call: ast.Call, texts: dict[str, Any]) -> WrittenFlag:
    kind = ast.unparse(call.func).removeprefix(DEFINE)
    name, default, *others = map(_literal, call.args)
    last = call.args[-1]
    told = texts.get(last.attr) if isinstance(last, ast.Attribute) else _literal(last)
    flag = WrittenFlag(name, kind, str(told or ""))
    if kind.startswith("bool"):
        return dataclasses.replace(flag, kind="bool", default=default)
    if kind == "enum":  # without choices it is a string, and the launcher is asked
        return dataclasses.replace(flag, kind="enum" if others[0] else "string", enum_values=others[0] or ())
    return flag


def _literal(node: ast.expr) -> Any:
    """Its value, if it is written out; else None."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def joined(words: list[str]) -> list[str]:
    """Words that bash has split at "=", whole again.

    Example:
      >>> joined(["sweep", "--set", "=", "seed", "=", "3", "-n"])
      ['sweep', '--set=seed=3', '-n']
    """
    whole: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        if whole and "=" in (word, before):
            whole[-1] += word
        else:
            whole.append(word)
    return whole


def assignments(_context: click.Context, _option: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of settings, and behind "=" the choices of one; of type `plain`, without a space behind "="."""
    name, assigned, value = typed.partition("=")
    rows = settings.all_settings()
    if not assigned:
        return [CompletionItem(f"{row.name}=") for row in rows if row.name.startswith(name)]
    types = [row.type for row in rows if row.name == name]
    choices = [choice.strip() for shown in types if "|" in shown for choice in shown.split("|")]
    return [CompletionItem(choice) for choice in choices if choice and choice.startswith(value)]
