"""Anything on disk: atomic writes, digests, locks, labeled results, checkpoints, image grids, run logs."""
