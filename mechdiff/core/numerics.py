"""The version of the numbers: part of the name of every stored result."""

# Raise it by hand, and only then, when the same inputs give other numbers than before (beyond rounding).
# Cached sweeps, circuits and scores are looked up under it, so that stale numbers can't be reused, and a
# corrected docstring orphans nothing. `tests/test_numerics.py` fails when numbers move and this did not.
NUMERICS_VERSION = 2
