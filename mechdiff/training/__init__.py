"""Training: one step as a pure function, the loop that owns the disk, and held-out evaluation."""
