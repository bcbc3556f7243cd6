"""`mechdiff`: every launcher as a subcommand, and lists of what there is. Needs no JAX for its own help."""

import difflib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.table import Table

import mechdiff
from mechdiff.cli import completion, hints, launchers, options, output, settings
from mechdiff.core.errors import MechdiffError
from mechdiff.core.presets import PRESETS
from mechdiff.models import shipped
from mechdiff.storage import files

PROGRAM = "mechdiff"


def _dashed(word: str) -> str:
    """Underscores, as launchers' own flags have them, are as good as dashes."""
    return word.replace("_", "-")


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "token_normalize_func": _dashed}


class LauncherCommand(click.Command):
    """A launcher as a subcommand: its flags become options when it is chosen."""

    def __init__(self, launcher: launchers.Launcher):
        module = launchers.load(launcher.module)
        flags, shell = (sys.modules[f"{module.__package__}.{name}"] for name in ("_flags", "_launch"))
        self.own, self.common = flags.of(module), flags.common()
        self.needed = {flag.name for flag in self.own if flag.name in options.POSITIONAL and _required(flag)}
        super().__init__(
            launcher.command,
            context_settings=CONTEXT,
            callback=self._launch,
            params=options.parameters(self.own, self.common, getattr(module, "idle", ())),
            help=_as_subcommands(module.__doc__ or ""),
            short_help=launcher.summary,
        )
        self.module, self.shell = module, shell

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but `-n=16` is `-n 16`, and an unknown option is answered with the closest option or
        setting."""
        args = [re.sub("^(-[a-z])=", r"\1", word) for word in args]
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            own = [name for option in self.params for name in option.opts if name.startswith("--")]
            meant = hints.meant(error.option_name, _value_of(error.option_name, typed), own)
            if meant:
                raise click.UsageError(
                    f"No such option {error.option_name}; did you mean {meant}", ctx
                ) from None
            raise
        except click.UsageError as error:
            takes_images = any(option.name == "images" for option in self.params)
            if not takes_images or "unexpected extra argument" not in error.message:
                raise
            raise click.UsageError(f"{error.message}; images are given by --images=FOLDER", ctx) from None

    def _launch(self, **_: Any) -> None:
        flags = options.to_flags(click.get_current_context(), self.own, self.common)
        if hasattr(self.module, "prepare"):  # may start the process again, before any work
            self.module.prepare()
        sys.exit(self.shell.end(self.shell.launch(self.module.main, [f"{PROGRAM} {self.name}", *flags])))


class Commands(click.Group):
    """Subcommands that are imported when they are chosen, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Launchers by room, then the lists."""
        return [launcher.command for launcher in launchers.all_launchers()] + list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A launcher, by its short or its long name, or one of the lists."""
        wanted = _dashed(cmd_name)
        for launcher in launchers.all_launchers():
            if wanted in (launcher.command, _dashed(launcher.module)):
                completes = ctx.resilient_parsing and ctx.obj != completion.IMPORTED
                return _to_complete(launcher) if completes else LauncherCommand(launcher)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, but an unknown name is answered with the closest ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(_dashed(args[0]), self.list_commands(ctx), n=1)
            if not near:
                raise
            message = f"{error.message.removesuffix('.')}; did you mean {PROGRAM} {near[0]}"
            raise click.UsageError(message, ctx) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names that go on as typed; no launcher is imported for it, since flags of two would collide."""
        offered = {launcher.command: launcher.summary for launcher in launchers.all_launchers()}
        offered |= {name: command.get_short_help_str() for name, command in self.commands.items()}
        typed = _dashed(incomplete)
        items = [
            CompletionItem(name, help=summary) for name, summary in offered.items() if name.startswith(typed)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, by room."""
        rooms: dict[str, list[tuple[str, str]]] = {}
        for launcher in launchers.all_launchers():
            rooms.setdefault(launcher.room, []).append((launcher.command, launcher.summary))
        for room, rows in rooms.items():
            with formatter.section(room.capitalize()):
                formatter.write_dl(rows)
        with formatter.section("Lists"):
            formatter.write_dl(
                [(name, command.get_short_help_str(100)) for name, command in self.commands.items()]
            )


