"""Validation: planted networks whose responsible components are known, calibration of tests and intervals."""
