"""Where a launcher's lines go: to the terminal, aside for `--json` and `--quiet`, and to a log file."""

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechdiff.storage import checksums, files
from mechdiff.storage.digests import to_jsonable

OWN = ("cache", "checkpoints", "run")  # folders in which a run keeps what it may need again
UNENCODED = "backslashreplace"  # how what a stream can't encode is written, as stderr does
CLOCK_SECONDS = 1.0  # by which a file system's clock may be behind
CLOSED_PIPE = 141  # exit code of a process that wrote to a closed pipe: 128 + SIGPIPE


class Forwarded(io.TextIOBase):
    """Text that goes to a stream; what it is asked about itself, the stream answers."""

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes to the stream."""
        return self._stream.write(text)

    def flush(self) -> None:
        """Flushes the stream, unless it is closed already: Python 3.13 says so of what it cleans up."""
        if not self._stream.closed:
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal, so that bars are drawn as on the stream itself."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """File descriptor of the stream."""
        return self._stream.fileno()


class Tee(Forwarded):
    """Text that goes to a stream, and as lines to a log as well, which is always flushed; redrawn bars stay
    out of the log."""

    def __init__(self, stream: io.TextIOBase, log: io.TextIOBase):
        super().__init__(stream)
        self._log = log

    def write(self, text: str) -> int:
        """Writes to both."""
        if "\r" not in text:
            _append(self._log, text)
        return super().write(text)


class Renamed(Forwarded):
    """Text that goes to a stream, in which a name is replaced by another one."""

    def __init__(self, stream: io.TextIOBase, name: str, shown: str):
        super().__init__(stream)
        self._name, self._shown = name, shown

    def write(self, text: str) -> int:
        """Writes the text with the name replaced."""
        return super().write(text.replace(self._name, self._shown))


@contextlib.contextmanager
def renaming(name: str, shown: str) -> Iterator[None]:
    """Within the block `name` is printed as `shown`, on stdout and stderr: the folder of a local copy as the
    address in a bucket that the user gave.

    Example:
      >>> with renaming("/tmp/copy-0", "gs://bucket/run"):
      ...     print("/tmp/copy-0/report.html")
      gs://bucket/run/report.html
    """
    with contextlib.ExitStack() as stack:
        if name != shown:
            stack.enter_context(contextlib.redirect_stdout(Renamed(sys.stdout, name, shown)))
            stack.enter_context(contextlib.redirect_stderr(Renamed(sys.stderr, name, shown)))
        yield


@contextlib.contextmanager
def redirected(
    *, as_json: bool = False, quiet: bool = False, log_file: str | None = None, command: str = ""
) -> Iterator[None]:
    """Sends what is printed inside where it belongs.

    Args:
      as_json: what goes to stdout goes to stderr, so that stdout holds one JSON document.
      quiet: nothing is shown but warnings and errors (with a log file, they and all else are in it).
      log_file: a file to which all lines are appended.
      command: first line of its entry.
    """
    with contextlib.ExitStack() as stack:
        out, err = sys.stdout, sys.stderr
        if quiet:
            sink = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(_warnings_to(err))
            out = err = sink
        elif as_json:
            out = err
        if log_file:
            log = _opened(Path(log_file))
            stack.callback(_closed, log)
            _append(log, f"# {datetime.now(UTC).isoformat(timespec='seconds')} {command}\n")
            out, err = Tee(out, log), Tee(err, log)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        yield


def print_json(**facts: Any) -> None:
    """One JSON document on stdout; NaN as null."""
    print(json.dumps(to_jsonable(facts), indent=1))


def written_since(began: float, workdir: Path, depth: int = 3) -> list[Path]:
    """Results below a folder that were written after a moment, sorted; a Zarr store and an exported model
    count as one. What a run keeps for itself (caches, training checkpoints) is none.

    Args:
      began: seconds since the epoch.
      depth: of folders looked into.
    """
    results = []
    for path in sorted(workdir.iterdir()) if workdir.is_dir() else ():
        if path.name.startswith(".") or path.name in OWN:
            continue
        if path.is_file() or path.suffix == ".zarr" or (path / checksums.NAME).is_file():
            if path.stat().st_mtime >= began - CLOCK_SECONDS:
                results.append(path)
        elif depth > 1:
            results += written_since(began, path, depth - 1)
    return results


def log_line(log_file: str | None, line: str) -> None:
    """Adds a line, such as that of an error, to the log file, if there is one."""
    if log_file:
        with (
            contextlib.suppress(OSError),
            Path(log_file).open("a", encoding="utf-8", errors=UNENCODED) as log,
        ):
            log.write(line + "\n")


def begin() -> None:
    """Opens the streams that whoever started the process has closed: what is printed is lost. What the
    encoding of stdout can't say, such as a path in Latin-1, is escaped there, as Python does on stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115, until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors=UNENCODED)


def keep_stdout() -> None:
    """Sends to stderr, until the process ends, what libraries print to stdout past Python (Gloo, which
    connects processes on CPUs: who is connected), so that there is nothing on stdout but our own."""
    before, shown = sys.stdout, os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), before.fileno())
    sys.stdout = open(shown, "w", encoding=before.encoding, errors=before.errors)  # noqa: PTH123, SIM115
    sys.stdout.reconfigure(line_buffering=before.line_buffering, write_through=before.write_through)


def end(code: int) -> int:
    """Flushes stdout before the process ends; a pipe closed by its reader is not an error, a full disk is."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        broken = isinstance(error, BrokenPipeError)
        if not broken:
            print(f"error: {files.explain(error, 'stdout') or error}", file=sys.stderr)
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE if broken else 2


def _opened(path: Path) -> io.TextIOBase:
    files.ensure_writable(path.parent)
    with files.plain_errors(path):
        return path.open("a", encoding="utf-8", errors=UNENCODED)


def _append(log: io.TextIOBase, text: str) -> None:
    with files.plain_errors(getattr(log, "name", "")):
        log.write(text)
        log.flush()


def _closed(log: io.TextIOBase) -> None:
    with contextlib.suppress(OSError):  # what could not be written was said, with the log's name
        log.close()


@contextlib.contextmanager
def _warnings_to(stream: io.TextIOBase) -> Iterator[None]:
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):
        before(message, category, filename, lineno, file or stream, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
