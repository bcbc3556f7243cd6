"""Results in the terminal: the components whose ablation costs most."""

import sys
from typing import Any

import xarray as xr
from rich.console import Console
from rich.table import Table

from mechdiff.analysis import effects, saved_effects

TOP = 10
WIDTH = 100  # of a table where stdout is no terminal


def top_components(sweep: xr.Dataset, ablation: str, count: int = TOP) -> list[dict[str, Any]]:
    """The components of the largest pooled relative loss increase, the largest first.

    Returns:
      for each its name, type, relative loss increase in % with a 95 % interval over images (or people), p
      (sign flips, max-T over components), how many images (or people) these are over, and the error by
      reduced precision of products in points (0: full precision).
    """
    frame = saved_effects.effect_table(sweep, ablation).head(count).assign(ablation=ablation)
    errors = effects.precision_error(sweep, ablation)
    by_name = dict(zip(sweep["component"].values.astype(str), errors.tolist(), strict=True))
    frame["precision_error"] = frame["component"].map(by_name)
    return frame.to_dict("records")


def print_top(rows: list[dict[str, Any]], title: str) -> None:
    """A table of what `top_components` gives, to stdout."""
    terminal = sys.stdout.isatty()
    table = Table(box=None, header_style="bold")
    table.add_column("component", no_wrap=True)
    table.add_column("type")
    for head in ("loss increase %", "95 % interval", "p", "n"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        interval = f"[{row['low']:.3g}, {row['high']:.3g}]"
        numbers = (f"{row['delta_loss']:.3g}", interval, f"{row['p']:.2g}", str(row["n"]))
        table.add_row(row["component"], row["type"], *numbers)
    error = max((row["precision_error"] for row in rows), default=0.0)
    if error:
        title += f" (precision {error:.2g} points, within the intervals)"
    print(title)
    Console(file=sys.stdout, width=None if terminal else WIDTH, highlight=False, markup=False).print(table)
