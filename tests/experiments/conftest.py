"""Launchers, called in this process."""

import signal
import sys
from logging import getLogger

import pytest
from absl.testing import flagsaver

from experiments import _launch


@pytest.fixture
def launch():
    """`launch(main, *flags)` in this process, with the flags and all handlers put back afterwards."""
    handler, hook, level = signal.getsignal(signal.SIGTERM), sys.unraisablehook, getLogger("asyncio").level
    with flagsaver.flagsaver():
        yield lambda main, *argv: _launch.launch(main, ["launcher", "--preset=tiny", *argv])
    signal.signal(signal.SIGTERM, handler)
    sys.unraisablehook = hook
    getLogger("asyncio").setLevel(level)
