"""Table that goes with the claim about complexity: its measures in the networks of every data set, including
control data, at every examined step of training.

A measure is relative to the loss, so it can follow how well a network is trained rather than what its images
hold. Steps of one training have the same images and different losses: how a measure moves along them shows
the first, how it differs between data sets at like loss the second. Nothing here is tested.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechdiff.stats import small_samples
from mechdiff.study.claims import across_seeds, complexity
from mechdiff.study.network_results import NetworkResults

KEYS = ["data", "complexity", "steps"]  # of the rows; complexity is -1 where images have no known one
COLUMNS = [*KEYS, "networks", "clean_loss", "measure", "value", "low", "high"]


def measure(networks: Sequence[NetworkResults]) -> pd.DataFrame:
    """Every measure of `complexity.measures` in the networks of one data set and training step.

    Returns:
      A row for each data set, training step and measure, data sets in the order of their mean clean loss at
      the last step: `data`, `complexity` (of synthetic faces, else -1), `steps` of training, `networks`
      (training seeds), `clean_loss` (mean squared error of the predicted noise, mean over networks, timesteps
      and images), `measure`, `value` (geometric mean over networks; the effective number of components is
      that of the loss increases averaged over networks, its bias removed by the jackknife), `low` and `high`
      (Student's 95 % interval over networks; NaN for fewer than 3). Measures that the networks' results do
      not hold have no row; there are no rows at all if networks are not `across_seeds.comparable`.
    """
    if not across_seeds.comparable(networks):
        return pd.DataFrame(columns=COLUMNS)
    groups: dict[tuple[str, int, int], list[NetworkResults]] = {}
    for network in sorted(networks, key=lambda network: network.seed):
        rung = network.complexity if network.data == "synthetic" else -1
        groups.setdefault((network.data, rung, network.steps), []).append(network)
    rows = [
        {
            **dict(zip(KEYS, key, strict=True)),
            "networks": len(group),
            "clean_loss": complexity.mean_clean_loss(group),
            **row,
        }
        for key, group in groups.items()
        for row in _measures(group)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    last = table.sort_values("steps").groupby(["data", "complexity"])["clean_loss"].transform("last")
    return (
        table.assign(last=last)
        .sort_values(["last", "data", "complexity", "steps"], kind="stable")
        .drop(columns="last")
        .reset_index(drop=True)
    )


def _measures(networks: Sequence[NetworkResults]) -> list[dict[str, str | float]]:
    rows = []
    for candidate in complexity.measures(networks):
        values = candidate.of(networks)
        if values is None:
            continue
        logs: Float[np.ndarray, " network"] = values.logs
        if np.isnan(logs).all():  # a jackknife of a single network
            continue
        mean, (low, high), _ = small_samples.over_seeds(logs, sizes=candidate.sizes)
        ends = {"value": np.exp(mean), "low": np.exp(low), "high": np.exp(high)}
        rows.append({"measure": candidate.name, **{name: float(end) for name, end in ends.items()}})
    return rows


def lines(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The table for a reader: titles of columns, and a line for each data set and step, a column for each
    measure."""
    names = list(dict.fromkeys(table["measure"]))
    cells = []
    for _, group in table.groupby(KEYS, sort=False):
        first = group.iloc[0]
        rung = f", complexity {first['complexity']}" if first["complexity"] >= 0 else ""
        facts = (f"{first['data']}{rung}", str(first["steps"]), str(first["networks"]))
        values = [_cell(group[group["measure"] == name]) for name in names]
        cells.append([*facts, f"{first['clean_loss']:.3f}", *values])
    return ["data", "steps", "networks", "clean loss", *names], cells


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    if np.isnan(row["low"]):
        return f"{row['value']:.1f}"
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
