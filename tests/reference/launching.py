"""Launchers in one process, in turn: `python -m tests.reference.launching '[["sweep", "--model=..."]]'`."""

import gc
import importlib
import json
import signal
import sys
from types import ModuleType

from absl import flags
from absl.testing import flagsaver

from experiments import _launch


def launch(name: str, *argv: str, main: _launch.Main | None = None) -> int:
    """Exit code of `python -m experiments.NAME`; its flags and its handlers are gone afterwards.

    Args:
      main: called in place of the launcher's own.
    """
    handler, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    module = importlib.import_module(f"experiments.{name}")
    try:
        with flagsaver.flagsaver():
            return _launch.launch(main or module.main, [name, *argv])
    finally:
        signal.signal(signal.SIGTERM, handler)
        sys.unraisablehook = hook
        forget(module)


def forget(module: ModuleType) -> None:
    """Takes back the flags that a launcher defined when imported: others have some of the same names."""
    for flag in list(flags.FLAGS.flags_by_module_dict().get(module.__name__, ())):
        delattr(flags.FLAGS, flag.name)
    del sys.modules[module.__name__]


def raising(error: BaseException) -> _launch.Main:
    """A `main` that fails so."""

    def main(config, workdir):
        raise error

    return main


def only_line(capsys) -> str:
    """The one line that was printed, on stderr."""
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err.rstrip("\n")


if __name__ == "__main__":
    gc.set_threshold(50_000, 10, 10)  # as `conftest.py` does
    sys.exit(max(launch(*words) for words in json.loads(sys.argv[1])))
