"""Roles: what a component changes in the predicted picture, and whether that is more than chance.

`effects` measures, `nulls` says what components without a role do, `judging` gives or refuses a role,
`matching` asks whether other trainings gave it too, `probes` read the factors of synthetic faces.
"""

from mechdiff.analysis.roles.assignment import (
    UNASSIGNED,
    Roles,
    assign,
    examine,
    families,
    selectivity,
    untrained_needed,
)
from mechdiff.analysis.roles.nulls import matched_class, matched_sets
from mechdiff.analysis.roles.role_effects import feature_variances, mean_effects, role_effects

__all__ = [
    "UNASSIGNED",
    "Roles",
    "assign",
    "examine",
    "families",
    "feature_variances",
    "matched_class",
    "matched_sets",
    "mean_effects",
    "role_effects",
    "selectivity",
    "untrained_needed",
]
