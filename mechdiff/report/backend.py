"""Imported before matplotlib. Figures here use no backend, so that of `MPLBACKEND` need not be there.

A notebook sets `MPLBACKEND` for the commands that it starts too, which may run in another environment, and a
shell may keep the name of one that is long gone; matplotlib would refuse to be imported.
"""

import contextlib
import os
import sys


def import_matplotlib() -> None:
    """Imports matplotlib, with the backend that `MPLBACKEND` names if matplotlib takes it, else without."""
    if "matplotlib" in sys.modules:  # and its backend may have been chosen since
        return
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError, ImportError):
            matplotlib.rcParams["backend"] = backend


import_matplotlib()
