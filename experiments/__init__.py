"""Launchers: absl flags -> config -> one library call. `python -m experiments.NAME` or `mechdiff NAME`."""

import os

from mechdiff.cli import interrupts

if interrupts.run_as_module_of("experiments"):  # which is about to import all that it needs
    interrupts.end_silently()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own notes; read when jax is imported
