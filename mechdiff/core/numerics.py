"""The version of the numbers, part of the name of every stored result; and the size of rounding errors."""

import numpy as np

from mechdiff.core.errors import NumericsError

# Raise it by hand when, and only when, the same inputs give other numbers than before (beyond rounding).
# Cached sweeps, circuits and scores are looked up under it, so that stale numbers can't be reused, and a
# corrected docstring orphans nothing. `tests/core/test_numerics.py` fails if numbers move and this does not.
NUMERICS_VERSION = 2

# Upper limit of the mean squared difference of two predictions of unit variance by float32 rounding. In
# fifteen networks under mean ablation rounding made up to 1.4e-12, and the smallest true effect was 2.8e-6.
ROUNDING = 1e-10


def require_finite(losses: np.ndarray, network: str, doing: str) -> None:
    """Raises NumericsError if any loss is NaN or Inf: it would be no effect, or one that was not measured.

    Args:
      losses: `(rows, ...)`.
      network: its name.
      doing: what each row is, such as `sets of ablated components`.
    """
    bad = int((~np.isfinite(losses)).reshape(len(losses), -1).any(axis=1).sum())
    if bad:
        raise NumericsError(
            f"{network}: losses of {bad} of {len(losses)} {doing} are NaN or Inf; check the network's "
            "output, or ablate by other values ('mean') or fewer components"
        )
