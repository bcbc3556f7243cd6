"""Circuits: small sets of components that do what the network does.

`faithfulness` runs sets of components and says how much of the network's work each does, `discovery` finds a
small one, `scorecards` says how good it is on other pictures, `robustness` whether it is found again.
"""

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
]
