"""Analysis of saved sweeps: effects, complexity, entropy, phases, roles of components."""
