"""What a mean over networks may hide, in words: differences between data sets, and networks that share a
start.

Networks of equal training seed start from equal parameters, whatever they are trained on. So their values may
agree, and counting each as a seed of its own makes an interval too narrow. These words decide nothing.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mechdiff.stats.small_samples import over_seeds
from mechdiff.study.network_results import NetworkResults

Values = Float[np.ndarray, " network"]


def by_data(networks: Sequence[NetworkResults], values: Values, *, digits: int = 1, unit: str = "") -> str:
    """Mean and Student's 95 % interval of the networks of each data set; empty where there is one data set,
    or a value is not known.

    Args:
      values: of the networks, in their order.
      digits: shown after the point.
      unit: after each number, such as " %".
    """
    data = np.array([network.data for network in networks])
    if len(names := sorted(set(data.tolist()))) < 2 or not np.isfinite(values).all():
        return ""
    phrases = []
    for name in names:
        of_data = values[data == name]
        networks_of = "network of" if len(of_data) == 1 else "networks of"
        phrases.append(f"{_mean(of_data, digits)}{unit} in {len(of_data)} {networks_of} {name}")
    return ", ".join(phrases)


def by_start(networks: Sequence[NetworkResults], values: Values, *, digits: int = 1, unit: str = "") -> str:
    """Mean and Student's 95 % interval over training seeds, networks of equal seed averaged first; empty
    where no two networks share a seed, or a value is not known. Arguments as in `by_data`."""
    seeds = np.array([network.seed for network in networks])
    starts = sorted(set(seeds.tolist()))
    if len(starts) == len(networks) or not np.isfinite(values).all():
        return ""
    means = np.array([values[seeds == seed].mean() for seed in starts])
    over = "one seed" if len(starts) == 1 else f"{len(starts)} seeds"
    return f"{_mean(means, digits)}{unit} over {over}, networks that share one averaged"


def _mean(values: Values, digits: int) -> str:
    mean, (low, high), _ = over_seeds(values)
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) else ""
    return f"{mean:.{digits}f}{ends}"
