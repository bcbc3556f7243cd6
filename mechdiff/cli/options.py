"""Options of a subcommand, made of the flags of its launcher, and the way back to these flags."""

import dataclasses
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from mechdiff.cli import completion, settings
from mechdiff.core.presets import PRESETS
from mechdiff.models import shipped

# Flags that may be given without their names, in this order.
POSITIONAL = {"model": "MODEL", "from": "FOLDER", "before": "BEFORE", "after": "AFTER"}
OPTIONAL = ("after",)  # the launcher says when it is missing: steps of one training are compared without
QUOTE = "'"
REPEATED = ";\n    repeat this option to specify a list of values"  # absl adds it to what says so already
PATHS = (
    "images",
    "celeba",
    "conditions",
    "from",
    "to",
    "examined",
    "workdir",
    "log_file",
    "compilation_cache",
)
# Common flags that have no effect beside certain flags of a launcher, and so are taken but not shown.
OF_IMAGES = ("classes", "conditions")
OF_RUNS = ("workdir", "distributed", "coordinator", "processes", "process_id", "join_timeout")
RARE = ("compilation_cache", "distributed", "coordinator", "processes", "process_id")


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """An option that stands for a setting: `-n 16` is `--set=sweep.images=16`."""

    names: tuple[str, ...]
    setting: str
    help: str
    metavar: str = "N"

    @property
    def key(self) -> str:
        """Its name among the parameters."""
        return "shortcut_" + self.setting.replace(".", "_")


SEED = Shortcut(("--seed",), "seed", "Of the noise, and of training.")
SWEEPS = (
    Shortcut(("-n",), "sweep.images", "Images scored at every timestep."),
    Shortcut(("--timesteps",), "sweep.timesteps", "How many, even in log-SNR."),
    Shortcut(
        ("--ablations",), "sweep.ablations", "Of zero, mean, resample, noise, optimal; with commas.", "LIST"
    ),
)


def shortcuts(flags: Iterable[Any]) -> tuple[Shortcut, ...]:
    """The shortcuts of a launcher with these flags: settings of sweeps if it examines a model, or two."""
    names = {flag.name for flag in flags}
    examines = bool(names & {"model", "before"}) and "to" not in names
    offered = (*SWEEPS, SEED) if examines else (SEED,)
    return tuple(short for short in offered if short.names[-1].lstrip("-") not in names)


def parameters(
    flags: Sequence[Any], common: Sequence[Any], idle: Container[str] = ()
) -> list[click.Parameter]:
    """Arguments and options, those that the launcher alone has first.

    Args:
      flags, common: flags of absl.
      idle: settings without an effect in the launcher, whose shortcuts are not shown.
    """
    made: list[click.Parameter] = []
    named = {flag.name: flag for flag in flags}
    made += [_argument(named[name]) for name in POSITIONAL if name in named]
    made += [_option(flag) for flag in flags]
    made += [
        click.Option(
            [*short.names, short.key],
            help=_shortcut_help(short),
            metavar=short.metavar,
            hidden=short.setting in idle,
        )
        for short in shortcuts(flags)
    ]
    useless = (OF_RUNS if "to" in named else ()) + (() if "images" in named else OF_IMAGES)
    made += [
        _option(flag, flag.name in useless) for flag in sorted(common, key=lambda flag: flag.name in RARE)
    ]
    return made


def to_flags(context: click.Context, flags: Sequence[Any], common: Sequence[Any]) -> list[str]:
    """The typed options as flags of the launcher.

    Raises:
      click.UsageError: a required option is missing, or given both with and without its name.
    """
    values = {name: value for name, value in context.params.items() if _typed(context, name)}
    # Before --set, which is the more exact of the two and so has the last word.
    arguments = [
        f"--set={short.setting}={values[short.key]}" for short in shortcuts(flags) if short.key in values
    ]
    for flag in [*flags, *common]:
        value, unnamed = values.get(flag.name), values.get(f"argument_{flag.name}")
        if value is not None and unnamed is not None:
            both = f"{_shown(unnamed)}, and --{flag.name}={_shown(value)}; leave one of them out"
            raise click.UsageError(f"{POSITIONAL[flag.name]} is given twice: {both}", context)
        value = unnamed if value is None else value
        if value is None and flag.name in POSITIONAL and flag.name in context.command.needed:
            raise click.UsageError(f"{POSITIONAL[flag.name]} is missing", context)
        arguments += _arguments(flag.name, value)
    return arguments


def _shortcut_help(short: Shortcut) -> str:
    """Help of a shortcut: its meaning, its setting, and that setting's default."""
    (row,) = [row for row in settings.all_settings() if row.name == short.setting]
    return f"{short.help} [--set={short.setting}; default: the preset's, in quickstart {row.default}]"


def _typed(context: click.Context, name: str) -> bool:
    typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    return typed and context.params[name] not in (None, ())


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _arguments(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{'' if value else 'no'}{name}"]
    several = value if isinstance(value, tuple) else (value,)
    return [f"--{name}={item}" for item in several]


def _argument(flag: Any) -> click.Argument:
    several = flag.flag_type().startswith("multi")
    return click.Argument(
        [f"argument_{flag.name}"],
        metavar=f"{POSITIONAL[flag.name]}..." if several else POSITIONAL[flag.name],
        nargs=-1 if several else 1,
        required=False,
        type=click.Path(),
        shell_complete=None if flag.name == "from" else _models,
    )


def _models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list:
    """Shipped networks; where none fits, the shell's own files."""
    fitting = [name for name in shipped.names() if name.startswith(incomplete)]
    items = [click.shell_completion.CompletionItem(name) for name in fitting]
    return items or [click.shell_completion.CompletionItem(incomplete, type="file")]


def _option(flag: Any, hidden: bool = False) -> click.Option:
    kind, dashed = flag.flag_type(), flag.name.replace("_", "-")
    untold = flag.default in (None, [], False, "")
    shown = "" if untold else f" [default: {str(flag.default_as_str).strip(QUOTE)}]"
    help_text = flag.help.removesuffix(REPEATED)
    if "enum" in kind:
        help_text = re.sub(r"^<[^>]*>: ", "", help_text)  # absl's list of choices; click has its own
    look: dict[str, Any] = {"help": help_text + shown, "hidden": hidden or flag.name in POSITIONAL}
    if kind == "bool":
        spelled = f"--{dashed}/--no-{dashed}" if flag.default else f"--{dashed}"
        return click.Option([spelled, flag.name], is_flag=True, default=None, **look)
    if kind.startswith("multi"):
        look["multiple"] = True
    if flag.name == "preset":
        look["type"] = click.Choice(list(PRESETS))
    elif "enum" in kind:
        look["type"] = click.Choice(list(flag.parser.enum_values))
    else:
        look["type"] = click.Path() if flag.name in PATHS else None
        look["shell_complete"] = _models if flag.name in POSITIONAL and flag.name not in PATHS else None
        look["metavar"] = {"int": "N", "float": "NUMBER"}.get(kind, flag.name.upper())
    if flag.name == "set":
        look |= {"metavar": "SECTION.FIELD=VALUE", "shell_complete": completion.assignments}
    return click.Option([f"--{dashed}", flag.name], **look)
