"""Starts a launcher: its config, joined processes, where its lines go, errors and interruptions.

Exit codes: 0 done, 2 an error of input or of the disk (one line on stderr), 128 + n stopped by signal n.
The command `mechdiff` runs the same launchers through `launch`.
"""

import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Container
from logging import CRITICAL, getLogger
from pathlib import Path

from absl import flags, logging

from mechdiff.cli import interrupts, output
from mechdiff.core import devices, presets, processes
from mechdiff.core.config import ExperimentConfig, override
from mechdiff.core.errors import MechdiffError
from mechdiff.storage import bucket, exchange, files

from . import _flags

FLAGS = flags.FLAGS
BLOCKS = ("sweep.image_block", "sweep.chunk")  # what is computed at once, where a launcher follows them
MAX_LINE_LENGTH = 1500  # characters of an error's line
UNBEGUN = "coroutine '.*' was never awaited"  # Orbax's, of a checkpoint that is given up
HUGE_PAGES = "glibc.malloc.hugetlb=1"

Main = Callable[[ExperimentConfig, Path], object]


def run(main: Main, argv: list[str] | None = None) -> None:
    """Parses the flags, calls `main(config, workdir)` and ends the process with its exit code."""
    sys.exit(end(launch(main, sys.argv if argv is None else argv)))


def end(code: int) -> int:
    """The exit code, once stdout is flushed (see `output.end`). One of several processes ends here, if it
    failed: the others are not waited for."""
    code = output.end(code)
    if code:
        processes.abandon(code)
        interrupts.failed(code)
    return code


def launch(main: Main, argv: list[str]) -> int:
    """As `run`, but returns the exit code. With --debug errors are raised as they are."""
    output.begin()
    sys.unraisablehook = _unraisable
    interrupts.raise_again()
    signal.signal(signal.SIGTERM, _interrupt)
    logging.set_verbosity(logging.WARNING)
    try:
        if {"-h", "--help"} & set(argv):
            print(_flags.help_of(sys.modules[main.__module__], argv[0]))
            return 0
        _flags.parse(argv)
        _flags.check_settings(sys.modules[main.__module__], argv[0])
        config = override(presets.preset(FLAGS.preset), FLAGS.set)
        _join(getattr(sys.modules[main.__module__], "joins", False))
        with devices.enough_memory(_less_memory(getattr(sys.modules[main.__module__], "idle", {}))):
            _work(main, config, argv)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        _leave_in_silence()
        _last_line(f"interrupted; the same command goes on: {shlex.join(sys.orig_argv)}")
        return 128 + number
    except BrokenPipeError:
        return output.CLOSED_PIPE
    except (MechdiffError, flags.Error, OSError) as error:
        line = (
            files.explain(error, "a file or stdout")
            if isinstance(error, OSError)
            else " ".join(str(error).split())
        )
        if line is None or (FLAGS.is_parsed() and FLAGS.debug):
            raise
        _last_line(f"error: {line if len(line) <= MAX_LINE_LENGTH else line[:MAX_LINE_LENGTH] + '...'}")
        return 2
    return 0


def _work(main: Main, config: ExperimentConfig, argv: list[str]) -> None:
    """Calls `main` with its lines sent where the flags want them; with --json, what it returns and the
    results that it wrote are printed. A bucket is called by its address, also in errors: the local copy is
    gone when they are read."""
    with bucket.local_copy(FLAGS.workdir or f"runs/{config.name}") as workdir:
        shown = exchange.address_of(workdir)
        try:
            _work_in(workdir, shown, main, config, argv)
        except MechdiffError as error:
            error.args = tuple(str(part).replace(str(workdir), shown) for part in error.args)
            raise


def _work_in(workdir: Path, shown: str, main: Main, config: ExperimentConfig, argv: list[str]) -> None:
    start, began = time.monotonic(), time.time()
    command = f"{Path(argv[0]).name} {shlex.join(argv[1:])}"
    redirected = output.redirected(
        as_json=FLAGS.json, quiet=FLAGS.quiet, log_file=FLAGS.log_file, command=command
    )
    with redirected, output.renaming(str(workdir), shown):
        result = main(config, workdir)
    if FLAGS.json:
        seconds, written = round(time.monotonic() - start, 3), output.written_since(began, workdir)
        with output.renaming(str(workdir), shown):
            output.print_json(
                command=command, workdir=workdir, seconds=seconds, result=result, written=written
            )


def _less_memory(idle: Container[str]) -> str:
    """The way out where a device's memory is too small, by the settings that a launcher follows."""
    lower = [f"lower {name}" for name in BLOCKS if name not in idle]
    return ", ".join([*lower, "let no other process use the card", "or take a larger one"])


def _last_line(line: str) -> None:
    print(line, file=sys.stderr)
    if FLAGS.is_parsed():
        output.log_line(FLAGS.log_file, line)


def _join(joins: bool) -> None:
    """Makes this process one of several (`jax.distributed`); must come before any device is used.

    Args:
      joins: whether the launcher shares its work between them: it has `joins = True`. Others would do all
        of it in each, and write the same files.
    """
    alone = [name for name in ("processes", "process_id") if FLAGS[name].present and not FLAGS.coordinator]
    if alone:  # each would do all of it
        raise flags.Error(f"--{alone[0]} has no effect without --coordinator=HOST:PORT; give that too")
    if not (FLAGS.distributed or FLAGS.coordinator):
        return
    if not joins:
        flag = "--coordinator" if FLAGS.coordinator else "--distributed"
        raise flags.Error(f"{flag} is for train and sweep, which share work out; start this without it")
    if FLAGS.coordinator and None in (FLAGS.processes, FLAGS.process_id):
        raise flags.Error(f"--coordinator={FLAGS.coordinator} needs --processes=N and --process_id=I")
    if FLAGS.coordinator and FLAGS.process_id >= FLAGS.processes:
        raise flags.Error(f"--process_id={FLAGS.process_id} is not below --processes={FLAGS.processes}")
    output.keep_stdout()
    member = None
    if FLAGS.coordinator:
        member = processes.Membership(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
    processes.join(member, FLAGS.join_timeout)


def use_huge_pages() -> None:
    """Starts this process again with memory in huge pages where the C library is glibc, for launchers that
    run long: buffers of a training step and of a pass are new each time. On two cores a step then took 0.85
    of the time; on one core a sweep of a tiny network 0.86, of one of 4.4 million parameters 0.95."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, HUGE_PAGES]))
        os.execv(sys.executable, sys.orig_argv)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _leave_in_silence() -> None:
    """Of what is given up, such as a model that is being read, each array would have its say: hundreds of
    lines of Orbax's and asyncio's, after the last that the user should read."""
    warnings.filterwarnings("ignore", message=UNBEGUN)
    getLogger("asyncio").setLevel(CRITICAL)
    sys.unraisablehook = lambda _: None


def _unraisable(lost) -> None:
    """Sends an interruption again, a moment later, that came where errors can't be raised (such as in JAX's
    callback of the garbage collector) and would be lost. Says nothing of what Orbax's threads still report
    when saving has failed: dozens of stack traces, one for each array."""
    if isinstance(lost.exc_value, RuntimeError) and str(lost.exc_value) == "Event loop is closed":
        return None
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        return sys.__unraisablehook__(lost)
    number = lost.exc_value.args[0] if lost.exc_value.args else signal.SIGINT
    signal.signal(signal.SIGALRM, lambda *_: _interrupt(number, None))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
