"""Where lines go: stdout, stderr, a log file, nowhere."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings

import pytest

from mechdiff.cli import output


def say():
    print("a result")
    print("a note", file=sys.stderr)


def test_json_leaves_stdout_to_the_document(capsys):
    with output.redirected(as_json=True):
        say()
    output.print_json(result={"low": float("nan"), "n": 3})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"result": {"low": None, "n": 3}}
    assert err == "a result\na note\n"


def test_a_local_copy_is_shown_as_the_address_that_it_is_of(capsys, tmp_path):
    log = tmp_path / "run.log"
    with output.redirected(log_file=str(log)), output.renaming("/tmp/copy-0", "gs://b/run"):
        print("/tmp/copy-0/report.html")
        print("/tmp/copy-1 and /tmp/copy-0", file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == "gs://b/run/report.html\n" and err == "/tmp/copy-1 and gs://b/run\n"
    assert log.read_text().splitlines()[1:] == ["gs://b/run/report.html", "/tmp/copy-1 and gs://b/run"]


def test_what_was_written_since_a_moment(tmp_path):
    for name in (
        "subjects/a/subject.json",
        "subjects/a/sweep.zarr/loss/0",
        "old.json",
        ".lock",
        "cache/a.npy",
        "model/SHA256SUMS",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    os.utime(tmp_path / "old.json", (0, 0))
    written = [path.relative_to(tmp_path).as_posix() for path in output.written_since(1000.0, tmp_path)]
    assert written == ["model", "subjects/a/subject.json", "subjects/a/sweep.zarr"]
    assert output.written_since(0.0, tmp_path / "absent") == []


def test_quiet_shows_warnings_alone(capsys, monkeypatch):
    monkeypatch.setattr(
        warnings, "showwarning", lambda text, *places: print(text, file=places[3] or sys.stderr)
    )
    with output.redirected(quiet=True):
        say()
        warnings.showwarning("beware", UserWarning, "file", 1)  # what `warnings.warn` ends in
    out, err = capsys.readouterr()
    assert out == "" and "beware" in err and "a note" not in err


@pytest.mark.parametrize("quiet", [True, False])
def test_the_log_holds_all_lines_and_grows(capsys, tmp_path, quiet):
    log = tmp_path / "new" / "run.log"
    for _ in range(2):
        with output.redirected(quiet=quiet, log_file=str(log), command="sweep -n 2"):
            say()
            print("\r 50%", end="", file=sys.stderr)  # a bar that is drawn again and again
    lines = log.read_text().splitlines()
    assert lines[1:3] == ["a result", "a note"] and lines[0].endswith("sweep -n 2") and len(lines) == 6
    assert ("a result" in capsys.readouterr().out) is not quiet


def test_a_pipe_that_closes_is_quiet():
    code = "import sys\nfrom mechdiff.cli import output\nprint('x' * 10)\nsys.exit(output.end(0))"
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=buffered, check=False
    )
    os.close(write)
    assert done.returncode == output.CLOSED_PIPE and done.stderr == b""


@pytest.mark.parametrize("where", [">&-", "2>&-"])
def test_closed_streams_are_opened_to_nowhere(where):
    """Python has None for them; what asks a stream whether it is a terminal would fail."""
    program = "import sys; from mechdiff.cli import output; output.begin()"
    program += "; sys.stdout.isatty(); sys.stderr.isatty()"
    assert subprocess.run(f"{sys.executable} -c '{program}' {where}", shell=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("encoding", "folder", "shown"), [("ascii", "\xfc", rb"\xfc"), ("utf-8", "\udcff", rb"\udcff")]
)
def test_a_path_that_stdout_can_not_encode_is_escaped(encoding, folder, shown, tmp_path):
    """The result was there, and its path, printed last, ended the run with a traceback."""
    program = f"from mechdiff.cli import output; output.begin(); print({folder!r})"
    environ = os.environ | {"PYTHONIOENCODING": encoding}
    assert subprocess.check_output([sys.executable, "-c", program], env=environ).strip() == shown
    with output.redirected(log_file=f"{tmp_path}/log"):
        print(folder)
    written = "\xfc".encode() if folder == "\xfc" else shown  # a log is UTF-8
    assert written in (tmp_path / "log").read_bytes()


def test_a_full_disk_under_stdout_is_an_error_in_one_line(capsys, monkeypatch):
    class Full:
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        assert output.end(0) == 2
    assert capsys.readouterr().err.startswith("error: stdout: the disk is full; free some space or choose")


BY_MODULE = "sys.argv[0] = '-m'; sys.orig_argv[1:] = ['-m', {!r}]; import experiments"


@pytest.mark.parametrize(
    "words",
    [
        BY_MODULE.format("experiments.sample"),
        "sys.argv[0] = '/bin/mechdiff'; import mechdiff.cli",
        "from mechdiff.cli import interrupts; interrupts.end_silently()",  # as `python -m mechdiff` does
    ],
)
def test_an_interruption_while_modules_are_imported_ends_in_silence(words):
    code = f"import signal, sys; {words}; signal.raise_signal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    again = code.replace(
        "signal.raise", "from mechdiff.cli import interrupts; interrupts.raise_again(); signal.raise"
    )
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_interruptions_of_a_program_that_imports_launchers_are_its_own():
    """Here a package `lab` whose `__init__` imports them, run by `python -m lab.run`."""
    code = f"import signal, sys; {BY_MODULE.format('lab.run')}; signal.raise_signal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_a_process_that_failed_ends_with_its_code_whatever_python_s_own_end_does():
    """XLA's threads, which may still compute, made that crash."""
    code = (
        "import atexit, os, sys; from mechdiff.cli import interrupts; interrupts.end_silently()\n"
        "class Crashes:\n    def __del__(self, abort=os.abort):\n        abort()\n"
        "left = Crashes(); atexit.register(print, 'handlers are called')\n"
        "interrupts.failed(130); sys.exit(130)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "handlers are called\n", "")
