"""Circuits: small sets of components that do what the network does.

`faithfulness` runs sets of components and measures how faithful each is, `discovery` finds a small faithful
one, `scorecards` evaluates it on other images, `robustness` on resamples and in other networks. `backups`
names pairs of components that make up for each other.
"""

from mechdiff.circuits.backups import verified_backups
from mechdiff.circuits.discovery import RANKINGS, Circuit, backup_components, discover
from mechdiff.circuits.faithfulness import CircuitEvaluator
from mechdiff.circuits.robustness import Stability, stability, transfer
from mechdiff.circuits.scorecards import Scorecard, scorecard

__all__ = [
    "RANKINGS",
    "Circuit",
    "CircuitEvaluator",
    "Scorecard",
    "Stability",
    "backup_components",
    "discover",
    "scorecard",
    "stability",
    "transfer",
    "verified_backups",
]
