"""Completion in bash and zsh: click's own, mended for words that hold "=", as `--set=NAME=VALUE`.

Bash gives such a word in pieces; zsh gives it whole, and would replace it by its value alone. In both the
value that is offered is what follows the last "=".
"""

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class

from mechdiff.cli import settings

COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"  # a bare .zshrc lacks it
PLACED = """    local -a placed=(-i "$IPREFIX")
    [[ $completions[1] == *= ]] && placed+=(-S "")
"""


class Bash(BashComplete):
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


class Zsh(ZshComplete):
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