def _to_complete(launcher: launchers.Launcher) -> click.Command:
    """A subcommand of which only the options are known, without importing its launcher."""
    shared = launchers.home() / "_flags.py"
    own, common = (
        completion.declared(source, shared) for source in (launchers.home() / f"{launcher.module}.py", shared)
    )
    return click.Command(launcher.command, params=options.parameters(own, common), context_settings=CONTEXT)


@click.group(cls=Commands, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(mechdiff.__version__, prog_name=PROGRAM)
@click.pass_context
def commands(context: click.Context) -> None:
    """Which components of a diffusion denoiser do what, at which noise level, and with which certainty?

    \b
    mechdiff sweep cpu32-celeba-seed0 -n 16       what does each component cost?
    mechdiff reproduce                            two shipped networks, one report
    mechdiff sweep --help                         options of a subcommand
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command("settings")
@click.argument("pattern", default="")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="quickstart", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_settings(pattern: str, preset: str, as_json: bool) -> None:
    """Every setting of --set=NAME=VALUE: type, value in a preset, meaning; those that hold PATTERN."""
    rows = [row for row in settings.all_settings(preset) if pattern in f"{row.name} {row.meaning}"]
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows], indent=1))
        return
    if not rows:
        raise click.UsageError(f"no setting's name or meaning holds {pattern!r}; `mechdiff settings` has all")
    header = ("setting", "type", f"in {preset}", "meaning")
    _print(header, [(row.name, row.type, row.default, row.meaning) for row in rows])


@commands.command("models")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_models(as_json: bool) -> None:
    """Shipped networks, which a name stands for wherever a model is wanted."""
    rows = [_card(name) for name in shipped.names()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    _print(("model", "image size", "trained on", "steps x batch"), [tuple(row.values()) for row in rows])


@commands.command("completion")
@click.argument("shell", type=click.Choice(list(completion.SHELLS)))
def print_completion(shell: str) -> None:
    """The script of completion: `eval "$(mechdiff completion bash)"` in ~/.bashrc switches it on."""
    script = completion.SHELLS[shell](commands, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
    click.echo(script.source())


def main() -> None:
    """The console script."""
    output.begin()
    completion.register()
    try:
        commands.main(prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(output.end(stop.exit_code))
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        click.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(error.exit_code)
    except MechdiffError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(output.end(output.CLOSED_PIPE))
    except OSError as error:
        if (line := files.explain(error, "stdout")) is None:
            raise
        click.echo(f"error: {line}", err=True)
        sys.exit(output.end(2))
    sys.exit(output.end(0))


def _one_line(error: click.ClickException) -> str:
    """What is wrong and the way out; click itself prints how the command is used, in three lines more."""
    message, context = error.format_message().removesuffix("."), getattr(error, "ctx", None)
    message = " ".join(message.split())  # choices that are missing are listed in lines
    return message if ";" in message or context is None else f"{message}; see {context.command_path} --help"


def _print(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, no_wrap=i == 0, overflow="fold")  # a name is typed: it stays whole
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    console.print(table)


def _card(name: str) -> dict[str, Any]:
    saved = files.read_json(shipped.folder(name) / "config.json")
    data, train = saved["data"], saved["train"]
    rung = data.get("complexity", data.get("level"))
    images = f"synthetic faces, complexity {rung}" if data["name"] == "synthetic" else data["name"]
    size = saved["unet"]["image_size"]
    return {"name": name, "size": size, "data": images, "training": f"{train['steps']} x {train['batch']}"}


def _required(flag: Any) -> bool:
    return flag.default in (None, []) and flag.name not in options.OPTIONAL


def _value_of(option: str, args: list[str]) -> str | None:
    for i, argument in enumerate(args):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and i + 1 < len(args) and not args[i + 1].startswith("-"):
            return args[i + 1]
    return None


def _as_subcommands(text: str) -> str:
    """A launcher's docstring with launchers as `mechdiff` takes them; line breaks stay."""
    commands = {launcher.module: launcher.command for launcher in launchers.all_launchers()}

    def subcommand(found: re.Match) -> str:
        return f"{PROGRAM} {commands[found[1]]}" if found[1] in commands else found[0]

    text = re.sub(r"(?:python -m )?\bexperiments\.(\w+)", subcommand, text)
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.strip().split("\n\n"))
