"""Launchers: absl flags -> config -> one library call. `python -m experiments.NAME` or `mechdiff NAME`."""
