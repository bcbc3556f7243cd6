"""The command: its lists, its help, and that its options become the launchers' flags."""

import ast
import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
from absl import flags
from click.testing import CliRunner
from rich.console import Console

from mechdiff.cli import completion, launchers, main, options
from mechdiff.models import shipped


@pytest.fixture
def invoke():
    runner = CliRunner()
    return lambda *words: runner.invoke(main.commands, words, prog_name="mechdiff")


def test_the_help_lists_every_launcher_of_the_checkout(invoke):
    done = invoke()
    assert done.exit_code == 0
    files = {path.stem for path in launchers.home().glob("[a-z]*.py")}
    listed = [launcher.module for launcher in launchers.all_launchers()]
    assert set(listed) == files and len(listed) == len(files)
    assert all(f"  {launcher.command} " in done.output for launcher in launchers.all_launchers())


def test_summaries_are_whole_sentences():
    for launcher in launchers.all_launchers():
        assert launcher.summary.endswith(".") and "`" not in launcher.summary and len(launcher.summary) > 15


def test_help_names_launchers_as_subcommands():
    text = "`python -m experiments.sweep_scaling --x` or experiments.sweep; experiments.examples.probe"
    expected = "`mechdiff sweep-scaling --x` or mechdiff sweep; experiments.examples.probe"
    assert main._as_subcommands(text) == f"\b\n{expected}"


def test_settings_are_filtered_and_machine_readable(invoke):
    rows = json.loads(invoke("settings", "label_dropout", "--preset=tiny", "--json").output)
    assert [row["name"] for row in rows] == ["train.label_dropout"] and rows[0]["default"] == "0.1"
    assert "label_dropout" in invoke("settings", "label_dropout").output
    refused = invoke("settings", "nonsense")
    assert refused.exit_code == 2 and "no setting's name or meaning holds 'nonsense'" in refused.output


def test_models_are_those_shipped(invoke):
    rows = json.loads(invoke("models", "--json").output)
    assert [row["name"] for row in rows] == list(shipped.names())
    (row,) = [row for row in rows if row["name"] == "cpu32-celeba-seed0"]
    assert row["size"] == 32 and row["data"] == "celeba"


def test_names_stay_whole_in_a_terminal_of_80_columns(invoke, monkeypatch):
    monkeypatch.setattr(main, "Console", lambda **look: Console(**look | {"width": 80}))
    assert all(f" {name} " in invoke("models").output for name in shipped.names())


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_both_shells(invoke, shell, monkeypatch):
    monkeypatch.setattr(click.shell_completion.BashComplete, "_check_version", staticmethod(lambda: None))
    assert "_MECHDIFF_COMPLETE" in invoke("completion", shell).output


def test_names_are_completed_without_importing_a_launcher(monkeypatch):
    """Two launchers in one process would define the same flags twice, which is an error."""
    monkeypatch.setattr(launchers, "load", None)
    complete = click.shell_completion.get_completion_class("zsh")(main.commands, {}, "mechdiff", "_X")
    offered = {item.value: item.help for item in complete.get_completions([], "sweep_s")}
    assert set(offered) == {"sweep-sequential", "sweep-sampling", "sweep-scaling"}
    assert all(told.endswith(".") for told in offered.values())
    assert [item.value for item in complete.get_completions([], "sett")] == ["settings"]


@pytest.mark.parametrize(
    ("words", "offered"), [("sweep-pa", "sweep-patterns"), ("sweep cpu32-c", "cpu32-celeba-seed0")]
)
def test_names_are_completed_without_jax(words, offered):
    told = "import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); "
    code = told + "from mechdiff.cli import main; main.main()"
    typed = {"_MECHDIFF_COMPLETE": "bash_complete", "COMP_WORDS": f"mechdiff {words}"}
    typed["COMP_CWORD"] = str(len(words.split()))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | typed, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"plain,{offered}", "False"]


