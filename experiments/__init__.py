"""Launchers: absl flags -> config -> one library call. `python -m experiments.NAME` or `mechdiff NAME`."""

import os
import sys

from mechdiff.cli import interrupts

if sys.argv[0] == "-m":  # Python is about to run one of these modules, which imports all that it needs
    interrupts.end_silently()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own notes; read when jax is imported
