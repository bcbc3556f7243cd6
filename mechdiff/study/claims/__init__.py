"""The paper's claims: `seeds` puts networks side by side, `questions` test them, `verdicts` are the rules."""

from mechdiff.study.claims.questions import QUESTIONS, evaluate
from mechdiff.study.claims.verdicts import Claim, table
from mechdiff.study.records import Network

__all__ = ["QUESTIONS", "Claim", "Network", "evaluate", "table"]
