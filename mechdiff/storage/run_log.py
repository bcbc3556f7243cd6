"""A run's log, one JSON object per line, and its progress on the terminal."""

import contextlib
import errno
import io
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mechdiff.core.errors import DataError
from mechdiff.storage import digests, files

PLAIN_SECONDS = 30.0  # between the lines of a progress that no terminal shows
QUIET_SECONDS = 2.0  # what ends sooner gets no bar
TICK_SECONDS = 1.0  # a bar's clock goes on while the first piece is compiled
NOTEBOOK_COLUMNS = 88


class RunLog:
    """Appends records to a file of JSON lines. A line is written whole and at once.

    A run that was killed and resumed has the same log as one that was not: see `rewind`.
    """

    def __init__(self, path: Path | str, resume_step: int | None = None):
        """Opens or creates `path`; a torn last line, left by a crash, is dropped.

        Args:
          resume_step: as for `rewind`; None keeps all lines.

        Raises:
          DataError: an earlier line is not JSON.
          MechdiffError: the file cannot be written.
        """
        self.path = Path(path)
        files.ensure_writable(self.path.parent)
        self._file = self._opened(read_log(self.path) if self.path.exists() else [])
        if resume_step is not None:
            self.rewind(resume_step)

    def append(self, record: dict) -> None:
        """Adds one line; numpy and JAX scalars become numbers, NaN and Inf null.

        Raises:
          MechdiffError: the disk is full.
        """
        with files.plain_errors(self.path):
            line = _line(record)
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def rewind(self, step: int) -> None:
        """Drops the lines of later steps, which the resumed run will write again."""
        self.close()
        self._file = self._opened([r for r in read_log(self.path) if r.get("step", step) <= step])

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _opened(self, records: list[dict]) -> io.FileIO:
        """The file, cut to these records."""
        kept = b"".join(_line(record) for record in records)
        with files.plain_errors(self.path):
            if not self.path.exists() or self.path.read_bytes() != kept:
                files.write_atomic(self.path, kept)
            return self.path.open("ab", buffering=0)


class SilentLog(RunLog):
    """The log of a process that is not the first: it takes records and writes nothing."""

    def __init__(self) -> None:
        self.path = Path(os.devnull)
        self._file = self.path.open("ab", buffering=0)

    def append(self, record: dict) -> None:
        """Drops the record."""


def read_log(path: Path | str) -> list[dict]:
    """The records of a log; a torn last line is left out.

    Raises:
      DataError: the file is absent, or a line before the last is not a JSON object.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(files.explain(error, path) or f"{path}: {error}") from None
    records = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty or torn
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number} is not a JSON object; delete that line to go on")
        records.append(record)
    return records


def progress(total: int, initial: int = 0, desc: str = "", unit: str = "step", quiet: bool = False) -> tqdm:
    """A progress bar with speed and time left, for a `with` statement, whose body calls `update`.

    It comes after two seconds, and its clock goes on where nothing is finished for long, as while a program
    is compiled. Where stderr is neither a terminal nor a notebook it prints a plain line every 30 seconds
    instead, none in a shorter run, and where `quiet` nothing at all.
    """
    if quiet:
        return tqdm(disable=True)
    what = {"total": total, "initial": initial, "desc": desc, "unit": unit, "leave": False}
    if sys.stderr.isatty():
        return _Bar(**what, delay=QUIET_SECONDS, dynamic_ncols=True)
    if _in_notebook():
        return _NotebookBar(**what, delay=QUIET_SECONDS, ncols=NOTEBOOK_COLUMNS, file=io.StringIO())
    return _PlainLines(
        **what,
        mininterval=PLAIN_SECONDS,
        delay=PLAIN_SECONDS,
        miniters=1,
        file=io.StringIO(),  # of tqdm's own carriage return at the end; lines are printed below
        bar_format="{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {elapsed} gone, {remaining} left{postfix}",
    )


def _in_notebook() -> bool:
    """Whether this is an IPython kernel: its stderr is no terminal, but it has outputs that can change."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


class _Bar(tqdm):
    """tqdm with a timer that redraws the bar every second once its delay is over."""

    monitor_interval = 0  # tqdm's own thread, which looks every ten seconds
    _left: threading.Event | None = None  # that the `with` block was left

    def __enter__(self) -> "_Bar":
        self._left = threading.Event()
        self._clock = threading.Thread(target=self._tick, args=(self._left,), daemon=True)
        self._clock.start()
        return self

    def close(self) -> None:
        if self._left is not None and not self._left.is_set():
            self._left.set()
            self._clock.join()
        super().close()

    def _tick(self, left: threading.Event) -> None:
        while not left.wait(TICK_SECONDS):
            if time.time() >= self.start_t + self.delay:
                self.refresh()
                self.delay = 0  # so that tqdm knows that there is a line to clear


class _NotebookBar(_Bar):
    """The same as an output that changes in place and is empty at the end: of a stream with carriage returns
    a notebook that is run without a browser keeps every line, on red ground."""

    _shown: Any = None  # the handle of the output

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        content = {"text/plain": str(self) if msg is None else msg}
        if self._shown is not None:
            self._shown.update(content, raw=True)
        elif msg != "":
            display = sys.modules["IPython"].display.display
            self._shown = display(content, raw=True, display_id=True)


class _PlainLines(_Bar):
    """The same without control characters: a new line for each report, however often it is
    refreshed."""

    def __init__(self, **settings: Any) -> None:
        self._due = time.monotonic() + PLAIN_SECONDS  # when the next line may come
        super().__init__(**settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = time.monotonic()
        if msg != "" and now >= self._due:  # tqdm sends "" to clear a bar
            self._due = now + PLAIN_SECONDS
            line = msg or str(self)
            for unknown in (f", ?{self.unit}/s", ", ? left"):  # as tqdm writes what it does not know yet
                line = line.replace(unknown, "")
            # tqdm holds its lock meanwhile: an error in the clock's thread would keep it, and the run hang.
            with contextlib.suppress(BrokenPipeError):
                print(line, file=sys.stderr, flush=True)


def _line(record: dict) -> bytes:
    return (json.dumps(digests.to_jsonable(record)) + "\n").encode()
