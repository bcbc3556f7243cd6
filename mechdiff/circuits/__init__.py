"""Circuits: small sets of components that do what the network does.

`faithfulness` runs sets of components and says how much of the network's work each does, `discovery` finds a
small one, `scorecards` says how good it is on other pictures, `robustness` whether it is found again.
"""

from mechdiff.circuits.discovery import RANKINGS, Circuit, discover, stand_ins
from mechdiff.circuits.faithfulness import Trials
from mechdiff.circuits.robustness import Stability, halves, stability, transfer
from mechdiff.circuits.scorecards import Scorecard, scorecard

__all__ = [
    "RANKINGS",
    "Circuit",
    "Scorecard",
    "Stability",
    "Trials",
    "discover",
    "halves",
    "scorecard",
    "stability",
    "stand_ins",
    "transfer",
]
