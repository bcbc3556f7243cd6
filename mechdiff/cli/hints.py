"""Hints for mistyped flags: settings are written `--set=section.field=value`."""

import difflib

from mechdiff.cli import settings

CLOSE = 0.8  # of difflib: a slip or two


def setting_meant(flag: str, value: str | None = None) -> str | None:
    """The assignment that `--flag=value` may have meant, as `--set=...`; None where no setting is close.

    Example:
      >>> setting_meant("images", "16")
      '--set=sweep.images=16'
      >>> setting_meant("workdri") is None
      True
    """
    wanted = flag.lstrip("-").replace("-", "_")
    names = sorted(settings.names(), key=_order)
    by_field = {}
    for name in names:
        by_field.setdefault(name.rpartition(".")[2], name)
    near = difflib.get_close_matches(wanted, [*names, *by_field], n=1, cutoff=CLOSE)
    if not near:
        return None
    return f"--set={by_field.get(near[0], near[0])}={'VALUE' if value is None else value}"


def _order(name: str) -> tuple[bool, bool]:
    """Settings of sweeps first, then of training: those that are typed most."""
    return not name.startswith("sweep."), not name.startswith("train.")
