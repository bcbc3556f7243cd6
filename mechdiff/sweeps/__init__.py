"""Running a network under interventions: ablation, sampling and sequential sweeps, activations."""
