"""Imported before matplotlib. Figures here use no backend, so a notebook's backend need not be installed.

A notebook sets `MPLBACKEND` for the commands that it starts too, which may run in another environment; there
matplotlib would refuse to be imported.
"""

import importlib.util
import os

MODULE = "module://"


def forget_absent() -> None:
    """Takes `MPLBACKEND` out of the environment if it names a module that is not installed."""
    backend = os.environ.get("MPLBACKEND", "")
    package = backend.removeprefix(MODULE).partition(".")[0]
    if backend.startswith(MODULE) and importlib.util.find_spec(package) is None:
        del os.environ["MPLBACKEND"]


forget_absent()
