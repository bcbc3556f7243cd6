"""Hints for mistyped flags: settings are written `--set=section.field=value`."""

import difflib
from collections.abc import Iterable

from mechdiff.cli import settings
from mechdiff.core import old_names

CLOSE = 0.8  # of difflib: a slip or two


def meant(flag: str, value: str | None = None, own: Iterable[str] = ()) -> str | None:
    """What `--flag=value` may have meant: a flag, or a setting as `--set=...`; None where nothing is close.

    A flag is also known by its earlier name.

    Args:
      own: flags that the launcher has; of two as close, a flag and a setting, a number means the setting.

    Example:
      >>> meant("images", "16"), meant("image", "faces/", ["images"])
      ('--set=sweep.images=16', '--images')
      >>> meant("workdri") is None
      True
    """
    wanted = _plain(flag)
    flags = {_plain(name): f"--{name.lstrip('-')}" for name in own}
    today = old_names.FLAG_NAMES.get(wanted)
    if today in flags:
        return flags[today]
    number = value is not None and value.isdecimal()
    if wanted == "images" and wanted not in flags and value and not number:
        trains = "model" not in flags
        return f"--set=data.name=folder --set=data.path={value}" if trains else None
    fields = {"n": "sweep.images"}
    for name in sorted(settings.names(), key=_order):
        fields.setdefault(name.rpartition(".")[2], name)
        fields[name] = name
    of_flags, of_settings = _closest(wanted, flags), _closest(wanted, fields)
    closeness = [_closeness(wanted, near) for near in (of_flags, of_settings)]
    if max(closeness) < CLOSE:
        return None
    if closeness[0] > closeness[1] or (closeness[0] == closeness[1] and not number):
        return flags[of_flags]
    return f"--set={fields[of_settings]}={'VALUE' if value is None else value}"


def _plain(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _closest(wanted: str, names: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(wanted, names, n=1, cutoff=CLOSE)), "")


def _closeness(wanted: str, name: str) -> float:
    return difflib.SequenceMatcher(None, name, wanted).ratio()


def _order(name: str) -> tuple[bool, bool]:
    """Settings of sweeps first, then of training: those that are typed most."""
    return not name.startswith("sweep."), not name.startswith("train.")
