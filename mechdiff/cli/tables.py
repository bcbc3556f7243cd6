"""Results in the terminal: the components whose ablation costs most, and tables of records."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from mechdiff.analysis import precision, saved_effects
from mechdiff.stats import Interval

TOP = 10
ENDS = ", 95 %"  # of the name of an interval, behind that of its number
WIDTH = 1000  # of a table where stdout is no terminal, at most: no line is broken there


def top_components(sweep: xr.Dataset, ablation: str, count: int = TOP) -> list[dict[str, Any]]:
    """The components of the largest pooled relative loss increase, the largest first.

    Returns:
      for each its name, type, relative loss increase in % with a 95 % interval over images (or people), p
      (sign flips, max-T over components), how many images (or people) these are over, and the error by
      reduced precision of products in points (0: full precision).
    """
    frame = saved_effects.effect_table(sweep, ablation).head(count).assign(ablation=ablation)
    errors = precision.relative_error(sweep, ablation)
    by_name = dict(zip(sweep["component"].values.astype(str), errors.tolist(), strict=True))
    frame["precision_error"] = frame["component"].map(by_name)
    return frame.to_dict("records")


def with_interval(name: str, interval: Interval, index: int | tuple[int, ...]) -> dict[str, Any]:
    """One number of `interval` and its 95 % interval, as two entries of a record for `print_records`."""
    ends = (float(interval.low[index]), float(interval.high[index]))
    return {name: float(interval.estimate[index]), f"{name}{ENDS}": ends}


def interval_rows(
    kind: str, names: Iterable[object], intervals: Mapping[str, Interval], order: Iterable[int] | None = None
) -> list[dict[str, Any]]:
    """Records for `print_records`: of each name the numbers that several intervals have there.

    Args:
      kind: of the names, such as `head`: title of their column.
      intervals: title of a column -> its intervals, `[name]`.
      order: indices of the names, the first row's first; None: all as they are.
    """
    labels = [str(name) for name in names]
    rows = []
    for i in range(len(labels)) if order is None else order:
        row: dict[str, Any] = {kind: labels[i]}
        for title, interval in intervals.items():
            row |= with_interval(title, interval, i)
        rows.append(row)
    return rows


def print_records(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of records with equal keys, its columns named by them, to stdout; numbers of three digits.

    Intervals of `with_interval` stand beside their numbers, below them where there is no room.

    Args:
      title: its line above; nothing is printed where there are no rows.
    """
    if not rows:
        return
    table = Table(box=None, header_style="bold")
    names = [name for name in rows[0] if not name.endswith(ENDS)]
    for name in names:
        value = rows[0][name]
        breaks = isinstance(value, str) or f"{name}{ENDS}" in rows[0]
        justify = "left" if isinstance(value, str) else "right"
        table.add_column(name, justify=justify, no_wrap=not breaks, overflow="fold")
    for row in rows:
        table.add_row(*(f"{_cell(row[name])} {_ends(row, name)}".rstrip() for name in names))
    print(title)
    _print(table)


def _ends(row: dict[str, Any], name: str) -> str:
    """The interval of a number that is known, with spaces that no line is broken at."""
    has_interval = f"{name}{ENDS}" in row and not np.isnan(row[name])
    return _cell(row[f"{name}{ENDS}"]).replace(" ", "\N{NO-BREAK SPACE}") if has_interval else ""


def _cell(value: Any) -> str:
    """A number, or an interval's ends as a pair, in three digits; nothing for what is not known."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_cell, value))}]"
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return number(value) if isinstance(value, float) else str(value)


def number(value: float, sign: str = "") -> str:
    """A number in three digits, from a thousand on with all that are whole; `sign` "+": with that too.

    Example:
      >>> number(-1182.4), number(0.01234), number(825.4, "+")
      ('-1,182', '0.0123', '+825')
    """
    value += 0.0  # -0 is 0
    return f"{value:{sign},.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:{sign}.3g}"


def _print(table: Table) -> None:
    terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if terminal else WIDTH, highlight=False, markup=False).print(table)


def print_top(rows: list[dict[str, Any]], title: str) -> None:
    """A table of what `top_components` gives, to stdout; p are of all components, intervals of one."""
    table = Table(box=None, header_style="bold")
    table.add_column("component", no_wrap=True)
    table.add_column("type")
    for head in ("loss increase %", "95 % interval", "p (max-T)", "n"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        interval = f"[{number(row['low'])}, {number(row['high'])}]"
        numbers = (number(row["delta_loss"]), interval, f"{row['p']:.2g}", str(row["n"]))
        table.add_row(row["component"], row["type"], *numbers)
    error = max((row["precision_error"] for row in rows), default=0.0)
    if error:
        title += f" (precision {error:.2g} points, within the intervals)"
    print(title)
    _print(table)
