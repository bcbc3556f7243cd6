"""The paper's claims: tests in `questions`, rules in `verdicts`, numbers in `across_seeds`."""

from mechdiff.study.claims.questions import QUESTIONS, evaluate
from mechdiff.study.claims.verdicts import Claim, table
from mechdiff.study.network_results import NetworkResults

__all__ = ["QUESTIONS", "Claim", "NetworkResults", "evaluate", "table"]
