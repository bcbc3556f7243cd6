"""Launchers, called in this process."""

import signal

import pytest
from absl.testing import flagsaver

from experiments import _launch


@pytest.fixture
def launch():
    """`launch(main, *flags)` in this process, with the flags and the signal handler put back afterwards."""
    handler = signal.getsignal(signal.SIGTERM)
    with flagsaver.flagsaver():
        yield lambda main, *argv: _launch.launch(main, ["launcher", "--preset=tiny", *argv])
    signal.signal(signal.SIGTERM, handler)
