"""Launchers: absl flags -> config -> one library call. `python -m experiments.NAME` or `mechdiff NAME`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own notes; read when jax is imported
