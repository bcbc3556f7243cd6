"""Interventions as pytrees: the record, the components they address, builders, and where gates act."""