def test_flags_are_read_from_a_source_as_far_as_they_are_written_there(tmp_path):
    source, shared = tmp_path / "launcher.py", tmp_path / "_flags.py"
    shared.write_text('HELP = "A folder."')
    source.write_text(
        "A = flags.DEFINE_string('images', None, _flags.HELP, required=True)\n"
        "flags.DEFINE_enum('steps', None, ('all',), 'Which.')\n"
        "flags.DEFINE_enum('point', 'identity', audits.EXPANSIONS, 'Where.')\n"
        "flags.DEFINE_boolean('matched', True, f'Hold {it}.')\n"
    )
    images, steps, point, matched = options.parameters(completion.declared(source, shared), [])[:4]
    assert (images.opts, images.help) == (["--images"], "A folder.")
    assert list(steps.type.choices) == ["all"] and point.type is click.STRING
    assert matched.secondary_opts == ["--no-matched"]


def test_every_launcher_returns_what_json_shows():
    for launcher in launchers.all_launchers():
        tree = ast.parse((launchers.home() / f"{launcher.module}.py").read_text("utf-8"))
        (main_of,) = [node for node in tree.body if getattr(node, "name", "") == "main"]
        assert isinstance(main_of.body[-1], ast.Return) and isinstance(main_of.body[-1].value, ast.Dict)


def own_flags():
    values = flags.FlagValues()
    flags.DEFINE_multi_string("model", None, "Models.", flag_values=values)
    flags.DEFINE_boolean("every_level", False, "At every one.", flag_values=values)
    flags.DEFINE_boolean("matched", True, "Hold the norm.", flag_values=values)
    flags.DEFINE_enum("ranking", "exact", ["exact", "gradient"], "How.", flag_values=values)
    flags.DEFINE_integer("randoms", 40, "How many.", flag_values=values)
    return [values[name] for name in ("model", "every_level", "matched", "ranking", "randoms")]


@pytest.fixture
def translate():
    """`translate(*words)` gives the flags that a subcommand's words become."""
    own, made = own_flags(), []
    command = click.Command("circuits", params=options.parameters(own, []), context_settings=main.CONTEXT)
    command.needed = {"model"}
    command.callback = lambda **_: made.append(options.to_flags(click.get_current_context(), own, []))

    def call(*words):
        done = CliRunner().invoke(command, words)
        return SimpleNamespace(words=made[-1] if made else None, output=done.output, code=done.exit_code)

    return call


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        (["a", "b"], ["--model=a", "--model=b"]),
        (["--model=a", "-n", "16"], ["--set=sweep.images=16", "--model=a"]),
        (["a", "--every-level"], ["--model=a", "--every_level"]),
        (["a", "--every_level", "--no-matched"], ["--model=a", "--every_level", "--nomatched"]),
        (["a", "--ranking=gradient", "--randoms", "50"], ["--model=a", "--ranking=gradient", "--randoms=50"]),
        (["a", "--seed=3"], ["--set=seed=3", "--model=a"]),
    ],
)
def test_options_become_flags(translate, typed, becomes):
    assert translate(*typed).words == becomes


@pytest.mark.parametrize(
    ("names", "offered"), [(["model"], 4), (["before", "after"], 4), (["model", "to"], 1)]
)
def test_launchers_that_examine_models_take_settings_of_sweeps_as_options(names, offered):
    shorts = options.shortcuts([SimpleNamespace(name=name) for name in names])
    assert len(shorts) == offered and ("-n" in shorts[0].names) == (offered > 1)


@pytest.mark.parametrize(("name", "required"), [("before", True), ("model", True), ("after", False)])
def test_steps_of_one_training_are_compared_without_a_second_model(name, required):
    # Only what a launcher always needs: running one here would leave its flags in this process.
    assert main._required(SimpleNamespace(name=name, default=None)) == required


