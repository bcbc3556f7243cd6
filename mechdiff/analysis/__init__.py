"""What saved sweeps mean: effects, complexity, entropy, phases, roles of components."""
