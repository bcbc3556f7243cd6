"""Launchers: absl flags -> config -> one library call. Run as `python -m experiments.NAME`."""
