"""The command `mechdiff`, and what it shares with `python -m experiments.NAME`: hints, tables, output.

Every subcommand is a launcher of `experiments/` under a shorter name; its options are the launcher's flags.
"""
