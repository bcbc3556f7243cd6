"""Roles: what a component changes in the predicted image, and whether that is more than chance.

`role_effects` measures effects on `image_features`, `nulls` draws components without a role, `assignment`
tests roles against nulls, `matching` compares them between training seeds, `probes` read the factors of
synthetic faces.
"""

from mechdiff.analysis.roles.assignment import (
    UNASSIGNED,
    Roles,
    assign,
    examine,
    selectivity,
    target_groups,
    untrained_needed,
)
from mechdiff.analysis.roles.nulls import matched_class, matched_sets
from mechdiff.analysis.roles.role_effects import feature_variances, mean_effects, role_effects

__all__ = [
    "UNASSIGNED",
    "Roles",
    "assign",
    "examine",
    "feature_variances",
    "matched_class",
    "matched_sets",
    "mean_effects",
    "role_effects",
    "selectivity",
    "target_groups",
    "untrained_needed",
]
