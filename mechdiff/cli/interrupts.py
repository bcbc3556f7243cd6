"""How a program of ours ends early: in silence while modules are imported, and later without a crash.

Imports nothing that takes time: what comes first in a process.
"""

import atexit
import contextlib
import os
import signal
import sys

_FAILED: list[int] = []  # exit codes; the last one counts


def run_as_module_of(package: str) -> bool:
    """Whether Python is about to run a module of this package (`python -m PACKAGE.NAME`)."""
    arguments = sys.orig_argv
    return sys.argv[:1] == ["-m"] and arguments[arguments.index("-m") + 1].split(".")[0] == package


def end_silently() -> None:
    """Until `raise_again` an interruption ends this process at once, as it does most programs (the shell says
    130): nothing has begun that would be lost, and Python would show a long traceback. Left alone where
    interruptions are ignored, as of `nohup`, or handled. To be called first in a process that is ours."""
    atexit.register(_leave)  # before all others, so that it is called last
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """An interruption raises KeyboardInterrupt again: a launcher has begun, and says how to go on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def failed(code: int) -> None:
    """The process is about to end with this exit code, and XLA's threads may still be computing what was
    given up. Under them Python's end crashed (a sample that was interrupted while it was drawn: exit code 139
    instead of 130); so it is left out once threads have ended and exit handlers were called."""
    _FAILED.append(code)


def _leave() -> None:
    if _FAILED:
        with contextlib.suppress(OSError, ValueError):  # full, or closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(_FAILED[-1])
