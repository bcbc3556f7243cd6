"""The version of the numbers, part of the name of every stored result; and what rounding does to them."""

# Raise it by hand, and only then, when the same inputs give other numbers than before (beyond rounding).
# Cached sweeps, circuits and scores are looked up under it, so that stale numbers can't be reused, and a
# corrected docstring orphans nothing. `tests/test_numerics.py` fails when numbers move and this did not.
NUMERICS_VERSION = 2

# Mean squared difference, of two predictions of unit variance, that float32 rounding can make. Seen in
# fifteen networks under mean ablation: up to 1.4e-12 by rounding, from 2.8e-6 on where something was done.
ROUNDING = 1e-10
