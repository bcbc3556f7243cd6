"""How sweeps run: batches of interventions with shared prefixes, memory, rollouts."""