def test_a_mistyped_subcommand_is_answered_with_the_closest(invoke):
    refused = invoke("swep", "x")
    assert refused.exit_code == 2 and "No such command 'swep'; did you mean mechdiff sweep" in refused.output
    assert "did you mean" not in invoke("zzz").output
    with pytest.raises(click.MissingParameter) as missing:
        main.commands.main(["completion"], standalone_mode=False)
    assert main._one_line(missing.value).startswith("Missing argument '{bash|zsh}'. Choose from: bash, zsh;")
    done = subprocess.run([sys.executable, "-m", "mechdiff", "zzz"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: No such command 'zzz'; see mechdiff --help\n")


@pytest.mark.parametrize("names", [["images"], ["to"]])
def test_a_word_too_many_is_answered_with_the_flag_of_images(names):
    command = object.__new__(main.LauncherCommand)  # no launcher is imported
    click.Command.__init__(command, "sweep", params=[click.Option([f"--{name}"]) for name in names])
    with pytest.raises(click.UsageError, match="unexpected extra argument") as refused:
        command.main(["faces/"], standalone_mode=False)
    assert ("--images=FOLDER" in refused.value.message) == (names == ["images"])


@pytest.mark.parametrize("words", [["-n=16"], ["-n16"], ["-n", "16"]])
def test_a_short_option_takes_an_equals_sign_too(words):
    command = object.__new__(main.LauncherCommand)  # no launcher is imported
    click.Command.__init__(command, "sweep", params=[click.Option(["-n"])], callback=lambda n: n)
    assert command.main(words, standalone_mode=False) == "16"


def test_help_says_what_settings_are_where_nothing_is_typed(translate):
    words = " ".join(translate("--help").output.split())
    assert (
        "-n N Images scored at every timestep. [--set=sweep.images; default: the preset's, in quickstart 32]"
        in words
    )
    assert (
        "repeat this option" not in words and "[default: ]" not in words and "<exact|gradient>" not in words
    )
    assert "How. [default: exact]" in words


def test_what_is_missing_or_no_choice_is_refused(translate):
    assert translate().code == 2 and "MODEL is missing" in translate("--randoms=3").output
    assert "'best' is not one of 'exact', 'gradient'" in translate("a", "--ranking=best").output


def test_what_is_given_with_its_name_and_without_is_refused(translate):
    refused = translate("--model=a", "b", "c")
    assert refused.code == 2 and "MODEL is given twice: b c, and --model=a; leave one" in refused.output


def test_help_names_defaults_and_choices(translate):
    text = translate("--help").output
    assert "[default: 40]" in text and "[exact|gradient]" in text and "MODEL..." in text
    assert "[default: exact]" in text and "-n" in text


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sweep", "--preset", "=", "ti"], ["tiny"]),
        (["sweep", "--preset", "="], ["tiny", "cpu16"]),
        (["sweep", "--set", "=", "sweep.image"], ["sweep.images=", "sweep.image_block="]),
        (["sweep", "--set", "=", "data.name", "=", "fo"], ["folder"]),
        (["sweep", "--model", "=", "cpu32-c"], ["cpu32-celeba-seed0"]),
        (["sweep", "--seed", "=", "3", "--imag"], ["--images"]),
    ],
)
def test_a_word_that_bash_has_split_is_completed(typed, offered, monkeypatch):
    flag = SimpleNamespace(default=None, help="", flag_type=lambda: "string")
    flags_of = [
        SimpleNamespace(**vars(flag) | {"name": name})
        for name in ("model", "images", "preset", "set", "seed")
    ]
    command = click.Command("sweep", params=[options._option(each) for each in flags_of])
    monkeypatch.setenv("COMP_WORDS", " ".join(["mechdiff", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    group = click.Group(commands={"sweep": command})
    items = completion.Bash(group, {}, "mechdiff", "_X").complete().splitlines()
    assert [item.removeprefix("plain,") for item in items][: len(offered)] == offered


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_keeps_what_stands_before_the_value(tmp_path):
    """Tab is pressed in a real shell without `compinit`; a script stands for the command, offers `tiny`."""
    stand_in = tmp_path / "mechdiff"
    stand_in.write_text("#!/bin/sh\n[ $1 ] && echo got $1 || printf 'plain\\ntiny\\n_\\n'\n")
    stand_in.chmod(0o755)
    script = tmp_path / "completion"
    script.write_text(completion.Zsh(main.commands, {}, "mechdiff", "_X").source())
    keys = f"PATH={tmp_path}:$PATH; ZDOTDIR={tmp_path}; source {script}\nmechdiff --preset=ti\t\nexit\n"
    terminal, inside = pty.openpty()  # no `pty.fork`: JAX, which other tests have started, warns of it
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), inside)
    shell = subprocess.Popen(["zsh", "-f", "-i"], start_new_session=True, **streams)
    os.close(inside)
    os.write(terminal, keys.encode())
    shown = b""
    with contextlib.suppress(OSError):  # raised at the end of the terminal
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    shell.wait()
    assert b"got --preset=tiny" in shown
