"""The shell of the launchers: exit codes, one line for every error, interruptions that say how to go on."""

import errno
import gc
import importlib
import json
import re
import signal
import subprocess
import sys
import time
import warnings
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from reference import launching

from experiments import _launch
from mechdiff.core.errors import MechdiffError

ROOT = Path(__file__).parents[2]
SCRIPT = '''"""Trains for ever."""

import time
import warnings

from absl import flags

from experiments import _launch

flags.DEFINE_integer("own", 1, "Of this launcher alone.")


def main(config, workdir):
    print(config.name, config.train.steps, workdir, flush=True)
    time.sleep(100)


if __name__ == "__main__":
    _launch.run(main)
'''


def test_a_card_too_small_is_one_line_with_the_way_out(launch, capsys, tmp_path):
    def main(config, workdir):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    assert launch(main, f"--workdir={tmp_path}") == 2
    begin = (
        "error: the memory of a device (cpu) is too small; lower sweep.image_block, lower sweep.chunk, let"
    )
    line = capsys.readouterr().err
    assert line.startswith(begin) and line.count("\n") == 1
    assert _launch._less_memory({"sweep.chunk"}).startswith("lower sweep.image_block, let no other")


def test_arrays_that_no_memory_holds_are_one_line_with_the_way_out(launch, capsys, tmp_path):
    def main(config, workdir):
        np.empty(2**58)

    assert launch(main, f"--workdir={tmp_path}") == 2
    line = r"error: the memory of this machine is too small: Unable to allocate .* take fewer images, .*"
    assert re.fullmatch(line, launching.only_line(capsys))


def test_json_on_stdout_holds_what_main_returns_and_nothing_else(launch, capsys, tmp_path):
    def main(config, workdir):
        print("a line for a reader")
        return {"folder": workdir, "top": [{"component": "mid.attn0.head1", "low": float("nan")}]}

    assert launch(main, "--json", f"--workdir={tmp_path}", f"--log_file={tmp_path}/log") == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed["result"] == {
        "folder": str(tmp_path),
        "top": [{"component": "mid.attn0.head1", "low": None}],
    }
    assert printed["written"] == [str(tmp_path / "log")]
    assert printed["workdir"] == str(tmp_path) and printed["command"].startswith("launcher --preset=tiny")
    assert err == "a line for a reader\n" and "a line for a reader" in (tmp_path / "log").read_text()


def test_errors_are_logged_and_shown_when_quiet(launch, capsys, tmp_path):
    def main(config, workdir):
        print("a line for a reader")
        raise MechdiffError("size=7 is odd")

    assert launch(main, "--quiet", f"--log_file={tmp_path}/log") == 2
    assert launching.only_line(capsys) == "error: size=7 is odd"
    assert (tmp_path / "log").read_text().splitlines()[1:] == ["a line for a reader", "error: size=7 is odd"]


def test_a_pipe_that_the_reader_closed_is_no_error(launch, capsys):
    assert launch(launching.raising(BrokenPipeError())) == 141
    assert capsys.readouterr() == ("", "")


def test_main_gets_the_preset_with_its_changes_and_a_folder_named_after_it(launch, capsys):
    seen = []
    flags = ["--set=train.steps=3", "--set=seed=7"]
    assert launch(lambda *arguments: seen.append(arguments), *flags) == 0
    ((config, workdir),) = seen
    assert (config.name, config.train.steps, config.seed, workdir) == ("tiny", 3, 7, Path("runs/tiny"))
    assert capsys.readouterr() == ("", "")


def test_the_default_preset_exists(launch):
    assert _launch.launch(lambda *_: None, ["launcher"]) == 0


def test_workdir_is_where_the_flag_says(launch, tmp_path):
    seen = []
    launch(lambda config, workdir: seen.append(workdir), f"--workdir={tmp_path}")
    assert seen == [tmp_path]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MechdiffError("size=7 is odd;\n  use 8"), "error: size=7 is odd; use 8"),
        (
            OSError(errno.ENOSPC, "full", "/big/file"),
            "error: /big/file: the disk is full; free some space or",
        ),
        (OSError(errno.ENOSPC, "full"), "error: a file or stdout: the disk is full; free some space or"),
        (
            PermissionError(errno.EACCES, "no", "/root/x"),
            "error: /root/x: permission denied; change its permissions or choose another path",
        ),
        (OSError(errno.EFBIG, "large", "/x"), "error: /x: larger than a file may be here; raise the limit"),
    ],
)
def test_errors_of_input_and_disk_are_one_line_and_exit_code_2(launch, capsys, error, expected):
    assert launch(launching.raising(error)) == 2
    assert launching.only_line(capsys).startswith(expected)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EINTR, "rare")])
