"""Anything on disk: atomic writes, digests, locks, labelled results, checkpoints, image grids, run logs."""
