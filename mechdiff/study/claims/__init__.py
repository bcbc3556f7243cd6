"""The paper's claims: tests in `questions`, rules in `verdicts`, numbers in `across_seeds`."""

from mechdiff.study.claims.questions import QUESTIONS, evaluate
from mechdiff.study.claims.verdicts import Claim, table
from mechdiff.study.records import Network

__all__ = ["QUESTIONS", "Claim", "Network", "evaluate", "table"]