def test_bugs_keep_their_traceback(launch, error):
    with pytest.raises(type(error)):
        launch(launching.raising(error))


def test_debug_keeps_the_traceback_of_an_error_of_input(launch):
    with pytest.raises(MechdiffError, match="size=7"):
        launch(launching.raising(MechdiffError("size=7")), "--debug")


def test_an_interruption_exits_with_130_and_says_how_to_go_on(launch, capsys):
    assert launch(launching.raising(KeyboardInterrupt())) == 130
    assert launching.only_line(capsys).startswith("interrupted; the same command goes on: ")


def test_of_a_checkpoint_that_is_given_up_nothing_more_is_said(launch, capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    async def _read_array():
        """As Orbax's, of which one is left of each array."""

    class Array:
        def __del__(self):
            raise ValueError("Encountered error while reading array index")

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        launch(launching.raising(KeyboardInterrupt()))
        capsys.readouterr()
        _read_array()
        Array()
        gc.collect()
        getLogger("asyncio").error("Task was destroyed but it is pending!")
    assert shown == [] and caplog.text == "" and capsys.readouterr().err == ""


def test_sigterm_ends_a_real_launcher_like_an_interruption(tmp_path):
    (tmp_path / "forever.py").write_text(SCRIPT)
    command = [
        sys.executable,
        str(tmp_path / "forever.py"),
        "--preset=tiny",
        "--set=train.steps=3",
        "--own=2",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, **pipes) as child:
        try:
            assert child.stdout.readline() == "tiny 3 runs/tiny\n"
            child.terminate()
            _, err = child.communicate(timeout=300)
        finally:
            child.kill()
    assert child.returncode == 128 + signal.SIGTERM
    assert err.startswith("interrupted; the same command goes on: ") and err.count("\n") == 1
    assert err.rstrip().endswith("forever.py --preset=tiny --set=train.steps=3 --own=2")


def test_help_shows_the_docstring_own_and_common_flags(tmp_path):
    (tmp_path / "forever.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "forever.py"), "--help"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Trains for ever.")
    assert all(f"--{name}" in done.stdout for name in ("own", "preset", "set", "workdir", "[no]debug"))


def test_an_interruption_that_a_callback_swallows_comes_again(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "unraisablehook", _launch._unraisable)

    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def main(config, workdir):
        Finalised()
        time.sleep(20)

    with flagsaver.flagsaver():
        assert _launch.launch(main, ["launcher", f"--workdir={tmp_path}"]) == 128 + signal.SIGTERM
    assert "goes on" in capsys.readouterr().err


def test_what_the_threads_of_a_failed_save_report_is_not_shown(monkeypatch):
    shown, news = [], SimpleNamespace(exc_value=RuntimeError("news"))
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    for lost in (SimpleNamespace(exc_value=RuntimeError("Event loop is closed")), news):
        _launch._unraisable(lost)
    assert shown == [news]


EXPERIMENTS = ROOT / "experiments"
ARMS = ("mechdiff_arm", "torch_baseline")  # programs that benchmarks start
LAUNCHERS = [
    *sorted(path.stem for path in EXPERIMENTS.glob("[!_]*.py")),
    *sorted(
        f"benchmarks.{path.stem}" for path in EXPERIMENTS.glob("benchmarks/[!_]*.py") if path.stem not in ARMS
    ),
]
REQUIRED = {
    "compare": ("before",),
    "export_checkpoint": ("model", "to"),
    "import_checkpoint": ("from", "to"),
    "benchmarks.ten_lines": ("images",),
    "benchmarks.verdicts": ("measured",),
}
OF_A_MODEL = (
    "sweep", "sweep_sequential", "sweep_scaling", "sweep_patterns", "sweep_sampling", "sample", "screen",
    "entropy", "circuits", "phases", "interchange", "roles", "interactions", "benchmarks.sequential_sweep",
)  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_starts_with_nothing_but_what_it_requires(name, tmp_path):
    called = []
    required = REQUIRED.get(name, ("model",) if name in OF_A_MODEL else ())
    code = launching.launch(
        name,
        f"--workdir={tmp_path}",
        *(f"--{flag}=x" for flag in required),
        main=lambda config, workdir: called.append(workdir),
    )
    assert code == 0 and called == [tmp_path]


@pytest.mark.parametrize(
    ("name", "flag", "line"),
    [
        ("sweep_scaling", "--gates=0,nan", "gates [0.0, nan]: give one or more finite numbers"),
        ("sweep_scaling", "--gates=1e300", "gates [1e+300]: give one or more finite numbers of float32"),
        ("sweep_scaling", "--gates=0,half", "--gates=0,half: could not convert"),
        ("sweep_scaling", "--gates=0,1,1", "gates: 1.0 is given twice; give each once"),
        ("sweep_patterns", "--sources=uniform,uniform", "sources of patterns: uniform is given twice"),
        ("sweep_patterns", "--sources=uniform,foo", "unknown source of patterns 'foo'"),
        ("sweep_patterns", "--set=sweep.images=1", "sweep.images (-n)=1 is too small; at least 2"),
        ("interchange", "--factors=glasses,glasses", "factors: glasses is given twice; give each once"),
        ("interchange", "--factors=glass", "unknown factor 'glass'; closest: glasses"),
        ("interactions", "--set=sweep.images=1", "sweep.images (-n)=1 is too small; at least 2"),
        ("sweep", "--set=sweep.images=0", "sweep.images (-n)=0 is too small; at least 2"),
        ("phases", "--set=sweep.images=3", "sweep.images (-n)=3 is too small; at least 4"),
        ("phases", "--set=sweep.timesteps=1", "1 timesteps, most=8: phases need at least 2"),
        ("sweep_sequential", "--set=sweep.images=16", "sweep.images (-n)=16 is too small; at least 32"),
        ("sweep_sequential", "--width=nan", "--width=nan is not a finite number"),
        ("screen", "--set=sweep.images=1", "sweep.images (-n)=1 is too small; at least 2"),
        ("entropy", "--set=sweep.images=1", "sweep.images (-n)=1 is too small; at least 2"),
        ("circuits", "--tau=1", "flag --tau=1: 1.0 is not a number in the range [0.01, 0.9999]"),
    ],
)
def test_values_out_of_range_or_given_twice_are_refused_before_any_model_is_read(
    name, flag, line, tmp_path, capsys
):
    assert launching.launch(name, f"--workdir={tmp_path}", "--model=absent", flag) == 2
    assert line in launching.only_line(capsys)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--plants=uniform,uniform", "--plants: uniform is given twice; give each once"),
        ("--plants=uniform,nix", "unknown plant 'nix'; choose from: long_range"),
        ("--methods=entropy,nix", "unknown method 'nix'; choose from: entropy"),
        ("--sizes=small,small", "--sizes: small is given twice"),
        ("--set=seed=4294967295", "seed + instances=4294967300 is out of range; 1 to 4294967296"),
    ],
)
def test_plants_that_are_unknown_or_would_count_twice_are_refused_before_any_is_scored(
    flag, line, tmp_path, capsys
):
    assert launching.launch("planted", f"--workdir={tmp_path}", flag) == 2
    assert line in launching.only_line(capsys) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "models"), [("sweep", ["model"]), ("compare", ["before", "after"])])
def test_a_command_that_is_refused_leaves_the_manifest_of_earlier_results(name, models, tmp_path):
    (tmp_path / "manifest.json").write_text('{"models": ["earlier"]}')
    words = [f"--{model}={tmp_path}/absent" for model in models]
    assert launching.launch(name, f"--workdir={tmp_path}", *words) == 2
    assert (tmp_path / "manifest.json").read_text() == '{"models": ["earlier"]}'


@pytest.mark.parametrize("name", ["interchange", "sweep_scaling", "sweep_patterns", "sweep_sequential"])
def test_a_file_as_workdir_is_refused_before_any_model_is_read(name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert launching.launch(name, f"--workdir={tmp_path}/file", "--model=absent") == 2
    assert "a file stands where a folder is needed" in launching.only_line(capsys)


def test_network_calls_are_said_to_be_fewer_only_where_they_are():
    module = importlib.import_module("experiments.sweep_sampling")
    try:
        assert module.calls_in_words(500, 1000) == (
            "500 network calls per sample instead of 1,000: 2.00 x fewer"
        )
        assert module.calls_in_words(1030, 1000) == "1,030 network calls per sample"
    finally:
        launching.forget(module)
